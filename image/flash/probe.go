package flash

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// System is where to look at a computer's disks. Tests have one of their own.
type System struct {
	// Sys is where sysfs is mounted: /sys.
	Sys string
	// Mounts and Swaps are the contents of /proc/self/mountinfo and /proc/swaps (proc(5)).
	Mounts, Swaps []byte
	// Device tells the numbers of the block device at a path, or why there is none.
	Device func(path string) (major, minor uint32, err error)
}

// ThisSystem is the computer that this runs on.
func ThisSystem() (System, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return System{}, err
	}
	swaps, err := os.ReadFile("/proc/swaps")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return System{}, err
	}
	return System{Sys: "/sys", Mounts: mounts, Swaps: swaps, Device: blockDevice}, nil
}

func blockDevice(path string) (major, minor uint32, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, fmt.Errorf("%s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, 0, fmt.Errorf("%s is no disk: name the device of a stick, such as /dev/sdb", path)
	}
	return unix.Major(st.Rdev), unix.Minor(st.Rdev), nil
}

// Target is a disk that may be overwritten.
type Target struct {
	// Path is the device, and Name its name in the kernel, such as "sdb".
	Path, Name string
	// Model is what the disk says of itself; it may be empty.
	Model string
	// Size is in bytes.
	Size int64
}

// String names the target for a person: "/dev/sdb (SanDisk Ultra, 30.8 GB)".
func (t Target) String() string {
	about := fmt.Sprintf("%.1f GB", float64(t.Size)/1e9)
	if t.Model != "" {
		about = t.Model + ", " + about
	}
	return fmt.Sprintf("%s (%s)", t.Path, about)
}

// Probe looks at the disk at path and refuses one that must not be overwritten, or that holds less than need bytes.
func (s System) Probe(path string, need int64) (Target, error) {
	major, minor, err := s.Device(path)
	if err != nil {
		return Target{}, err
	}
	dir, err := filepath.EvalSymlinks(filepath.Join(s.Sys, "dev/block", fmt.Sprintf("%d:%d", major, minor)))
	if err != nil {
		return Target{}, fmt.Errorf("%s: the kernel knows no such disk", path)
	}
	if s.has(dir, "partition") {
		return Target{}, fmt.Errorf("%s is a partition: name the whole disk, /dev/%s", path, filepath.Base(filepath.Dir(dir)))
	}
	t := Target{Path: path, Name: filepath.Base(dir), Model: s.model(dir)}
	sectors, err := strconv.ParseInt(s.read(dir, "size"), 10, 64)
	if err != nil {
		return Target{}, fmt.Errorf("%s: the kernel doesn't tell its size", path)
	}
	t.Size = sectors * 512
	switch {
	case t.Size == 0:
		return Target{}, fmt.Errorf("%s is empty: there is no stick in it", path)
	case s.read(dir, "ro") == "1":
		return Target{}, fmt.Errorf("%s is write-protected", t)
	case s.read(dir, "queue/logical_block_size") != "512":
		return Target{}, fmt.Errorf("%s has sectors of %s bytes, and the image is for 512", t, s.read(dir, "queue/logical_block_size"))
	case t.Size < need:
		return Target{}, fmt.Errorf("%s is too small: the image has %.1f GB", t, float64(need)/1e9)
	}
	return t, s.unused(t, dir)
}

func (s System) has(dir, name string) bool {
	_, err := os.Stat(filepath.Join(dir, name))
	return err == nil
}

// read is a one-line file of sysfs; "" if there is none.
func (s System) read(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (s System) model(dir string) string {
	fields := strings.Fields(s.read(dir, "device/vendor") + " " + s.read(dir, "device/model"))
	return strings.Join(slices.DeleteFunc(fields, func(f string) bool { return strings.HasPrefix(f, "0x") }), " ")
}

// unused refuses a disk of which anything is mounted, swapped to, or part of something else (RAID, LVM, encryption).
func (s System) unused(t Target, dir string) error {
	parts := []string{dir}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if s.has(filepath.Join(dir, e.Name()), "partition") {
			parts = append(parts, filepath.Join(dir, e.Name()))
		}
	}
	for _, p := range parts {
		name := filepath.Base(p)
		if where := s.mounted(s.read(p, "dev"), name); where == "/" {
			return fmt.Errorf("%s is the disk that this computer runs from", t)
		} else if where != "" {
			return fmt.Errorf("%s is in use: /dev/%s is mounted at %s; unmount it first, if it is the right one", t, name, where)
		}
	}
	for _, p := range parts {
		name := filepath.Base(p)
		if bytes.Contains(s.Swaps, []byte("/dev/"+name+" ")) || bytes.Contains(s.Swaps, []byte("/dev/"+name+"\t")) {
			return fmt.Errorf("%s is in use: /dev/%s is swapped to", t, name)
		}
		if holders, err := os.ReadDir(filepath.Join(p, "holders")); err == nil && len(holders) > 0 {
			return fmt.Errorf("%s is in use: /dev/%s is part of %s", t, name, holders[0].Name())
		}
	}
	return nil
}

// mounted tells where the block device with that number ("8:1") or name is mounted: "/" if it is there as well as
// elsewhere, "" if nowhere. Some file systems (btrfs) show a number that isn't the device's.
func (s System) mounted(number, name string) (where string) {
	for line := range strings.Lines(string(s.Mounts)) {
		before, after, _ := strings.Cut(line, " - ")
		f, source := strings.Fields(before), strings.Fields(after)
		if len(f) < 5 || len(source) < 2 || f[2] != number && source[1] != "/dev/"+name {
			continue
		}
		if where == "" || f[4] == "/" {
			where = f[4]
		}
	}
	return where
}
