package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// move renames a finished file into the cache, or copies it there from another
// file system; the cache never holds half a file under its name.
func move(to, from string) error {
	if os.Rename(from, to) == nil {
		return nil
	}
	part := to + ".part"
	if err := Copy(part, from); err != nil {
		return err
	}
	return errors.Join(os.Rename(part, to), os.Remove(from))
}

// keep is how many files of a kind stay in the cache.
const keep = 3

// prune removes the oldest files that match pattern in dir, but never the one
// called current.
func prune(dir, pattern, current string) error {
	list, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		return err
	}
	age := map[string]time.Time{}
	for _, p := range list {
		if info, err := os.Stat(p); err == nil {
			age[p] = info.ModTime()
		}
	}
	slices.SortFunc(list, func(a, b string) int { return age[b].Compare(age[a]) })
	for _, p := range list[min(keep, len(list)):] {
		if p != current {
			err = errors.Join(err, os.Remove(p))
		}
	}
	return err
}

// Copy makes a copy of an image, for a guest to write to; holes stay holes.
func Copy(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	if err := errors.Join(copySparse(out, in, info.Size()), out.Close()); err != nil {
		os.Remove(to)
		return fmt.Errorf("copy the guest's image: %w", err)
	}
	return nil
}

// copySparse copies size bytes piece by piece, and leaves out pieces of zeros.
func copySparse(out *os.File, in io.Reader, size int64) error {
	buf := make([]byte, 64<<10)
	zero := make([]byte, len(buf))
	for at := int64(0); at < size; at += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), size-at)]
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
