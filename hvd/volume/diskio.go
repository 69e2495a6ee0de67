package volume

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// SectorSize is the unit of a virtual disk, in bytes, whatever the volume's
// blocks are.
const SectorSize = 512

// ErrBounds says that sectors outside of a virtual disk were asked for.
var ErrBounds = errors.New("outside of the virtual disk")

// DiskIO reads and writes one virtual disk, in sectors of 512 bytes. Its methods
// may be called concurrently.
//
// On a volume with blocks of 4096 bytes, a write that doesn't cover whole blocks
// reads the rest of its first and last block and writes them back. That is safe
// within one DiskIO: such a write excludes all other writes of the disk while
// it runs, aligned ones go side by side. It is safe between hosts because one
// host writes a virtual disk at a time. It is slow, so a device should tell the
// guest to use blocks of BlockSize bytes.
type DiskIO struct {
	b         Blocks
	e         Extent
	blockSize int
	mu        sync.RWMutex // writers: shared when aligned, exclusive when not
}

// NewDiskIO gives access to an extent of the volume.
func NewDiskIO(b Blocks, e Extent) (*DiskIO, error) {
	blocks, bs := b.Capacity()
	if e.Blocks == 0 || e.FirstLBA >= blocks || e.Blocks > blocks-e.FirstLBA {
		return nil, fmt.Errorf("virtual disk at blocks %d to %d leaves the volume, which has %d", e.FirstLBA, e.FirstLBA+e.Blocks, blocks)
	}
	if bs < SectorSize || bs%SectorSize != 0 {
		return nil, fmt.Errorf("volume has blocks of %d bytes; expected a multiple of %d", bs, SectorSize)
	}
	return &DiskIO{b: b, e: e, blockSize: bs}, nil
}

// Sectors is the size of the disk.
func (d *DiskIO) Sectors() uint64 { return d.e.Blocks * uint64(d.blockSize/SectorSize) }

// BlockSize is the volume's block size in bytes: what the guest should use.
func (d *DiskIO) BlockSize() int { return d.blockSize }

// span is a range of sectors in blocks of the volume.
type span struct {
	lba     uint64
	blocks  uint64
	skip    int // bytes before the range in its first block
	aligned bool
}

func (d *DiskIO) span(sector uint64, n int) (s span, err error) {
	k := uint64(n / SectorSize)
	if n == 0 || n%SectorSize != 0 {
		return s, fmt.Errorf("%d bytes are not whole sectors of %d", n, SectorSize)
	}
	if sector >= d.Sectors() || k > d.Sectors()-sector {
		return s, fmt.Errorf("sectors %d to %d: %w, which has %d", sector, sector+k, ErrBounds, d.Sectors())
	}
	per := uint64(d.blockSize / SectorSize)
	first, end := sector/per, (sector+k+per-1)/per
	return span{
		lba: d.e.FirstLBA + first, blocks: end - first, skip: int(sector%per) * SectorSize,
		aligned: sector%per == 0 && k%per == 0,
	}, nil
}

// Read fills p, whole sectors of it, from sector on.
func (d *DiskIO) Read(ctx context.Context, sector uint64, p []byte) error {
	s, err := d.span(sector, len(p))
	if err != nil {
		return err
	}
	if s.aligned {
		return d.b.Read(ctx, s.lba, p)
	}
	whole := make([]byte, s.blocks*uint64(d.blockSize))
	if err := d.b.Read(ctx, s.lba, whole); err != nil {
		return err
	}
	copy(p, whole[s.skip:])
	return nil
}

// Write stores p, whole sectors of it, from sector on. Sync makes it last.
func (d *DiskIO) Write(ctx context.Context, sector uint64, p []byte) error {
	s, err := d.span(sector, len(p))
	if err != nil {
		return err
	}
	if s.aligned {
		d.mu.RLock()
		defer d.mu.RUnlock()
		return d.b.Write(ctx, s.lba, p)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	bs := d.blockSize
	whole := make([]byte, s.blocks*uint64(bs))
	last := len(whole) - bs
	if err := d.b.Read(ctx, s.lba, whole[:bs]); err != nil {
		return err
	}
	if last > 0 {
		if err := d.b.Read(ctx, s.lba+s.blocks-1, whole[last:]); err != nil {
			return err
		}
	}
	copy(whole[s.skip:], p)
	return d.b.Write(ctx, s.lba, whole)
}

// zeroer is a volume that fills blocks with zeros by itself.
type zeroer interface {
	Zero(ctx context.Context, lba, n uint64) error
}

// zero is Write of zeros, which needn't go over the network where the volume can make them.
func (d *DiskIO) zero(ctx context.Context, sector uint64, zeros []byte) error {
	s, err := d.span(sector, len(zeros))
	if err != nil {
		return err
	}
	z, ok := d.b.(zeroer)
	if !ok || !s.aligned {
		return d.Write(ctx, sector, zeros)
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	return z.Zero(ctx, s.lba, s.blocks)
}

// Sync makes all writes before it last.
func (d *DiskIO) Sync(ctx context.Context) error { return d.b.Sync(ctx) }
