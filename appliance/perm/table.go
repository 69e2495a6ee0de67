package perm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// The partition table (UEFI specification 2.10, section 5.3): a header of one sector, and 128 entries of 128 bytes. At
// the disk's start the header is sector 1 and the entries follow; at its end the header is the last sector, after them.
//
//	header   0  "EFI PART"      24  its own sector   40  first and last usable sector   72  sector of the entries
//	        16  CRC32           32  the other's      56  identity of the disk           80  their number, size, CRC32
//	entry    0  type  16  identity  32  first, last sector  48  attributes  56  name
const (
	sector       = 512
	headerSize   = 92
	entrySize    = 128
	entryCount   = 128
	entriesSize  = entrySize * entryCount
	backupSize   = sector + entriesSize
	tableSectors = 1 + entriesSize/sector
	permEntry    = 3 // gokrazy's layout: EFI, root A, root B, /perm

	// TableSize is how much of a disk's start Grow looks at, in bytes, and BackupSize how much of its end.
	TableSize  = sector + backupSize
	BackupSize = backupSize
)

// Write is a change of a disk's bytes.
type Write struct {
	Offset int64
	Data   []byte
}

// Plan is what Grow found out.
type Plan struct {
	// Start and Size are the place of /perm on the disk once the writes are done, in bytes.
	Start, Size int64
	// Writes are to be made one after the other, each on the medium before the next. After none of them is there no
	// valid table: the kernel's command line has "gpt", so that it takes the one at the end where the first is bad.
	Writes []Write
	// Repaired says that the first table was bad.
	Repaired bool
}

// Grow plans how the last partition comes to reach the end of a disk with size bytes, whose first TableSize bytes are
// start and whose last BackupSize are end. A table that is right already needs no writes. It never shrinks a partition,
// and leaves a disk alone where something lies behind /perm.
func Grow(start, end []byte, size int64) (Plan, error) {
	sectors := uint64(size / sector)
	if len(start) != TableSize || len(end) != BackupSize || sectors < 2*(tableSectors+1) {
		return Plan{}, errors.New("the disk is too small for a partition table")
	}
	first := table{header: start[sector : 2*sector], entries: start[2*sector:]}
	last := table{header: end[entriesSize:], entries: end[:entriesSize]}
	firstErr := first.check(1)
	lastErr := last.check(sectors - 1)
	t := first
	if firstErr != nil {
		if lastErr != nil {
			return Plan{}, fmt.Errorf("no partition table: %w", firstErr)
		}
		t = last
	}
	t = table{header: bytes.Clone(t.header), entries: bytes.Clone(t.entries)}
	e := t.entries[permEntry*entrySize:][:entrySize]
	from, to := binary.LittleEndian.Uint64(e[32:]), binary.LittleEndian.Uint64(e[40:])
	if bytes.Equal(e[:16], make([]byte, 16)) || from <= tableSectors || to < from {
		return Plan{}, errors.New("the partition table has no fourth partition")
	}
	plan := Plan{Start: int64(from * sector), Size: int64((to - from + 1) * sector), Repaired: firstErr != nil}
	const align = 4096 / sector
	most := (sectors-tableSectors)/align*align - 1
	if to > most || t.occupied(to+1) {
		if to > sectors-1-tableSectors {
			return Plan{}, errors.New("the fourth partition reaches beyond the disk's end: a copy of a larger disk?")
		}
		most = to
	}
	if most == to && firstErr == nil && lastErr == nil {
		return plan, nil
	}
	plan.Size = int64((most - from + 1) * sector)
	binary.LittleEndian.PutUint64(e[40:], most)
	plan.Writes = []Write{
		{size/sector*sector - backupSize, t.encode(sectors-1, 1, sectors)},
		{sector, t.encode(1, sectors-1, sectors)},
	}
	return plan, nil
}

// gokrazy's GUIDs have this beginning, then the disk's number in 32 bits, a byte 0, and the partition's number (0: the disk).
var guidPrefix = []byte{0xc1, 0x4c, 0xc2, 0x60, 0xf9, 0xf3, 0x7a, 0x42, 0x81, 0x99}

const (
	diskGUIDAt = 56
	// signatureAt is where the first sector has the disk's number for firmware and kernels that know no GPT.
	signatureAt = 440
)

// Identify gives a disk the number id, in its first TableSize bytes: the packer derives it from the host name, so that all
// disks have the same, and two of them in one computer can't be told apart. The kernel's command line names the disk by
// the GUID of its first partition: before and after are that, as it is written there.
func Identify(start []byte, id uint32) (before, after string, err error) {
	if len(start) != TableSize {
		return "", "", errors.New("the disk is too small for a partition table")
	}
	t := table{header: start[sector : 2*sector], entries: start[2*sector:]}
	if err := t.check(1); err != nil {
		return "", "", fmt.Errorf("no partition table: %w", err)
	}
	guids := [][]byte{t.header[diskGUIDAt:][:16]}
	for i := range permEntry + 1 {
		guids = append(guids, t.entries[i*entrySize+16:][:16])
	}
	for i, g := range guids {
		if !bytes.HasPrefix(g, guidPrefix) || int(g[15]) != i {
			return "", "", errors.New("the partitions have no identities as gokrazy's packer makes them")
		}
	}
	before = guidText(guids[1])
	for _, g := range guids {
		binary.BigEndian.PutUint32(g[10:], id)
	}
	binary.LittleEndian.PutUint32(start[signatureAt:], id)
	binary.LittleEndian.PutUint32(t.header[88:], crc32.ChecksumIEEE(t.entries))
	binary.LittleEndian.PutUint32(t.header[16:], headerSum(t.header))
	return before, guidText(guids[1]), nil
}

// guidText writes a GUID, whose first three numbers are little-endian, as the kernel does.
func guidText(g []byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(g), le.Uint16(g[4:]), le.Uint16(g[6:]), g[8:10], g[10:16])
}

// Partition is the place of a partition, counted from 1, by the table in a disk's first TableSize bytes, in bytes.
func Partition(start []byte, number int) (offset, size int64, err error) {
	if len(start) != TableSize || number < 1 || number > entryCount {
		return 0, 0, errors.New("no such partition")
	}
	t := table{header: start[sector : 2*sector], entries: start[2*sector:]}
	if err := t.check(1); err != nil {
		return 0, 0, fmt.Errorf("no partition table: %w", err)
	}
	e := t.entries[(number-1)*entrySize:][:entrySize]
	from, to := binary.LittleEndian.Uint64(e[32:]), binary.LittleEndian.Uint64(e[40:])
	if from <= tableSectors || to < from || to > 1<<50 {
		return 0, 0, fmt.Errorf("no partition %d", number)
	}
	return int64(from * sector), int64((to - from + 1) * sector), nil
}

// table is one of the two copies.
type table struct{ header, entries []byte }

// check tells whether the table is whole, and made for that sector.
func (t table) check(own uint64) error {
	h := t.header
	switch {
	case string(h[:8]) != "EFI PART":
		return errors.New("no GPT")
	case binary.LittleEndian.Uint32(h[12:]) != headerSize ||
		binary.LittleEndian.Uint32(h[80:]) != entryCount || binary.LittleEndian.Uint32(h[84:]) != entrySize:
		return errors.New("a GPT of another shape")
	case binary.LittleEndian.Uint32(h[16:]) != headerSum(h):
		return errors.New("the GPT's header has another checksum than it says")
	case binary.LittleEndian.Uint64(h[24:]) != own:
		return errors.New("the GPT's header is for another sector")
	case binary.LittleEndian.Uint32(h[88:]) != crc32.ChecksumIEEE(t.entries):
		return errors.New("the GPT's entries have another checksum than it says")
	}
	return nil
}

func headerSum(h []byte) uint32 {
	c := bytes.Clone(h[:headerSize])
	binary.LittleEndian.PutUint32(c[16:], 0)
	return crc32.ChecksumIEEE(c)
}

// occupied tells whether a partition but /perm has a sector from that one on.
func (t table) occupied(from uint64) bool {
	for i := range entryCount {
		e := t.entries[i*entrySize:][:entrySize]
		used := !bytes.Equal(e[:16], make([]byte, 16))
		if used && i != permEntry && binary.LittleEndian.Uint64(e[40:]) >= from {
			return true
		}
	}
	return false
}

// encode gives the copy whose header is in the sector own, in the order that it has on a disk of that many sectors.
func (t table) encode(own, other, sectors uint64) []byte {
	h := make([]byte, sector)
	copy(h, t.header[:headerSize])
	entriesAt := uint64(2)
	if own != 1 {
		entriesAt = own - entriesSize/sector
	}
	binary.LittleEndian.PutUint64(h[24:], own)
	binary.LittleEndian.PutUint64(h[32:], other)
	binary.LittleEndian.PutUint64(h[48:], sectors-1-tableSectors)
	binary.LittleEndian.PutUint64(h[72:], entriesAt)
	binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(t.entries))
	binary.LittleEndian.PutUint32(h[16:], headerSum(h))
	if own == 1 {
		return append(h, t.entries...)
	}
	return append(bytes.Clone(t.entries), h...)
}
