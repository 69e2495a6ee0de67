package volume

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/duet-ft/duet/hvd/iscsi"
)

// Blocks is a volume of blocks that several hosts share. *iscsi.Session is one,
// and defines what the methods mean.
type Blocks interface {
	Read(ctx context.Context, lba uint64, p []byte) error
	Write(ctx context.Context, lba uint64, p []byte) error
	Sync(ctx context.Context) error
	CompareAndWrite(ctx context.Context, lba uint64, old, new []byte) (swapped bool, err error)
	Capacity() (blocks uint64, blockSize int)
}

var _ Blocks = (*iscsi.Session)(nil)

var (
	// ErrNotDuet says that the volume isn't formatted for Duet.
	ErrNotDuet = errors.New("volume is not formatted for Duet")
	// ErrFormatted says that the volume is formatted for Duet already.
	ErrFormatted = errors.New("volume is formatted for Duet already")
	// ErrForeign says that the volume holds somebody's data.
	ErrForeign = errors.New("it is never overwritten. Use an empty volume, or fill this one with zeros on the storage system (blkdiscard -z, or dd if=/dev/zero)")
	// ErrDamaged says that a checksum on the volume is wrong.
	ErrDamaged = errors.New("damaged")
	// ErrExists says that there is a VM with that name (or slot, MAC, CID, UUID).
	ErrExists = errors.New("is taken")
	// ErrNotFound says that there is no such VM or disk.
	ErrNotFound = errors.New("not found")
	// ErrNotReady says that a disk can't be used (yet).
	ErrNotReady = errors.New("isn't ready")
	// ErrImage says that a disk image can't be used.
	ErrImage = errors.New("disk image")
	// ErrFull says that the volume has no room for a disk or a VM.
	ErrFull = errors.New("volume is full")
	// ErrInvalid says that a definition can't be used.
	ErrInvalid = errors.New("invalid VM definition")
	// ErrBusy says that another host is changing the definitions.
	ErrBusy = errors.New("VM definitions are being changed by another host")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// recordLen is the length of the checksummed records of the layout: they fit a
// block of any size, so that a write of one can't be torn.
const recordLen = 512

// seal puts a record's checksum into its last four bytes.
func seal(b []byte) {
	binary.LittleEndian.PutUint32(b[recordLen-4:], crc32.Checksum(b[:recordLen-4], castagnoli))
}

// sealed checks magic and checksum of a record.
func sealed(b []byte, magic string) bool {
	return len(b) >= recordLen && string(b[:len(magic)]) == magic &&
		binary.LittleEndian.Uint32(b[recordLen-4:]) == crc32.Checksum(b[:recordLen-4], castagnoli)
}

// readBytes reads n bytes from a byte offset on, both multiples of the block
// size.
func readBytes(ctx context.Context, b Blocks, at, n uint64) ([]byte, error) {
	_, bs := b.Capacity()
	p := make([]byte, n)
	return p, b.Read(ctx, at/uint64(bs), p)
}

// roundUp rounds n up to a multiple of unit.
func roundUp(n, unit uint64) uint64 { return (n + unit - 1) / unit * unit }

func isZero(p []byte) bool {
	for len(p) >= 8 {
		if binary.LittleEndian.Uint64(p) != 0 {
			return false
		}
		p = p[8:]
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// size is a number of bytes for people.
func size(n uint64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d bytes", n)
}
