// Package flash writes a host's image to a USB stick or disk and reads it back.
//
// Used by image (main). Imports appliance/perm, whose Grow makes the partition table reach the disk's end. [System.Probe]
// refuses disks that are in use, [Write] writes to whatever [Medium] it gets, and [Open] is the one for a real disk.
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

// Piece is the unit of reading and writing, in bytes.
const Piece = 4 << 20

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

// Write copies the image, of size bytes, to m, which has room for room bytes, extends its table, and reads it all back.
func Write(ctx context.Context, m Medium, room int64, image io.ReaderAt, size int64, progress Progress) error {
	if size < Piece || size%4096 != 0 {
		return fmt.Errorf("the image has %d bytes: that is no image of a host", size)
	}
	first := make([]byte, Piece)
	if _, err := image.ReadAt(first, 0); err != nil {
		return fmt.Errorf("reading the image: %w", err)
	}
	end := make([]byte, perm.BackupSize)
	if room == size {
		if _, err := image.ReadAt(end, size-perm.BackupSize); err != nil {
			return fmt.Errorf("reading the image: %w", err)
		}
	}
	table, err := perm.Grow(first[:perm.TableSize], end, room)
	if err != nil {
		return fmt.Errorf("the image is none of a host: %w", err)
	}
	tail := max(size, (room-perm.BackupSize)&^4095)
	w := writer{m: m, table: table.Writes, progress: progress, total: 2 * (size + room - tail)}
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

type writer struct {
	m           Medium
	table       []perm.Write
	pieces      []piece
	progress    Progress
	done, total int64
}

// write puts b at the byte at, with what the table changes of it.
func (w *writer) write(b []byte, at int64) error {
	for _, c := range w.table {
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
