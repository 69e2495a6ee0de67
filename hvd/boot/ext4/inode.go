package ext4

import (
	"fmt"
)

// File types, the upper bits of i_mode.
const (
	modeType    = 0xf000
	modeDir     = 0x4000
	modeRegular = 0x8000
	modeSymlink = 0xa000
)

// Inode flags, i_flags.
const (
	flagCompressed = 0x4
	flagEncrypted  = 0x800
	flagExtents    = 0x80000
	flagInline     = 0x10000000
)

// inode is what the reader needs of one.
type inode struct {
	number uint32
	mode   uint16
	flags  uint32
	size   uint64 // bytes
	data   [60]byte
}

func (i *inode) is(kind uint16) bool { return i.mode&modeType == kind }

// inodeTable finds the first block of a group's inode table by its descriptor.
func (f *FS) inodeTable(group uint32) (uint64, error) {
	perBlock := uint32(f.block / f.descSize)
	super := uint64(1024 / f.block) // its block: 1 when blocks have 1 KiB
	block := super + 1 + uint64(group/perBlock)
	if f.incompat&incompatMetaBG != 0 && group/perBlock >= f.firstMetaBG {
		// The descriptors of a meta group are in its first group, after the
		// superblock's copy where there is one.
		g := group / perBlock * perBlock
		block = f.first + uint64(g)*uint64(f.blocksPerGroup)
		if hasSuper(g) {
			block++
		}
		if g == 0 && f.first == 0 {
			block += super // block 0 belongs to no group, except with bigalloc
		}
	}
	b := make([]byte, f.block)
	if err := f.readBlocks(b, block); err != nil {
		return 0, err
	}
	d := b[int64(group%perBlock)*f.descSize:]
	table := uint64(le.Uint32(d[0x8:]))
	if f.descSize >= 64 {
		table |= uint64(le.Uint32(d[0x28:])) << 32
	}
	return table, nil
}

// hasSuper tells whether a group starts with a copy of the superblock: 0, 1 and
// the powers of 3, 5 and 7.
func hasSuper(group uint32) bool {
	if group < 2 {
		return true
	}
	for _, base := range []uint64{3, 5, 7} {
		p := base
		for p < uint64(group) {
			p *= base
		}
		if p == uint64(group) {
			return true
		}
	}
	return false
}

func (f *FS) readInode(number uint32) (*inode, error) {
	if number == 0 || number > f.inodes {
		return nil, damaged("inode %d of %d", number, f.inodes)
	}
	group, index := (number-1)/f.inodesPerGroup, int64((number-1)%f.inodesPerGroup)
	table, err := f.inodeTable(group)
	if err != nil {
		return nil, err
	}
	block := make([]byte, f.block)
	at := index * f.inodeSize
	if err := f.readBlocks(block, table+uint64(at/f.block)); err != nil {
		return nil, err
	}
	b := block[at%f.block:][:f.inodeSize]
	if err := f.checkInode(number, b); err != nil {
		return nil, err
	}
	i := &inode{
		number: number, mode: le.Uint16(b), flags: le.Uint32(b[0x20:]),
		size: uint64(le.Uint32(b[0x4:])), data: [60]byte(b[0x28:]),
	}
	if i.is(modeRegular) || i.is(modeDir) {
		i.size |= uint64(le.Uint32(b[0x6c:])) << 32
	}
	switch {
	case le.Uint16(b[0x1a:]) == 0 && number != rootInode:
		return nil, damaged("inode %d is in a directory, and free", number)
	case i.flags&(flagCompressed|flagEncrypted) != 0:
		return nil, fmt.Errorf("%w: inode %d is compressed or encrypted", ErrUnsupported, number)
	case i.flags&flagInline != 0:
		return nil, fmt.Errorf("%w: inode %d has inline data", ErrUnsupported, number)
	}
	return i, nil
}

// checkInode verifies an inode's crc32c, whose own two halves count as zero.
func (f *FS) checkInode(number uint32, b []byte) error {
	if !f.csum {
		return nil
	}
	c := append([]byte(nil), b...)
	want, mask := uint32(le.Uint16(b[0x7c:])), uint32(0xffff)
	le.PutUint16(c[0x7c:], 0)
	if len(b) > 128 && le.Uint16(b[0x80:]) >= 4 {
		want |= uint32(le.Uint16(b[0x82:])) << 16
		mask = 0xffffffff
		le.PutUint16(c[0x82:], 0)
	}
	seed := crc(f.seed, le.AppendUint32(nil, number))
	seed = crc(seed, b[0x64:0x68]) // i_generation
	if crc(seed, c)&mask != want {
		return damaged("checksum of inode %d", number)
	}
	return nil
}

// read returns the contents of an inode of at most limit bytes.
func (f *FS) read(i *inode, limit int64) ([]byte, error) {
	if i.size > uint64(limit) {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, i.size, limit)
	}
	if i.size > f.blocks*uint64(f.block) {
		return nil, damaged("inode %d has %d bytes", i.number, i.size)
	}
	runs, err := f.runs(i)
	if err != nil {
		return nil, err
	}
	b := make([]byte, i.size)
	for _, r := range runs {
		start := r.logical * uint64(f.block)
		if start >= i.size {
			continue // preallocated beyond the end
		}
		end := min(start+r.count*uint64(f.block), i.size)
		if err := f.readBlocks(b[start:end], r.physical); err != nil {
			return nil, err
		}
	}
	return b, nil
}
