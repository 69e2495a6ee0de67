package main

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/duet-ft/duet/appliance/perm"
)

const (
	// permInMemory bounds a /perm without a disk.
	permInMemory = "size=64m"
	// resizeFS is EXT4_IOC_RESIZE_FS: grow a mounted file system to that many blocks (linux/fs/ext4/ext4.h:
	// _IOW('f', 16, __u64)).
	resizeFS = 0x40086610
	// headSize is as much of a file system as tells its size.
	headSize = 4096
)

// prepare makes /perm and what is on it, and returns the host's name. On return /perm isn't mounted, for gokrazy does
// that, unless it is one in memory: then gokrazy fails as prepare did, and goes on with what is there.
func prepare(say func(string)) (name string) {
	for _, m := range []struct{ kind, dir string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			say(fmt.Sprintf("mounting %s: %v", m.dir, err))
		}
	}
	onDisk := true
	if err := mountPerm(say); err != nil {
		onDisk = false
		say(fmt.Sprintf("/perm can't be used: %v; it stays as it is. The host goes on with one in memory and a password for this boot", err))
		if err := unix.Mount("tmpfs", permDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, permInMemory); err != nil {
			say(fmt.Sprintf("/perm in memory: %v", err))
		}
	}
	name = identity(permDir, say)
	if onDisk {
		if err := unix.Unmount(permDir, 0); err != nil {
			say(fmt.Sprintf("unmounting /perm: %v", err))
		}
	}
	return name
}

// mountPerm brings the fourth partition of the disk that root is on to /perm, and makes a file system there if it is empty.
func mountPerm(say func(string)) error {
	var root unix.Stat_t
	if err := unix.Stat("/", &root); err != nil {
		return err
	}
	d, err := findDisk("/sys", unix.Major(root.Dev), unix.Minor(root.Dev))
	if err != nil {
		return err
	}
	if grown, err := growTable(d.path, d.size); err != nil {
		say(fmt.Sprintf("the partition table of %s stays as it is: %v", d.path, err))
	} else if grown != "" {
		say(fmt.Sprintf("the partition table of %s: %s", d.path, grown))
	}
	f, err := os.OpenFile(d.perm, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	state, err := perm.Look(f, d.permSize)
	switch {
	case err != nil:
		return err
	case state == perm.Foreign:
		return fmt.Errorf("%s is neither empty nor ext4; if nobody needs what is there, write zeroes over its first 16 MiB", d.perm)
	case state != perm.Ext4:
		var id perm.Identity
		rand.Read(id.UUID[:])
		rand.Read(id.HashSeed[:])
		if err := perm.Format(f, id); err != nil {
			return fmt.Errorf("making the file system: %w", err)
		}
		say("made the file system of /perm on " + d.perm)
	}
	if err := unix.Mount(d.perm, permDir, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mounting %s: %w", d.perm, err)
	}
	if err := growPerm(f, d.permSize, say); err != nil {
		say(fmt.Sprintf("/perm keeps its size: %v", err))
	}
	return nil
}

// growTable extends the disk's table, or repairs it, and says what it did. The kernel sees the change at the next boot:
// it takes no new table of a disk that is in use.
func growTable(path string, size int64) (what string, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	start, end := make([]byte, perm.TableSize), make([]byte, perm.BackupSize)
	if _, err := f.ReadAt(start, 0); err != nil {
		return "", err
	}
	if _, err := f.ReadAt(end, size-perm.BackupSize); err != nil {
		return "", err
	}
	plan, err := perm.Grow(start, end, size)
	if err != nil || len(plan.Writes) == 0 {
		return "", err
	}
	for _, w := range plan.Writes {
		if _, err := f.WriteAt(w.Data, w.Offset); err != nil {
			return "", err
		}
		if err := f.Sync(); err != nil {
			return "", err
		}
	}
	what = fmt.Sprintf("/perm has %d MiB from the next boot on", plan.Size>>20)
	if plan.Repaired {
		what = "repaired from its copy at the disk's end; " + what
	}
	return what, nil
}

// growPerm has the kernel grow the mounted file system to the partition's size.
func growPerm(partition *os.File, size int64, say func(string)) error {
	head := make([]byte, headSize)
	if _, err := partition.ReadAt(head, 0); err != nil {
		return err
	}
	has, want := perm.Blocks(head), uint64(size/4096)
	if has >= want {
		return nil
	}
	mounted, err := os.Open(permDir)
	if err != nil {
		return err
	}
	defer mounted.Close()
	// IoctlSetString passes the address of any bytes: here those of a 64-bit number.
	argument := string(binary.LittleEndian.AppendUint64(nil, want))
	if err := unix.IoctlSetString(int(mounted.Fd()), resizeFS, argument); err != nil {
		return fmt.Errorf("growing it to %d MiB: %w", size>>20, err)
	}
	if _, err := partition.ReadAt(head, 0); err != nil {
		return err
	}
	if now := perm.Blocks(head); now > has {
		say(fmt.Sprintf("/perm has grown to %d MiB", now*4096>>20))
	}
	return nil
}
