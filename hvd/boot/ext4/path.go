package ext4

import (
	"fmt"
	"strings"
)

// Entry is a name in a directory.
type Entry struct {
	Name  string
	inode uint32
}

// entries reads a directory linearly.
func (f *FS) entries(dir *inode) ([]Entry, error) {
	if !dir.is(modeDir) {
		return nil, fmt.Errorf("%w: not a directory", ErrNotExist)
	}
	b, err := f.read(dir, maxDir)
	if err != nil {
		return nil, err
	}
	var list []Entry
	for len(b) >= 8 {
		block := b[:min(int64(len(b)), f.block)]
		b = b[len(block):]
		for len(block) >= 8 {
			length := int(le.Uint16(block[4:]))
			if f.block == 1<<16 && (length == 0 || length == 0xffff) {
				length = 1 << 16 // doesn't fit in 16 bits
			}
			number, name := le.Uint32(block), int(block[6])
			if length < 8 || length > len(block) || 8+name > length {
				return nil, damaged("entry of directory %d", dir.number)
			}
			if number != 0 && name > 0 {
				if len(list) >= maxEntries {
					return nil, damaged("directory %d has too many entries", dir.number)
				}
				list = append(list, Entry{string(block[8 : 8+name]), number})
			}
			block = block[length:]
		}
	}
	return list, nil
}

// walk resolves a path from the root. Symbolic links are followed, the last
// one only if follow says so.
func (f *FS) walk(path string, follow bool) (*inode, error) {
	root, err := f.readInode(rootInode)
	if err != nil {
		return nil, err
	}
	at := []*inode{root} // the way from the root, for ".."
	parts := strings.Split(path, "/")
	for links, steps := 0, 0; len(parts) > 0; {
		name := parts[0]
		parts = parts[1:]
		if steps++; steps > maxSteps {
			return nil, fmt.Errorf("%w: the path is too long", ErrNotExist)
		}
		switch name {
		case "", ".":
			continue
		case "..":
			at = at[:max(1, len(at)-1)]
			continue
		}
		next, err := f.child(at[len(at)-1], name)
		if err != nil {
			return nil, err
		}
		if !next.is(modeSymlink) || len(parts) == 0 && !follow {
			at = append(at, next)
			continue
		}
		if links++; links > maxSymlinks {
			return nil, fmt.Errorf("%w: too many symbolic links", ErrNotExist)
		}
		target, err := f.target(next)
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(target, "/") {
			at = at[:1]
		}
		parts = append(strings.Split(target, "/"), parts...)
	}
	return at[len(at)-1], nil
}

func (f *FS) child(dir *inode, name string) (*inode, error) {
	list, err := f.entries(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		if e.Name == name {
			return f.readInode(e.inode)
		}
	}
	return nil, ErrNotExist
}

// target is where a symbolic link points to; one of less than 60 bytes is kept
// in the inode itself.
func (f *FS) target(i *inode) (string, error) {
	if i.size < uint64(len(i.data)) {
		return string(i.data[:i.size]), nil
	}
	b, err := f.read(i, maxTarget)
	return string(b), err
}

func at(path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", path, err)
}

// ReadDir lists a directory in the order of the disk, "." and ".." included.
func (f *FS) ReadDir(path string) ([]Entry, error) {
	i, err := f.walk(path, true)
	if err != nil {
		return nil, at(path, err)
	}
	list, err := f.entries(i)
	return list, at(path, err)
}

// ReadFile returns a regular file's contents, at most limit bytes.
func (f *FS) ReadFile(path string, limit int64) ([]byte, error) {
	i, err := f.walk(path, true)
	if err != nil {
		return nil, at(path, err)
	}
	if !i.is(modeRegular) {
		return nil, at(path, fmt.Errorf("%w: not a regular file", ErrNotExist))
	}
	b, err := f.read(i, limit)
	return b, at(path, err)
}

// Exists tells whether a path leads to a file or directory.
func (f *FS) Exists(path string) bool {
	_, err := f.walk(path, true)
	return err == nil
}

// Readlink returns a symbolic link's target; another kind of file is
// ErrNotExist.
func (f *FS) Readlink(path string) (string, error) {
	i, err := f.walk(path, false)
	if err != nil {
		return "", at(path, err)
	}
	if !i.is(modeSymlink) {
		return "", at(path, fmt.Errorf("%w: not a symbolic link", ErrNotExist))
	}
	target, err := f.target(i)
	return target, at(path, err)
}
