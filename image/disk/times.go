package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
)

// The packer writes the time of day into both file systems that it makes. fixTimes puts fixed times there, so that equal
// sources make equal images. It knows what monogok writes, and refuses anything else.

const (
	// fatDate is 1980-01-01, the earliest that FAT knows (Microsoft FAT specification 1.03, "Date and Time Formats").
	fatDate = 1<<5 | 1
	// maxTables bounds what is read of a file system's tables, in bytes.
	maxTables = 16 << 20
	// squashMagic is "hsqs" (Linux, Documentation/filesystems/squashfs.rst).
	squashMagic = 0x73717368
	// squashBlock is the unit of squashfs's metadata; each has two bytes of length before it.
	squashBlock = 8192
)

// fixTimes changes the image at path.
func fixTimes(path string) error {
	boot, err := partition(path, bootPartition)
	if err != nil {
		return err
	}
	root, err := partition(path, rootPartition)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := fixFAT(f, boot.start); err != nil {
		return fmt.Errorf("the boot file system: %w", err)
	}
	if err := fixSquash(f, root.start); err != nil {
		return fmt.Errorf("the root file system: %w", err)
	}
	return f.Close()
}

// fixFAT walks the directories of a FAT16 file system that starts at start.
func fixFAT(f *os.File, start int64) error {
	b := make([]byte, 512)
	if _, err := f.ReadAt(b, start); err != nil {
		return err
	}
	le := binary.LittleEndian
	sector := int64(le.Uint16(b[11:]))
	cluster := int64(b[13]) * sector
	fat := start + int64(le.Uint16(b[14:]))*sector
	fatSize := int64(le.Uint16(b[22:])) * sector
	root := fat + int64(b[16])*fatSize
	rootSize := int64(le.Uint16(b[17:])) * 32
	data := root + rootSize
	if string(b[54:59]) != "FAT16" || sector != 512 || cluster == 0 || fatSize == 0 {
		return errors.New("not FAT16")
	}
	table := make([]byte, fatSize)
	if _, err := f.ReadAt(table, fat); err != nil {
		return err
	}
	var walk func(at, size int64, next, depth int) error
	walk = func(at, size int64, next, depth int) error {
		if depth > 8 {
			return errors.New("directories nested too deeply")
		}
		entries := make([]byte, size)
		if _, err := f.ReadAt(entries, at); err != nil {
			return err
		}
		for e := entries; len(e) >= 32 && e[0] != 0; e = e[32:] {
			const longName, directory = 0x0f, 0x10
			if e[0] == 0xe5 || e[11]&0x3f == longName {
				continue
			}
			clear(e[13:20])
			clear(e[22:24])
			le.PutUint16(e[24:], fatDate)
			if e[11]&directory != 0 && e[0] != '.' {
				first := int(le.Uint16(e[26:]))
				if err := walk(data+int64(first-2)*cluster, cluster, first, depth+1); err != nil {
					return err
				}
			}
		}
		if _, err := f.WriteAt(entries, at); err != nil {
			return err
		}
		if next == 0 || 2*next+2 > len(table) {
			return nil
		}
		if follow := int(le.Uint16(table[2*next:])); follow >= 2 && follow < 0xfff0 {
			return walk(data+int64(follow-2)*cluster, cluster, follow, depth+1)
		}
		return nil
	}
	return walk(root, rootSize, 0, 0)
}

// fixSquash sets the times of a squashfs without compressed metadata that starts at start: in the superblock, and in
// each inode, which are one after the other in the inode table.
func fixSquash(f *os.File, start int64) error {
	s := make([]byte, 96)
	if _, err := f.ReadAt(s, start); err != nil {
		return err
	}
	le := binary.LittleEndian
	from, to := int64(le.Uint64(s[64:])), int64(le.Uint64(s[72:]))
	block := le.Uint32(s[12:])
	if le.Uint32(s) != squashMagic || block == 0 || from < 96 || to < from || to-from > maxTables {
		return errors.New("not a squashfs as the packer makes it")
	}
	le.PutUint32(s[8:], 0)
	if _, err := f.WriteAt(s, start); err != nil {
		return err
	}
	packed := make([]byte, to-from)
	if _, err := f.ReadAt(packed, start+from); err != nil {
		return err
	}
	table, err := metadata(packed)
	if err != nil {
		return err
	}
	for n, rest := uint32(0), table; n < le.Uint32(s[4:]); n++ {
		size := inodeSize(rest, int64(block))
		if size == 0 || size > int64(len(rest)) {
			return fmt.Errorf("inode %d of %d has an unknown type", n+1, le.Uint32(s[4:]))
		}
		le.PutUint32(rest[8:], 0)
		rest = rest[size:]
	}
	for at := 0; len(table) > 0; at += 2 + squashBlock {
		table = table[copy(packed[at+2:], table[:min(squashBlock, len(table))]):]
	}
	_, err = f.WriteAt(packed, start+from)
	return err
}

// metadata joins the blocks of a squashfs table, all but the last of which must be full.
func metadata(packed []byte) ([]byte, error) {
	var table []byte
	for p := packed; len(p) > 0; {
		const uncompressed = 0x8000
		if len(p) < 2 || binary.LittleEndian.Uint16(p)&uncompressed == 0 {
			return nil, errors.New("the inode table is compressed")
		}
		n := int(binary.LittleEndian.Uint16(p) &^ uncompressed)
		if p = p[2:]; n == 0 || n > len(p) || n > squashBlock || n < squashBlock && n != len(p) {
			return nil, errors.New("the inode table has blocks of an unknown size")
		}
		table = append(table, p[:n]...)
		p = p[n:]
	}
	return table, nil
}

// inodeSize is the size of the inode that b starts with, 0 if it is of a type that the packer doesn't make. The types
// are directory, file, symbolic link and large directory, all of which have their time of change at byte 8.
func inodeSize(b []byte, block int64) int64 {
	const link = 3
	if len(b) < 24 || len(b) < 32 && binary.LittleEndian.Uint16(b) != link {
		return 0
	}
	switch binary.LittleEndian.Uint16(b) {
	case 1:
		return 32
	case 2:
		return 32 + (int64(binary.LittleEndian.Uint32(b[28:]))+block-1)/block*4
	case link:
		return 24 + int64(binary.LittleEndian.Uint32(b[20:]))
	case 8:
		return 40
	}
	return 0
}
