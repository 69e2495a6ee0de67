// Package flash writes a host's image to a USB stick or disk and reads it back.
//
// Used by image (main). Imports appliance/perm, whose Grow makes the partition table reach the disk's end. [System.Probe]
// refuses disks that are in use, [Write] writes to whatever [Medium] it gets, and [Open] is the one for a real disk.
//
// Each disk gets a number of its own in its table and in the kernel's command line, so that two in one computer don't clash.
//
// Everything is written, zeroes too: the host's first boot makes /perm only where nothing is. The partition table comes
// last, so that a stick that was pulled half-way doesn't boot.
package flash

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/duet-ft/duet/appliance/perm"
)

const (
	// Piece is the unit of reading and writing, in bytes.
	Piece = 4 << 20
	// bootPartition is the number of the EFI system partition, from 1.
	bootPartition = 1
)

// Medium is what is written to. Reads after Flush come from the medium itself and not from a cache; they start and end at
// multiples of 4,096 bytes, or end at the medium's end.
type Medium interface {
	io.WriterAt
	io.ReaderAt
	Flush() error
}

// Progress is told how many bytes of how many are done, writing and reading back counted.
type Progress func(done, total int64)

// piece is a part of the image that was written.
type piece struct {
	at  int64
	len int
	sum [sha256.Size]byte
}

// Image is what is written.
type Image struct {
	io.ReaderAt
	// Size is in bytes.
	Size int64
	// Disk is the number that the disk gets, so that the kernel can tell it from others with the same image: a random one.
	Disk uint32
}

// Write copies the image to m, which has room for room bytes, makes its table and its command line those of this disk, and
// reads it all back.
func Write(ctx context.Context, m Medium, room int64, image Image, progress Progress) error {
	size := image.Size
	if size < Piece || size%4096 != 0 {
		return fmt.Errorf("the image has %d bytes: that is no image of a host", size)
	}
	first := make([]byte, Piece)
	if _, err := image.ReadAt(first, 0); err != nil {
		return fmt.Errorf("reading the image: %w", err)
	}
	changes, err := image.personal(first)
	if err != nil {
		return fmt.Errorf("the image is none of a host: %w", err)
	}
	// The copy of the table at the image's own end is left out, and made anew.
	table, err := perm.Grow(first[:perm.TableSize], make([]byte, perm.BackupSize), room)
	if err != nil {
		return fmt.Errorf("the image is none of a host: %w", err)
	}
	changes = append(changes, table.Writes...)
	tail := max(size, (room-perm.BackupSize)&^4095)
	w := writer{m: m, changes: changes, progress: progress, total: 2 * (size + room - tail)}
	buf := make([]byte, Piece)
	for at := int64(Piece); at < size; at += Piece {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("stopped: the stick is not usable: %w", err)
		}
		b := buf[:min(Piece, size-at)]
		if _, err := image.ReadAt(b, at); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("reading the image: %w", err)
		}
		if err := w.write(b, at); err != nil {
			return err
		}
	}
	if tail < room {
		if err := w.write(make([]byte, room-tail), tail); err != nil {
			return err
		}
	}
	if err := w.write(first, 0); err != nil {
		return err
	}
	if err := m.Flush(); err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	return w.verify(ctx)
}

// personal gives the disk its number in the image's first bytes, and finds where the boot loader's entries name the disk.
func (i Image) personal(first []byte) ([]perm.Write, error) {
	before, after, err := perm.Identify(first[:perm.TableSize], i.Disk)
	if err != nil {
		return nil, err
	}
	at, size, err := perm.Partition(first[:perm.TableSize], bootPartition)
	if err != nil {
		return nil, err
	}
	var changes []perm.Write
	buf := make([]byte, Piece+len(before)-1) // what lies across two pieces is found, too
	for end := min(at+size, i.Size); at < end; at += Piece {
		n, err := i.ReadAt(buf[:min(int64(len(buf)), end-at)], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		for from := 0; ; from += len(before) {
			found := bytes.Index(buf[from:n], []byte(before))
			if found < 0 {
				break
			}
			from += found
			changes = append(changes, perm.Write{Offset: at + int64(from), Data: []byte(after)})
		}
	}
	if len(changes) == 0 {
		return nil, errors.New("nothing on its boot partition names its disk")
	}
	return changes, nil
}

type writer struct {
	m           Medium
	changes     []perm.Write
	pieces      []piece
	progress    Progress
	done, total int64
}

// write puts b at the byte at, with what this disk has different.
func (w *writer) write(b []byte, at int64) error {
	for _, c := range w.changes {
		if from := c.Offset - at; from >= 0 && from < int64(len(b)) {
			copy(b[from:], c.Data)
		} else if from < 0 && -from < int64(len(c.Data)) {
			copy(b, c.Data[-from:])
		}
	}
	if _, err := w.m.WriteAt(b, at); err != nil {
		return fmt.Errorf("writing at byte %d: %w", at, err)
	}
	w.pieces = append(w.pieces, piece{at, len(b), sha256.Sum256(b)})
	w.advance(len(b))
	return nil
}

func (w *writer) advance(n int) {
	w.done += int64(n)
	if w.progress != nil {
		w.progress(w.done, w.total)
	}
}

// verify reads everything back.
func (w *writer) verify(ctx context.Context) error {
	for _, p := range w.pieces {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("stopped before all was read back: %w", err)
		}
		b := make([]byte, p.len)
		if _, err := w.m.ReadAt(b, p.at); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("reading back at byte %d: %w", p.at, err)
		}
		sum := sha256.Sum256(b)
		if !bytes.Equal(sum[:], p.sum[:]) {
			return fmt.Errorf("what was written between bytes %d and %d reads back differently: the stick is bad, or smaller than it says",
				p.at, p.at+int64(p.len))
		}
		w.advance(p.len)
	}
	return nil
}
