package volume

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	// minVolume is the smallest volume worth formatting, in bytes.
	minVolume = 64 << 20
	// mustBeEmptyHead and mustBeEmptyTail are the parts of a volume in which
	// whoever owns it leaves traces, and which Format writes to.
	mustBeEmptyHead = alignment + metadataSize
	mustBeEmptyTail = 1 << 20
)

// Format makes an empty volume Duet's. It refuses, in one line, whatever isn't
// all zeros in its first 17 MiB and its last 1 MiB: nobody's data is ever
// overwritten. ErrFormatted: it's Duet's already. A Format that died half way
// is completed. Two hosts may try at once: one of them succeeds.
func Format(ctx context.Context, b Blocks) error {
	if err := fits(b); err != nil {
		return err
	}
	switch _, err := Open(ctx, b); {
	case err == nil:
		return ErrFormatted
	case !errors.Is(err, ErrNotDuet) && ours(ctx, b):
		return err
	}
	s := blank(b)
	s.id = randomGUID()
	unfinished, err := checkEmpty(ctx, b, s)
	if err != nil {
		return err
	}
	if unfinished != nil {
		s = *unfinished
	} else if err := claim(ctx, b, s); err != nil {
		return err
	}
	return lay(ctx, b, s)
}

// Vacant says in one line why Format would refuse a volume that isn't Duet's, nil
// if it's empty and large enough. It reads 18 MiB and writes nothing.
func Vacant(ctx context.Context, b Blocks) error {
	if err := fits(b); err != nil {
		return err
	}
	_, err := checkEmpty(ctx, b, blank(b))
	return err
}

// blank is the superblock that Format gives a volume, but for its name.
func blank(b Blocks) superblock {
	blocks, bs := b.Capacity()
	return superblock{blockSize: uint32(bs), blocks: blocks, first: alignment / uint64(bs)}
}

// fits checks a volume's capacity.
func fits(b Blocks) error {
	blocks, bs := b.Capacity()
	if n := blocks * uint64(bs); n < minVolume {
		return fmt.Errorf("volume has %s; at least %s are needed", size(n), size(minVolume))
	}
	if bs != 512 && bs != 4096 {
		return fmt.Errorf("volume has blocks of %d bytes; 512 or 4096 are supported", bs)
	}
	return nil
}

// ours says that an unreadable volume is nevertheless Duet's, so that the
// damage is what to report. A Format that died before the GPT's first block
// was written isn't damage.
func ours(ctx context.Context, b Blocks) bool {
	_, bs := b.Capacity()
	head, err := readBytes(ctx, b, 0, 2*alignment)
	if err != nil {
		return true
	}
	_, err = decodeSuperblock(head[alignment:][:bs])
	return !errors.Is(err, ErrNotDuet) && !isZero(head[:2*bs])
}

// claim writes the superblock by COMPARE AND WRITE, so that one host does.
func claim(ctx context.Context, b Blocks, s superblock) error {
	_, bs := b.Capacity()
	block := make([]byte, bs)
	copy(block, s.encode())
	swapped, err := b.CompareAndWrite(ctx, s.first, make([]byte, bs), block)
	switch {
	case err != nil:
		return err
	case !swapped:
		return errors.New("another host is formatting the volume; try again")
	}
	return b.Sync(ctx)
}

// lay writes all but the superblock. The GPT comes last: with it, the volume is
// formatted.
func lay(ctx context.Context, b Blocks, s superblock) error {
	blocks, bs := b.Capacity()
	v := &Volume{b: b, first: s.first}
	for i, at := range slotAt {
		p, err := definitions{generation: 1}.encode(i)
		if err != nil {
			return err
		}
		if err := b.Write(ctx, v.lba(at), p); err != nil {
			return err
		}
	}
	if err := b.Write(ctx, v.lba(lockAt), lockRecord{generation: 1}.encode(bs)); err != nil {
		return err
	}
	if err := b.Sync(ctx); err != nil {
		return err
	}
	t := &table{disk: s.id, blocks: blocks, blockSize: bs}
	t.parts[0] = partition{
		typ: TypeMetadata, id: partitionID(s.id, "", ""), name: "duet",
		first: s.first, last: s.first + metadataSize/uint64(bs) - 1,
	}
	return writeTable(ctx, b, t)
}

// checkEmpty makes sure that nobody's data is on the volume. It returns the
// superblock of a Format that died before it wrote a GPT.
func checkEmpty(ctx context.Context, b Blocks, s superblock) (unfinished *superblock, err error) {
	blocks, bs := b.Capacity()
	head, err := readBytes(ctx, b, 0, mustBeEmptyHead)
	if err != nil {
		return nil, err
	}
	tail, err := readBytes(ctx, b, blocks*uint64(bs)-mustBeEmptyTail, mustBeEmptyTail)
	if err != nil {
		return nil, err
	}
	if isZero(head) && isZero(tail) {
		return nil, nil
	}
	if old, err := decodeSuperblock(head[alignment:][:bs]); err == nil && isZero(head[:alignment]) {
		l, err := decodeLock(head[alignment+lockAt:][:bs])
		if err == nil && l.generation > 1 {
			return nil, fmt.Errorf("the volume is Duet's and has VM definitions, but its GPT is gone: %w; restore it with sgdisk", ErrDamaged)
		}
		if old.blocks == s.blocks && old.blockSize == s.blockSize && old.first == s.first {
			return &old, nil
		}
	}
	return nil, fmt.Errorf("the volume holds %s; %w", foreign(head, tail, bs), ErrForeign)
}

// foreign names what is on a volume, from its beginning and its end.
func foreign(head, tail []byte, blockSize int) string {
	if h, err := decodeHeader(head[blockSize:2*blockSize], 1, 1<<62); !errors.Is(err, errNoGPT) {
		n := 0
		at := h.array * uint64(blockSize)
		if err == nil && at < uint64(len(head)) {
			if parts, err := decodeEntries(h, head[at:]); err == nil {
				for _, p := range parts {
					if p.typ != (GUID{}) {
						n++
					}
				}
			}
		}
		switch {
		case err != nil:
			return "a damaged GPT"
		case n == 1:
			return "a GPT with 1 partition that isn't Duet's"
		}
		return fmt.Sprintf("a GPT with %d partitions that aren't Duet's", n)
	}
	if name := fileSystem(head); name != "" {
		return name
	}
	if head[510] == 0x55 && head[511] == 0xaa {
		n := 0
		for i := range 4 {
			if head[446+16*i+4] != 0 {
				n++
			}
		}
		return fmt.Sprintf("an MBR partition table with %d partitions", n)
	}
	if bytes.Equal(tail[len(tail)-blockSize:][:8], []byte(gptSignature)) {
		return "the backup of a GPT that isn't Duet's"
	}
	if isZero(head) {
		return "data at its end"
	}
	return "data that isn't Duet's"
}

// fileSystem recognises what begins a volume by its magic number.
func fileSystem(head []byte) string {
	for _, f := range []struct {
		at    int
		magic string
		name  string
	}{
		{1080, "\x53\xef", "an ext2, ext3 or ext4 file system"},
		{0, "XFSB", "an XFS file system"},
		{65536 + 64, "_BHRfS_M", "a Btrfs file system"},
		{3, "NTFS    ", "an NTFS file system"},
		{54, "FAT", "a FAT file system"},
		{82, "FAT32", "a FAT32 file system"},
		{3, "EXFAT   ", "an exFAT file system"},
		{32769, "CD001", "an ISO 9660 file system"},
		{1024, "\xe2\xe1\xf5\xe0", "an EROFS file system"},
		{1024, "\x10\x20\xf5\xf2", "an F2FS file system"},
		{0, "LUKS\xba\xbe", "an encrypted (LUKS) volume"},
		{512, "LABELONE", "an LVM physical volume"},
		{4086, "SWAPSPACE2", "swap space"},
		{0, "QFI\xfb", "a qcow2 image"},
		{4096, "\xfc\x4e\x2b\xa9", "a member of a Linux RAID"},
		{0, "\xfc\x4e\x2b\xa9", "a member of a Linux RAID"},
		{0, "hsqs", "a SquashFS file system"},
	} {
		if bytes.HasPrefix(head[f.at:], []byte(f.magic)) {
			return f.name
		}
	}
	// VMFS (magic at 1 MiB) and old ZFS labels (big or little endian at 128 KiB).
	if binary.LittleEndian.Uint32(head[1<<20:]) == 0xc001d00d {
		return "a VMFS datastore"
	}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		if order.Uint64(head[128<<10:]) == 0x00bab10c {
			return "a ZFS pool"
		}
	}
	return ""
}
