package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A machine with a disk has it exercised as well, around the page cache. Each
// worker has an area of its own, in which it finds what it wrote last, and all of
// them read and write in one that they share, across each other.
const (
	diskName   = "/dev/vda"
	workers    = 4
	sector     = 512
	ownSectors = 64
	ownLen     = 8 << 10
	shareAt    = workers * ownSectors
	shareLen   = 512 // sectors
	maxSectors = 32  // of one request in it
	tellEach   = 50
)

// exerciseDisk reads and writes the disk for ever, and says now and then how
// often it did. It returns at once if there is none.
func exerciseDisk() error {
	fd, err := unix.Open(diskName, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", diskName, err)
	}
	var done atomic.Uint64
	for w := range workers {
		buf, err := unix.Mmap(-1, 0, maxSectors*sector, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return err
		}
		go func() {
			for n := uint64(1); ; n++ {
				if err := errors.Join(own(fd, w, n, buf[:ownLen]), shared(fd, buf)); err != nil {
					fail(err)
				}
				if k := done.Add(1); k%tellEach == 0 {
					fmt.Println("disk", k)
				}
			}
		}()
	}
	return nil
}

// own writes number n into worker w's area and reads it back, once right then
// and once more behind other work.
func own(fd, w int, n uint64, buf []byte) error {
	at := int64(w) * ownSectors * sector
	if n > 1 {
		if err := find(fd, at, n-1, buf); err != nil {
			return err
		}
	}
	for i := 0; i < len(buf); i += 8 {
		binary.LittleEndian.PutUint64(buf[i:], n)
	}
	if _, err := unix.Pwrite(fd, buf, at); err != nil {
		return fmt.Errorf("write %s: %w", diskName, err)
	}
	return find(fd, at, n, buf)
}

// find wants number n where worker wrote it.
func find(fd int, at int64, n uint64, buf []byte) error {
	clear(buf)
	if _, err := unix.Pread(fd, buf, at); err != nil {
		return fmt.Errorf("read %s: %w", diskName, err)
	}
	for i := 0; i < len(buf); i += 8 {
		if got := binary.LittleEndian.Uint64(buf[i:]); got != n {
			return fmt.Errorf("%s at %d has write %d, the last was %d", diskName, at+int64(i), got, n)
		}
	}
	return nil
}

// shared reads or writes some sectors in the area of all workers.
func shared(fd int, buf []byte) error {
	n := 1 + rand.IntN(maxSectors)
	at := int64(shareAt+rand.IntN(shareLen-n)) * sector
	buf = buf[:n*sector]
	if rand.IntN(3) > 0 {
		if _, err := unix.Pread(fd, buf, at); err != nil {
			return fmt.Errorf("read %s: %w", diskName, err)
		}
		return nil
	}
	binary.LittleEndian.PutUint64(buf, rand.Uint64())
	if _, err := unix.Pwrite(fd, buf, at); err != nil {
		return fmt.Errorf("write %s: %w", diskName, err)
	}
	return nil
}
