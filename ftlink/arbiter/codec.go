// Package arbiter keeps the block on the volume that decides who may run a VM:
// its layout, and how the role machine's reads and swaps are carried out.
//
// # Place
//
// The loop of one VM hands the pair.Arbiter outputs of its role machine to
// Executor.Do, in a goroutine of its own since a volume may take seconds, and
// the answer back as an input. Blocks is what a volume has to offer; hvd/iscsi
// and hvd/sim do. It imports ftlink/pair.
//
// # Layout, version 1
//
// One logical block of the volume, at least 512 bytes; integers big endian.
// COMPARE AND WRITE compares all of it, so a block has exactly one encoding.
//
//	0    8    magic "DUETARB\x00"
//	8    u16  version, 1
//	10   u8   kind: 1 FREE, 2 SOLO, 3 PAIR
//	11   5    zero
//	16   16   VM
//	32   u64  epoch, from 1
//	40   u64  owner            FREE: zero
//	48   u64  secondary        only PAIR, else zero
//	56   u64  seed incarnation only PAIR, else zero
//	64   u64  seed counter     only PAIR, else zero
//	72   u64  nonce incarnation
//	80   u64  nonce counter
//	88   420  zero
//	508  u32  CRC32C of bytes 0 to 507
//	512       zero to the end of the block
package arbiter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/duet-ft/duet/ftlink/pair"
)

// MinSize is the size of the smallest block that holds the layout.
const MinSize = 512

// Version is the version of the layout.
const Version = 1

const (
	magic   = "DUETARB\x00"
	crcAt   = 508
	usedEnd = 88
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrBlank says that a block is all zeros: no VM's arbiter block was ever
// written there, or it was overwritten. A VM's is there before its definition.
var ErrBlank = errors.New("arbiter block is blank")

// ErrCorrupt says that bytes are no arbiter block. Such a block is never
// overwritten.
var ErrCorrupt = errors.New("not a valid arbiter block")

// Encode returns b in a block of size bytes (at least MinSize).
func Encode(b pair.Block, size int) []byte {
	p := make([]byte, max(size, MinSize))
	copy(p, magic)
	be := binary.BigEndian
	be.PutUint16(p[8:], Version)
	p[10] = byte(b.Kind)
	copy(p[16:], b.VM[:])
	for i, v := range []uint64{
		b.Epoch, uint64(b.Owner), uint64(b.Secondary),
		b.Seed.Incarnation, b.Seed.N, b.Nonce.Incarnation, b.Nonce.N,
	} {
		be.PutUint64(p[32+8*i:], v)
	}
	be.PutUint32(p[crcAt:], crc32.Checksum(p[:crcAt], castagnoli))
	return p
}

// Decode reads a block. The error wraps ErrBlank or ErrCorrupt.
func Decode(p []byte) (pair.Block, error) {
	if len(p) < MinSize {
		return pair.Block{}, fmt.Errorf("%w: %d bytes, want at least %d", ErrCorrupt, len(p), MinSize)
	}
	be := binary.BigEndian
	switch {
	case zero(p):
		return pair.Block{}, ErrBlank
	case string(p[:8]) != magic:
		return pair.Block{}, fmt.Errorf("%w: foreign data (magic % x)", ErrCorrupt, p[:8])
	case be.Uint32(p[crcAt:]) != crc32.Checksum(p[:crcAt], castagnoli):
		return pair.Block{}, fmt.Errorf("%w: checksum mismatch", ErrCorrupt)
	case be.Uint16(p[8:]) != Version:
		return pair.Block{}, fmt.Errorf("%w: version %d, this image knows %d", ErrCorrupt, be.Uint16(p[8:]), Version)
	case !zero(p[11:16]) || !zero(p[usedEnd:crcAt]) || !zero(p[MinSize:]):
		return pair.Block{}, fmt.Errorf("%w: reserved bytes are not zero", ErrCorrupt)
	}
	v := func(i int) uint64 { return be.Uint64(p[32+8*i:]) }
	b := pair.Block{
		Kind: pair.BlockKind(p[10]), Epoch: v(0), Owner: pair.HostID(v(1)), Secondary: pair.HostID(v(2)),
		Seed: pair.Seed{Incarnation: v(3), N: v(4)}, Nonce: pair.Nonce{Incarnation: v(5), N: v(6)},
	}
	copy(b.VM[:], p[16:])
	if !sound(b) {
		return pair.Block{}, fmt.Errorf("%w: contradictory fields: %v", ErrCorrupt, b)
	}
	return b, nil
}

// sound says that the fields fit the kind.
func sound(b pair.Block) bool {
	noSecondary := b.Secondary == 0 && b.Seed == (pair.Seed{})
	switch b.Kind {
	case pair.Free:
		return b.Epoch > 0 && b.Owner == 0 && noSecondary
	case pair.Solo:
		return b.Epoch > 0 && b.Owner != 0 && noSecondary
	case pair.Pair:
		return b.Epoch > 0 && b.Owner != 0 && b.Secondary != 0 && b.Owner != b.Secondary && b.Seed != (pair.Seed{})
	}
	return false
}

func zero(p []byte) bool {
	for _, c := range p {
		if c != 0 {
			return false
		}
	}
	return true
}
