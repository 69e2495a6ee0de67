// Package partition reads the partition table of a disk that somebody else
// wrote: GPT, or MBR with logical partitions.
//
// # Place
//
// hvd/boot looks through a guest's disk with it. It imports nothing of ours.
//
// # Layout
//
// GPT (UEFI specification 2.10, section 5.3), in sectors of 512 or 4096 bytes:
//
//	sector 1    header: "EFI PART", revision 4, size 4, CRC32 4, 0 4, own sector 8,
//	            backup's sector 8, first 8, last 8, disk GUID 16, entries' sector 8,
//	            number of entries 4, size of one 4, CRC32 of them 4
//	entries     {type GUID 16, GUID 16, first sector 8, last sector 8, flags 8, name 72}
//	last sector backup header
//
// MBR: at byte 446 four entries of 16 bytes {flag 1, CHS 3, type 1, CHS 3, first
// sector 4, sectors 4}, then 55h AAh. Types 5, Fh and 85h hold a chain of further
// tables: each has a logical partition, relative to itself, and the next table,
// relative to the extended partition.
package partition

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Limits on what a table may ask for.
const (
	maxEntries   = 1024 // of a GPT; the usual number is 128
	maxEntrySize = 4096 // bytes
	maxLogical   = 128  // partitions in an MBR's chain
)

var (
	// ErrNone says that the disk has no partition table.
	ErrNone = errors.New("no partition table")
	// ErrDamaged says that there is a table, and that it contradicts itself.
	ErrDamaged = errors.New("damaged partition table")
)

var le = binary.LittleEndian

// Partition is one partition of a disk.
type Partition struct {
	Number int   // from 1, as Linux numbers them: vda1; logical ones from 5
	Start  int64 // bytes from the start of the disk
	Size   int64 // bytes
}

// Read lists the partitions of a disk of size bytes, in the order of the table.
// A GPT whose first header is damaged is read from its backup.
func Read(r io.ReaderAt, size int64) ([]Partition, error) {
	found := false
	for _, sector := range []int64{512, 4096} {
		last := size/sector - 1
		for _, at := range []int64{1, last} {
			if last < 2 {
				continue
			}
			list, err := readGPT(r, size, sector, at)
			if err == nil {
				return list, nil
			}
			if !errors.Is(err, ErrNone) {
				found = true
			}
		}
	}
	list, err := readMBR(r, size)
	if found && err != nil {
		return nil, fmt.Errorf("%w: neither the GPT nor its backup can be read", ErrDamaged)
	}
	return list, err
}

func readAt(r io.ReaderAt, at int64, n int) ([]byte, error) {
	b := make([]byte, n)
	if got, err := r.ReadAt(b, at); got < n {
		return nil, fmt.Errorf("read the partition table at byte %d: %w", at, err)
	}
	return b, nil
}

// readGPT reads the table whose header is in the given sector.
func readGPT(r io.ReaderAt, size, sector, at int64) ([]Partition, error) {
	h, err := readAt(r, at*sector, 512)
	if err != nil {
		return nil, err
	}
	if string(h[:8]) != "EFI PART" {
		return nil, ErrNone
	}
	length := le.Uint32(h[12:])
	if length < 92 || length > 512 {
		return nil, fmt.Errorf("%w: GPT header of %d bytes", ErrDamaged, length)
	}
	sum := le.Uint32(h[16:])
	le.PutUint32(h[16:], 0)
	if crc32.ChecksumIEEE(h[:length]) != sum {
		return nil, fmt.Errorf("%w: checksum of the GPT header", ErrDamaged)
	}
	entries, n, each := le.Uint64(h[72:]), le.Uint32(h[80:]), le.Uint32(h[84:])
	if n > maxEntries || each < 128 || each > maxEntrySize || entries >= uint64(size/sector) {
		return nil, fmt.Errorf("%w: %d GPT entries of %d bytes in sector %d", ErrDamaged, n, each, entries)
	}
	b, err := readAt(r, int64(entries)*sector, int(n*each))
	if err != nil {
		return nil, err
	}
	if crc32.ChecksumIEEE(b) != le.Uint32(h[88:]) {
		return nil, fmt.Errorf("%w: checksum of the GPT entries", ErrDamaged)
	}
	list := []Partition{}
	for k := range int(n) {
		e := b[k*int(each):][:each]
		if [16]byte(e) == ([16]byte{}) {
			continue
		}
		first, last := le.Uint64(e[32:]), le.Uint64(e[40:])
		if first == 0 || last < first || last >= uint64(size/sector) {
			return nil, fmt.Errorf("%w: GPT partition %d from sector %d to %d", ErrDamaged, k+1, first, last)
		}
		list = append(list, Partition{k + 1, int64(first) * sector, int64(last-first+1) * sector})
	}
	return list, nil
}

// protective is the type of the one entry of an MBR that stands before a GPT.
const protective = 0xee

// mbrEntry is one of a table's four entries, in sectors.
type mbrEntry struct {
	kind         byte
	first, count int64
}

func (e mbrEntry) extended() bool { return e.kind == 0x5 || e.kind == 0xf || e.kind == 0x85 }

func readTable(r io.ReaderAt, sector int64) ([4]mbrEntry, error) {
	var t [4]mbrEntry
	b, err := readAt(r, sector*512, 512)
	if err != nil {
		return t, err
	}
	if b[510] != 0x55 || b[511] != 0xaa {
		return t, ErrNone
	}
	for k := range t {
		e := b[446+16*k:]
		if e[0]&0x7f != 0 {
			return t, ErrNone // code or a boot sector, not a table
		}
		t[k] = mbrEntry{e[4], int64(le.Uint32(e[8:])), int64(le.Uint32(e[12:]))}
	}
	return t, nil
}

func readMBR(r io.ReaderAt, size int64) ([]Partition, error) {
	if size < 512 {
		return nil, ErrNone
	}
	table, err := readTable(r, 0)
	if err != nil {
		return nil, err
	}
	var list []Partition
	add := func(number int, first int64, e mbrEntry) error {
		if first == 0 || first+e.count > size/512 {
			return fmt.Errorf("%w: MBR partition %d from sector %d, %d sectors", ErrDamaged, number, first, e.count)
		}
		list = append(list, Partition{number, first * 512, e.count * 512})
		return nil
	}
	logical := 5
	for k, e := range table {
		switch {
		case e.kind == 0 || e.count == 0:
		case e.kind == protective:
		case e.extended():
			for next, base := e.first, e.first; next != 0; logical++ {
				if logical >= 5+maxLogical {
					return nil, fmt.Errorf("%w: too many logical partitions", ErrDamaged)
				}
				t, err := readTable(r, next)
				if err != nil {
					return nil, fmt.Errorf("%w: logical partition %d", ErrDamaged, logical)
				}
				if t[0].kind != 0 && t[0].count != 0 {
					if err := add(logical, next+t[0].first, t[0]); err != nil {
						return nil, err
					}
				}
				next = 0
				if t[1].extended() && t[1].count != 0 {
					next = base + t[1].first
				}
			}
		default:
			if err := add(k+1, e.first, e); err != nil {
				return nil, err
			}
		}
	}
	if len(list) == 0 {
		return nil, ErrNone
	}
	return list, nil
}
