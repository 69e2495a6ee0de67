// Package ext4 reads files from an ext2, ext3 or ext4 file system that somebody
// else wrote. It never writes, and trusts nothing that it reads.
//
// # Place
//
// hvd/boot finds the guest's kernel and initrd with it. It imports nothing of
// ours.
//
// # Layout
//
// After the kernel's Documentation/filesystems/ext4. All numbers are
// little-endian; a block is 1 to 64 KiB.
//
//	1024          superblock, 1 KiB
//	next block    group descriptors, 32 or 64 bytes each (moved by meta_bg)
//	per group     bitmaps, and a table of inodes of 128 bytes or more
//	inode         mode, size, flags, and 60 bytes: an extent tree, 15 block
//	              numbers (12 direct, then 1 to 3 levels), or a short symlink
//	directory     entries {inode 4, length 2, name length 1, type 1, name};
//	              an htree's index blocks read as entries without an inode
//
// # What it leaves out
//
// The journal isn't replayed. A file that was written just before a crash may
// be missing or old; a kernel that was installed and synced is there, and what
// is torn fails a checksum or a bound. Inline data, encryption, compression and
// external journals are refused.
package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Limits on what a file system may ask of the reader.
const (
	maxDir      = 16 << 20 // bytes of one directory
	maxEntries  = 1 << 17  // entries of one directory
	maxRuns     = 1 << 16  // extents of one file
	maxNodes    = 1 << 12  // blocks of one extent tree or block map
	maxDepth    = 5        // levels of an extent tree, as in the kernel
	maxSymlinks = 16       // links followed in one path
	maxSteps    = 256      // names looked up for one path, links included
	maxGroups   = 1 << 24  // block groups: 2 PiB with blocks of 4 KiB
	maxTarget   = 4095     // bytes of a symlink's target, PATH_MAX - 1
)

var (
	// ErrNone says that there is no ext file system: the magic number is
	// missing.
	ErrNone = errors.New("no ext4 file system")
	// ErrDamaged says that the file system contradicts itself.
	ErrDamaged = errors.New("damaged ext4 file system: run e2fsck on it")
	// ErrUnsupported says that the file system needs a feature that this
	// package leaves out.
	ErrUnsupported = errors.New("unsupported ext4 feature")
	// ErrNotExist says that a path names nothing.
	ErrNotExist = errors.New("no such file")
	// ErrTooLarge says that a file is larger than the caller allows.
	ErrTooLarge = errors.New("file too large")
)

// Incompatible features, s_feature_incompat.
const (
	incompatRecover  = 0x4
	incompatMetaBG   = 0x10
	incompat64Bit    = 0x80
	incompatCsumSeed = 0x2000
	// filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode,
	// csum_seed, largedir; inline data, encryption and case folding are refused
	// where a file uses them.
	incompatKnown = 0x2 | incompatRecover | incompatMetaBG | 0x40 | incompat64Bit | 0x100 | 0x200 |
		0x400 | incompatCsumSeed | 0x4000 | 0x8000 | 0x10000 | 0x20000
)

const (
	magic          = 0xef53
	roMetadataCsum = 0x400
	rootInode      = 2
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// FS is an opened file system. It keeps no state between calls.
type FS struct {
	r    io.ReaderAt
	size int64 // bytes of r

	block          int64 // bytes
	blocks         uint64
	first          uint64 // first data block: 1 when blocks have 1 KiB
	inodes         uint32
	inodesPerGroup uint32
	blocksPerGroup uint32
	inodeSize      int64
	descSize       int64
	firstMetaBG    uint32
	incompat       uint32
	csum           bool
	seed           uint32 // of metadata checksums
	uuid           [16]byte
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w (%s)", ErrDamaged, fmt.Sprintf(format, args...))
}

// crc is the kernel's crc32c: no inversion before or after.
func crc(seed uint32, b []byte) uint32 { return ^crc32.Update(^seed, castagnoli, b) }

// Open reads the superblock of the file system that fills the first size bytes
// of r.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	var sb [1024]byte
	if size < 2*int64(len(sb)) {
		return nil, ErrNone
	}
	if _, err := r.ReadAt(sb[:], 1024); err != nil && err != io.EOF {
		return nil, fmt.Errorf("read the superblock: %w", err)
	}
	if le.Uint16(sb[0x38:]) != magic {
		return nil, ErrNone
	}
	f := &FS{
		r: r, size: size,
		blocks: uint64(le.Uint32(sb[0x4:])), inodes: le.Uint32(sb[0x0:]),
		first:          uint64(le.Uint32(sb[0x14:])),
		blocksPerGroup: le.Uint32(sb[0x20:]), inodesPerGroup: le.Uint32(sb[0x28:]),
		inodeSize: 128, descSize: 32, uuid: [16]byte(sb[0x68:]),
	}
	if le.Uint32(sb[0x4c:]) > 0 { // revision 1: dynamic sizes and features
		f.inodeSize = int64(le.Uint16(sb[0x58:]))
		f.incompat = le.Uint32(sb[0x60:])
		f.csum = le.Uint32(sb[0x64:])&roMetadataCsum != 0
	}
	if f.csum && crc(^uint32(0), sb[:0x3fc]) != le.Uint32(sb[0x3fc:]) {
		return nil, damaged("superblock checksum")
	}
	if bad := f.incompat &^ incompatKnown; bad != 0 {
		return nil, fmt.Errorf("%w: incompatible feature bits %#x", ErrUnsupported, bad)
	}
	if f.incompat&incompat64Bit != 0 {
		f.blocks |= uint64(le.Uint32(sb[0x150:])) << 32
		f.descSize = int64(le.Uint16(sb[0xfe:]))
	}
	if f.incompat&incompatMetaBG != 0 {
		f.firstMetaBG = le.Uint32(sb[0x104:])
	}
	f.seed = crc(^uint32(0), f.uuid[:])
	if f.incompat&incompatCsumSeed != 0 {
		f.seed = le.Uint32(sb[0x270:])
	}
	return f, f.check(le.Uint32(sb[0x18:]))
}

// check bounds the superblock's numbers; logBlock is s_log_block_size.
func (f *FS) check(logBlock uint32) error {
	if logBlock > 6 {
		return damaged("block size 2^%d KiB", logBlock)
	}
	f.block = 1024 << logBlock
	switch {
	case f.blocks == 0 || f.blocks > uint64(f.size/f.block):
		return damaged("%d blocks of %d bytes on %d bytes of disk", f.blocks, f.block, f.size)
	case f.first >= f.blocks || f.first > 1:
		return damaged("first data block %d", f.first)
	case f.inodeSize < 128 || f.inodeSize > f.block || f.inodeSize&(f.inodeSize-1) != 0:
		return damaged("inodes of %d bytes", f.inodeSize)
	case f.descSize < 32 || f.descSize > f.block || f.descSize&(f.descSize-1) != 0:
		return damaged("group descriptors of %d bytes", f.descSize)
	case f.inodesPerGroup == 0 || f.blocksPerGroup == 0:
		return damaged("groups of %d inodes and %d blocks", f.inodesPerGroup, f.blocksPerGroup)
	case f.blocks/uint64(f.blocksPerGroup) > maxGroups:
		return damaged("too many groups")
	}
	return nil
}

// UUID is the file system's identity in the usual form, as root=UUID= takes it.
func (f *FS) UUID() string {
	u := f.uuid
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// NeedsRecovery says that the journal holds changes which this reader doesn't
// see: the guest wasn't shut down cleanly.
func (f *FS) NeedsRecovery() bool { return f.incompat&incompatRecover != 0 }

// readBlocks fills p from physical block n on.
func (f *FS) readBlocks(p []byte, n uint64) error {
	count := (uint64(len(p)) + uint64(f.block) - 1) / uint64(f.block)
	if n < f.first || n >= f.blocks || count > f.blocks-n {
		return damaged("block %d of %d", n, f.blocks)
	}
	if _, err := f.r.ReadAt(p, int64(n)*f.block); err != nil {
		return fmt.Errorf("read block %d: %w", n, err)
	}
	return nil
}
