package volume

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"unicode/utf16"
)

// GUID is a globally unique identifier, its bytes in the order of its text.
type GUID [16]byte

// String is the usual form, such as 64A9C1D6-7E0B-4B0F-9C56-4475657401A1.
func (g GUID) String() string {
	h := strings.ToUpper(hex.EncodeToString(g[:]))
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// ParseGUID is the inverse of String, in either case.
func ParseGUID(s string) (g GUID, err error) {
	if len(s) == 36 && s[8] == '-' && s[13] == '-' && s[18] == '-' && s[23] == '-' {
		var b []byte
		if b, err = hex.DecodeString(strings.ReplaceAll(s, "-", "")); err == nil && len(b) == 16 {
			return GUID(b), nil
		}
	}
	return g, fmt.Errorf("%.40q is not a UUID such as 0c5b0b9e-8f1d-4c44-a0b3-0c1d2e3f4a5b", s)
}

// onDisk swaps between the order of the text and that of GPT, which is
// little-endian in the first three fields (UEFI appendix A).
func (g GUID) onDisk() GUID {
	return GUID{g[3], g[2], g[1], g[0], g[5], g[4], g[7], g[6], g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]}
}

// Types of our partitions.
var (
	// TypeMetadata is partition 1, "duet".
	TypeMetadata = GUID{0x64, 0xa9, 0xc1, 0xd6, 0x7e, 0x0b, 0x4b, 0x0f, 0x9c, 0x56, 0x44, 0x75, 0x65, 0x74, 0x01, 0xa1}
	// TypeDisk is a virtual disk.
	TypeDisk = GUID{0x64, 0xa9, 0xc1, 0xd6, 0x7e, 0x0b, 0x4b, 0x0f, 0x9c, 0x56, 0x44, 0x75, 0x65, 0x74, 0x02, 0xd2}
)

// partition is one entry of a GPT (UEFI 2.10, table 5.6).
type partition struct {
	typ, id     GUID
	first, last uint64 // blocks, both included
	attributes  uint64
	name        string
}

const (
	gptEntries   = 128
	gptEntryLen  = 128
	gptHeaderLen = 92
	gptNameLen   = 36 // UTF-16 units
	gptSignature = "EFI PART"
)

// table is a GPT. parts has gptEntries entries; those with a zero type are free.
type table struct {
	disk      GUID
	blocks    uint64 // of the volume
	blockSize int
	parts     [gptEntries]partition
}

// arrayBlocks is how many blocks the array of entries takes.
func arrayBlocks(blockSize int) uint64 {
	return roundUp(gptEntries*gptEntryLen, uint64(blockSize)) / uint64(blockSize)
}

// usable is the range of blocks that partitions may use, both included.
func (t *table) usable() (first, last uint64) {
	n := arrayBlocks(t.blockSize)
	return 2 + n, t.blocks - 2 - n
}

// encode returns the blocks from 0 on (protective MBR, header, entries), and
// those up to the end of the volume (entries, backup header).
func (t *table) encode() (primary, backup []byte) {
	bs := uint64(t.blockSize)
	n := arrayBlocks(t.blockSize)
	entries := make([]byte, n*bs)
	for i, p := range t.parts {
		p.encode(entries[i*gptEntryLen:])
	}
	sum := crc32.ChecksumIEEE(entries[:gptEntries*gptEntryLen])
	primary = slices.Concat(t.protectiveMBR(), t.header(1, t.blocks-1, 2, sum), entries)
	backup = slices.Concat(entries, t.header(t.blocks-1, 1, t.blocks-1-n, sum))
	return primary, backup
}

// protectiveMBR is UEFI 2.10, section 5.2.3.
func (t *table) protectiveMBR() []byte {
	b := make([]byte, t.blockSize)
	e := b[446:]
	copy(e, []byte{0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff})
	binary.LittleEndian.PutUint32(e[8:], 1)
	binary.LittleEndian.PutUint32(e[12:], uint32(min(t.blocks-1, 0xffffffff)))
	b[510], b[511] = 0x55, 0xaa
	return b
}

// header is UEFI 2.10, table 5.5.
func (t *table) header(own, other, array uint64, entriesSum uint32) []byte {
	b := make([]byte, t.blockSize)
	le := binary.LittleEndian
	copy(b, gptSignature)
	le.PutUint32(b[8:], 0x00010000)
	le.PutUint32(b[12:], gptHeaderLen)
	le.PutUint64(b[24:], own)
	le.PutUint64(b[32:], other)
	first, last := t.usable()
	le.PutUint64(b[40:], first)
	le.PutUint64(b[48:], last)
	disk := t.disk.onDisk()
	copy(b[56:], disk[:])
	le.PutUint64(b[72:], array)
	le.PutUint32(b[80:], gptEntries)
	le.PutUint32(b[84:], gptEntryLen)
	le.PutUint32(b[88:], entriesSum)
	le.PutUint32(b[16:], crc32.ChecksumIEEE(b[:gptHeaderLen]))
	return b
}

func (p partition) encode(b []byte) {
	if p.typ == (GUID{}) {
		return
	}
	typ, id := p.typ.onDisk(), p.id.onDisk()
	copy(b, typ[:])
	copy(b[16:], id[:])
	binary.LittleEndian.PutUint64(b[32:], p.first)
	binary.LittleEndian.PutUint64(b[40:], p.last)
	binary.LittleEndian.PutUint64(b[48:], p.attributes)
	for i, u := range utf16.Encode([]rune(p.name)) {
		if i == gptNameLen {
			break
		}
		binary.LittleEndian.PutUint16(b[56+2*i:], u)
	}
}

// gptHeader is what a header says.
type gptHeader struct {
	disk       GUID
	array      uint64
	entries    uint32
	entriesSum uint32
}

// errNoGPT says that there is no GPT header in a block.
var errNoGPT = errors.New("no GPT")

// decodeHeader checks the header in block own of a volume. The number of
// entries is limited to 1024.
func decodeHeader(b []byte, own, blocks uint64) (h gptHeader, err error) {
	le := binary.LittleEndian
	if len(b) < gptHeaderLen || string(b[:8]) != gptSignature {
		return h, errNoGPT
	}
	n := le.Uint32(b[12:])
	if n < gptHeaderLen || uint64(n) > uint64(len(b)) {
		return h, fmt.Errorf("GPT header: length %d: %w", n, ErrDamaged)
	}
	c := slices.Clone(b[:n])
	le.PutUint32(c[16:], 0)
	if crc32.ChecksumIEEE(c) != le.Uint32(b[16:]) || !isZero(b[n:]) {
		return h, fmt.Errorf("GPT header: checksum: %w", ErrDamaged)
	}
	if le.Uint64(b[24:]) != own {
		return h, fmt.Errorf("GPT header in block %d says that it is in block %d (was the volume resized?): %w", own, le.Uint64(b[24:]), ErrDamaged)
	}
	h = gptHeader{
		disk: GUID(b[56:72]).onDisk(), array: le.Uint64(b[72:]),
		entries: le.Uint32(b[80:]), entriesSum: le.Uint32(b[88:]),
	}
	if le.Uint32(b[84:]) != gptEntryLen || h.entries == 0 || h.entries > 1024 || h.array >= blocks {
		return h, fmt.Errorf("GPT header: %d entries of %d bytes at block %d are not supported", h.entries, le.Uint32(b[84:]), h.array)
	}
	return h, nil
}

// decodeEntries checks and decodes the array of entries that h announces.
func decodeEntries(h gptHeader, b []byte) ([]partition, error) {
	n := int(h.entries) * gptEntryLen
	if len(b) < n {
		return nil, fmt.Errorf("GPT entries: %d bytes of %d", len(b), n)
	}
	if crc32.ChecksumIEEE(b[:n]) != h.entriesSum {
		return nil, fmt.Errorf("GPT entries: checksum: %w", ErrDamaged)
	}
	parts := make([]partition, h.entries)
	for i := range parts {
		e := b[i*gptEntryLen : (i+1)*gptEntryLen]
		if isZero(e[:16]) {
			continue
		}
		var name []uint16
		for k := range gptNameLen {
			u := binary.LittleEndian.Uint16(e[56+2*k:])
			if u == 0 {
				break
			}
			name = append(name, u)
		}
		parts[i] = partition{
			typ: GUID(e[:16]).onDisk(), id: GUID(e[16:32]).onDisk(),
			first: binary.LittleEndian.Uint64(e[32:]), last: binary.LittleEndian.Uint64(e[40:]),
			attributes: binary.LittleEndian.Uint64(e[48:]), name: string(utf16.Decode(name)),
		}
	}
	return parts, nil
}

// check tests that the partitions lie inside of the volume and apart.
func (t *table) check() error {
	first, last := t.usable()
	var used []partition
	for i, p := range t.parts {
		if p.typ == (GUID{}) {
			continue
		}
		if p.first < first || p.last > last || p.first > p.last {
			return fmt.Errorf("GPT: partition %d (%q), blocks %d to %d, leaves the volume's %d to %d: %w", i+1, p.name, p.first, p.last, first, last, ErrDamaged)
		}
		used = append(used, p)
	}
	slices.SortFunc(used, func(a, b partition) int {
		if a.first < b.first {
			return -1
		}
		return 1
	})
	for i := 1; i < len(used); i++ {
		if used[i].first <= used[i-1].last {
			return fmt.Errorf("GPT: partitions %q and %q overlap: %w", used[i-1].name, used[i].name, ErrDamaged)
		}
	}
	return nil
}

// alignment of partitions, in bytes.
const alignment = 1 << 20

// allocate finds room for a new partition of n bytes, first fit, and enters it.
func (t *table) allocate(p partition, n uint64) error {
	bs := uint64(t.blockSize)
	need := roundUp(n, alignment) / bs
	slot := slices.IndexFunc(t.parts[:], func(q partition) bool { return q.typ == (GUID{}) })
	if slot < 0 {
		return fmt.Errorf("%w: it has %d partitions, which is the limit", ErrFull, gptEntries)
	}
	for _, g := range t.gaps() {
		if g.Blocks >= need {
			p.first, p.last = g.FirstLBA, g.FirstLBA+need-1
			t.parts[slot] = p
			return nil
		}
	}
	_, largest := t.free()
	return fmt.Errorf("%w: %s wanted, the largest free piece has %s", ErrFull, size(n), size(largest))
}

// gaps are the free pieces between partitions, each from an aligned block on.
func (t *table) gaps() (list []Extent) {
	unit := alignment / uint64(t.blockSize)
	var used []partition
	for _, q := range t.parts {
		if q.typ != (GUID{}) {
			used = append(used, q)
		}
	}
	slices.SortFunc(used, func(a, b partition) int { return cmp.Compare(a.first, b.first) })
	first, last := t.usable()
	at := roundUp(first, unit)
	for _, q := range append(used, partition{first: last + 1, last: last + 1}) {
		if q.first > at {
			list = append(list, Extent{at, q.first - at})
		}
		at = max(at, roundUp(q.last+1, unit))
	}
	return list
}

// free is how many bytes no partition takes, and the largest that one could take.
func (t *table) free() (all, largest uint64) {
	bs := uint64(t.blockSize)
	for _, g := range t.gaps() {
		all += g.Blocks * bs
		largest = max(largest, g.Blocks*bs/alignment*alignment)
	}
	return all, largest
}
