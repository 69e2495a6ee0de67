// Package sparse copies disk images, which are mostly zeros, and leaves holes
// where nothing but zeros is.
//
// image/disk and image/guest use it. It imports nothing of ours.
package sparse

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// piece is the unit that is looked at, in bytes.
const piece = 64 << 10

// Copy makes to a copy of the file from, with the given permissions. On an
// error there is no file to.
func Copy(to, from string, perm os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	if err := errors.Join(transfer(out, in, info.Size()), out.Close()); err != nil {
		os.Remove(to)
		return fmt.Errorf("copy the image %s: %w", from, err)
	}
	return nil
}

// transfer copies size bytes piece by piece, and leaves out pieces of zeros.
func transfer(out *os.File, in io.Reader, size int64) error {
	buf := make([]byte, piece)
	zero := make([]byte, piece)
	for at := int64(0); at < size; at += piece {
		p := buf[:min(piece, size-at)]
		if _, err := io.ReadFull(in, p); err != nil {
			return err
		}
		if bytes.Equal(p, zero[:len(p)]) {
			continue
		}
		if _, err := out.WriteAt(p, at); err != nil {
			return err
		}
	}
	return out.Truncate(size)
}
