package guest

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/duet-ft/duet/image/sparse"
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
func Copy(to, from string) error { return sparse.Copy(to, from, 0o644) }
