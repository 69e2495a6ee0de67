package volume

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"sync"

	"github.com/duet-ft/duet/hvd/iscsi"
)

// File is a volume in a file or block device, for building and inspecting one
// while no target serves it: its COMPARE AND WRITE is atomic in this process
// only.
type File struct {
	f         *os.File
	blocks    uint64
	blockSize int
	mu        sync.RWMutex
}

var _ Blocks = (*File)(nil)

// NewFile uses an open file, whose size must be whole blocks. The file stays
// the caller's to close.
func NewFile(f *os.File, blockSize int) (*File, error) {
	n, err := f.Seek(0, 2) // also for block devices
	if err != nil {
		return nil, err
	}
	if blockSize <= 0 || n == 0 || n%int64(blockSize) != 0 {
		return nil, fmt.Errorf("%s has %d bytes, which isn't a number of blocks of %d", f.Name(), n, blockSize)
	}
	return &File{f: f, blocks: uint64(n) / uint64(blockSize), blockSize: blockSize}, nil
}

// Capacity implements Blocks.
func (v *File) Capacity() (uint64, int) { return v.blocks, v.blockSize }

func (v *File) offset(lba uint64, n int) (int64, error) {
	k := uint64(n / v.blockSize)
	if n%v.blockSize != 0 || lba > v.blocks || k > v.blocks-lba {
		return 0, fmt.Errorf("blocks %d to %d: %w", lba, lba+k, iscsi.ErrRange)
	}
	return int64(lba) * int64(v.blockSize), nil
}

// Read implements Blocks.
func (v *File) Read(ctx context.Context, lba uint64, p []byte) error {
	at, err := v.offset(lba, len(p))
	if err != nil {
		return err
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	_, err = v.f.ReadAt(p, at)
	return err
}

// Write implements Blocks.
func (v *File) Write(ctx context.Context, lba uint64, p []byte) error {
	at, err := v.offset(lba, len(p))
	if err != nil {
		return err
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	_, err = v.f.WriteAt(p, at)
	return err
}

// Sync implements Blocks.
func (v *File) Sync(ctx context.Context) error { return v.f.Sync() }

// CompareAndWrite implements Blocks.
func (v *File) CompareAndWrite(ctx context.Context, lba uint64, old, new []byte) (bool, error) {
	at, err := v.offset(lba, len(old))
	if err != nil {
		return false, err
	}
	if len(old) != len(new) {
		return false, fmt.Errorf("COMPARE AND WRITE of %d and %d bytes", len(old), len(new))
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	now := make([]byte, len(old))
	if _, err := v.f.ReadAt(now, at); err != nil {
		return false, err
	}
	if !bytes.Equal(now, old) {
		return false, nil
	}
	_, err = v.f.WriteAt(new, at)
	return err == nil, err
}
