// Package perm makes what a host's image leaves out: /perm, the partition that updates never touch. It finds out what
// lies there, makes an ext4 file system where nothing is, and extends the partition table to the disk's end.
//
// Used by appliance/init (at each boot) and image/flash (the table). Imports nothing of ours. It knows no device: bytes
// and [Disk] come from the caller.
//
// The partition, at each boot:
//
//	                    +--> Blank -------+
//	first 16 MiB ------ +--> Unfinished --+--> Format --> Ext4 --> mounted, and grown while it is mounted
//	                    +--> Ext4 ----------------------------^
//	                    +--> Foreign: left as it is, whatever it is; the host says so and goes on without
//
// The file system is a copy of a small one that mke2fs made (template.gz, see [Format]), with an identity of its own;
// the kernel makes it as large as the partition. A power cut at any write of Format leaves Unfinished or Ext4.
//
// template.gz is gzip over records: the number of a block, 4 bytes little-endian, then its 4,096 bytes. Blocks that
// aren't in it hold zeroes. The file system has 16,384 blocks; TestTemplate tells how it is made.
package perm

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
)

const (
	// MinSize is the smallest partition that Format takes, in bytes: the template's size.
	MinSize = templateBlocks * blockSize

	blockSize      = 4096
	templateBlocks = 16384
	// looked is how much of a partition must be zero to count as empty, in bytes. An image's /perm is: it is part of
	// what is flashed. File systems, LUKS, LVM and RAID of version 1.1 and 1.2 all have something there.
	looked = 16 << 20
	// markSize is the unit that a disk writes whole or not at all.
	markSize = 512
)

// mark stands at the partition's first bytes while Format works. ext4 leaves the first 1,024 bytes to boot loaders.
const mark = "duet: /perm is being made; nothing in it yet\n"

// Fields of ext4's superblock, by offset in the partition (Documentation/filesystems/ext4/super.rst).
const (
	superblock     = 1024
	superblockSize = 1024
	blocksLowAt    = superblock + 0x04
	magicAt        = superblock + 0x38
	uuidAt         = superblock + 0x68
	hashSeedAt     = superblock + 0xec
	blocksHighAt   = superblock + 0x150
	checksumAt     = superblock + 0x3fc
	ext4Magic      = 0xef53
)

//go:embed template.gz
var template []byte

// State is what a partition holds.
type State int

// The states; see the package comment.
const (
	Blank State = iota
	Unfinished
	Ext4
	Foreign
)

// Disk is where a file system is made: a partition, from its first byte on. What was written before Sync is on the
// medium when Sync returns.
type Disk interface {
	io.WriterAt
	Sync() error
}

// Look tells what the partition holds, which is size bytes long.
func Look(r io.ReaderAt, size int64) (State, error) {
	if size < MinSize {
		return Foreign, fmt.Errorf("the partition has %d MiB: /perm needs %d", size>>20, MinSize>>20)
	}
	buf := make([]byte, 1<<20)
	for off := int64(0); off < min(looked, size); off += int64(len(buf)) {
		if _, err := r.ReadAt(buf, off); err != nil {
			return Foreign, err
		}
		if off == 0 {
			switch {
			case bytes.HasPrefix(buf, []byte(mark)):
				return Unfinished, nil
			case binary.LittleEndian.Uint16(buf[magicAt:]) == ext4Magic:
				return Ext4, nil
			}
		}
		if slices.ContainsFunc(buf, func(b byte) bool { return b != 0 }) {
			return Foreign, nil
		}
	}
	return Blank, nil
}

// Blocks is how many blocks of 4,096 bytes the ext4 file system has whose first bytes (at least 2,048) are head.
func Blocks(head []byte) uint64 {
	if len(head) < superblock+superblockSize {
		return 0
	}
	return uint64(binary.LittleEndian.Uint32(head[blocksLowAt:])) | uint64(binary.LittleEndian.Uint32(head[blocksHighAt:]))<<32
}

// Identity makes one file system differ from another: its UUID, and the seed of its directory hashes.
type Identity struct{ UUID, HashSeed [16]byte }

// Format makes the file system, over whatever is there: call it on Blank and Unfinished only. Other than mke2fs it
// relies on nothing that was there: all of the template's 64 MiB are written.
func Format(d Disk, id Identity) error {
	blocks, err := unpack(template)
	if err != nil {
		return err
	}
	first := blocks[0]
	setIdentity(first, id)

	sector := make([]byte, markSize)
	copy(sector, mark)
	if err := write(d, sector, 0); err != nil {
		return err
	}
	const piece = 256 // blocks
	buf := make([]byte, piece*blockSize)
	for n := 0; n < templateBlocks; n += piece {
		clear(buf)
		for i := range piece {
			if b, ok := blocks[uint32(n+i)]; ok && n+i > 0 {
				copy(buf[i*blockSize:], b)
			}
		}
		skip := 0
		if n == 0 {
			skip = blockSize
		}
		if _, err := d.WriteAt(buf[skip:], int64(n*blockSize+skip)); err != nil {
			return err
		}
	}
	if err := d.Sync(); err != nil {
		return err
	}
	// The superblock while the mark still stands, then the mark's sector: the one write that makes it a file system.
	if err := write(d, first[markSize:], markSize); err != nil {
		return err
	}
	return write(d, first[:markSize], 0)
}

func write(d Disk, b []byte, off int64) error {
	if _, err := d.WriteAt(b, off); err != nil {
		return err
	}
	return d.Sync()
}

// setIdentity puts id into the superblock of the partition's first block. The checksums of the other blocks don't
// depend on the UUID: the file system has the feature metadata_csum_seed.
func setIdentity(first []byte, id Identity) {
	u, h := id.UUID, id.HashSeed
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80 // a random UUID (RFC 9562, section 5.4)
	copy(first[uuidAt:], u[:])
	copy(first[hashSeedAt:], h[:])
	// ext4's CRC32C is seeded with all ones and not inverted at the end.
	sum := ^crc32.Checksum(first[superblock:checksumAt], crc32.MakeTable(crc32.Castagnoli))
	binary.LittleEndian.PutUint32(first[checksumAt:], sum)
}

// unpack reads the template's blocks, by number.
func unpack(packed []byte) (map[uint32][]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("the template of /perm: %w", err)
	}
	blocks := map[uint32][]byte{}
	for {
		record := make([]byte, 4+blockSize)
		if _, err := io.ReadFull(z, record); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("the template of /perm: %w", err)
		}
		blocks[binary.LittleEndian.Uint32(record)] = record[4:]
	}
	if blocks[0] == nil {
		return nil, errors.New("the template of /perm has no superblock")
	}
	return blocks, nil
}
