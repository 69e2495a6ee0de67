package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/duet-ft/duet/image/guest"
	"golang.org/x/sys/unix"
)

// dirPrefix begins the names of directories of runs, in the cache directory.
const dirPrefix = "demo-"

// workDir makes the directory of this run: the wanted one, which stays, or one in the cache, which remove removes. Those
// of earlier runs that were killed go now. A directory for temporary files won't do: it may lie in memory.
func workDir(wanted string) (dir string, remove func(), err error) {
	if wanted != "" {
		return wanted, func() {}, os.MkdirAll(wanted, 0o755)
	}
	cache, err := guest.CacheDir()
	if err != nil || strings.ContainsAny(cache, " \t\"\\") { // which the target's configuration can't hold
		cache = os.TempDir()
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", nil, err
	}
	if err := removeStale(cache); err != nil {
		return "", nil, err
	}
	if dir, err = os.MkdirTemp(cache, dirPrefix); err != nil {
		return "", nil, err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return "", nil, err
	}
	return dir, func() {
		_ = os.RemoveAll(dir) // what stays goes with the next run
		_ = lock.Close()
	}, nil
}

// removeStale removes the directories whose run doesn't live any more.
func removeStale(cache string) error {
	dirs, err := filepath.Glob(filepath.Join(cache, dirPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		lock, err := lockDir(dir)
		if err != nil {
			continue // in use
		}
		if err := errors.Join(os.RemoveAll(dir), lock.Close()); err != nil {
			return err
		}
	}
	return nil
}

// lockDir holds a directory until the file is closed, or the process ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
