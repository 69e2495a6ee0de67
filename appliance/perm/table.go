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
