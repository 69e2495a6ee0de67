package flash

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Device is a disk, or a file in its place, opened for [Write].
type Device struct {
	file *os.File
	// direct reads around the kernel's cache; nil where the file system can't.
	direct *os.File
	// aligned is memory that starts at a page, as direct reads want it.
	aligned []byte
}

// Open opens the disk at path for itself alone.
func Open(path string) (*Device, error) {
	// O_EXCL on a block device (open(2)): fails while it is mounted or otherwise in use. O_DSYNC: progress is the
	// stick's, not the memory's.
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL|unix.O_DSYNC, 0)
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("%s is in use", path)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("%w: run this as root (sudo)", err)
	case err != nil:
		return nil, err
	}
	d := &Device{file: f}
	if d.aligned, err = unix.Mmap(-1, 0, Piece, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if d.direct, err = os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// WriteAt implements [Medium].
func (d *Device) WriteAt(b []byte, at int64) (int, error) { return d.file.WriteAt(b, at) }

// Flush waits until all is on the medium, and forgets what is in memory of it.
func (d *Device) Flush() error {
	if err := d.file.Sync(); err != nil {
		return err
	}
	return unix.Fadvise(int(d.file.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// ReadAt implements [Medium]: at most [Piece] bytes.
func (d *Device) ReadAt(b []byte, at int64) (int, error) {
	if d.direct == nil {
		return d.file.ReadAt(b, at)
	}
	if len(b) > len(d.aligned) {
		return 0, fmt.Errorf("a read of %d bytes, at most %d", len(b), len(d.aligned))
	}
	n, err := d.direct.ReadAt(d.aligned[:len(b)], at)
	return copy(b, d.aligned[:n]), err
}

// Close closes the disk. udev then has the kernel read the new partition table, where there is one.
func (d *Device) Close() error {
	errs := []error{d.file.Close(), unix.Munmap(d.aligned)}
	if d.direct != nil {
		errs = append(errs, d.direct.Close())
	}
	return errors.Join(errs...)
}
