package flash

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// computer is a system with a disk sda that / is on, a stick sdb with two partitions, and a stick that is an md array's.
func computer(t *testing.T) System {
	t.Helper()
	sys := t.TempDir()
	numbers := map[string][2]uint32{}
	block := func(dir, dev string, size string, more map[string]string) {
		t.Helper()
		files := map[string]string{"dev": dev, "size": size, "ro": "0", "queue/logical_block_size": "512"}
		for k, v := range more {
			files[k] = v
		}
		for name, text := range files {
			path := filepath.Join(sys, "devices", dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		link := filepath.Join(sys, "dev/block", dev)
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("../../devices/"+dir, link); err != nil {
			t.Fatal(err)
		}
		var n [2]uint32
		if _, err := fmt.Sscanf(dev, "%d:%d", &n[0], &n[1]); err != nil {
			t.Fatal(err)
		}
		numbers["/dev/"+filepath.Base(dir)] = n
	}
	block("sda", "8:0", "1000000000", map[string]string{"device/vendor": "ATA     ", "device/model": "Server SSD"})
	block("sda/sda1", "8:1", "1000", map[string]string{"partition": "1"})
	block("sda/sda2", "8:2", "1000", map[string]string{"partition": "2"})
	block("sdb", "8:10", "60000000", map[string]string{"device/vendor": "SanDisk ", "device/model": "Ultra"})
	block("sdb/sdb1", "8:11", "1000", map[string]string{"partition": "1"})
	block("sdc", "8:20", "60000000", nil)
	block("sdc/sdc1", "8:21", "1000", map[string]string{"partition": "1", "holders/md0/dev": "9:0"})
	block("sdd", "8:30", "60000000", map[string]string{"ro": "1"})
	block("sde", "8:40", "0", nil)
	block("sdf", "8:50", "100", nil)
	block("sdg", "8:60", "60000000", map[string]string{"queue/logical_block_size": "4096"})
	return System{Sys: sys, Device: func(path string) (uint32, uint32, error) {
		n, ok := numbers[path]
		if !ok {
			return 0, 0, errors.New(path + " is no disk")
		}
		return n[0], n[1], nil
	}}
}

func TestProbe(t *testing.T) {
	s := computer(t)
	const mounts = "22 1 8:2 / / rw,relatime - ext4 /dev/sda2 rw\n23 22 0:21 / /proc rw - proc proc rw\n" +
		"24 22 8:2 /srv /srv rw - ext4 /dev/sda2 rw\n"
	for _, c := range []struct{ path, mounts, swaps, want string }{
		{"/dev/sda", mounts, "", "/dev/sda (ATA Server SSD, 512.0 GB) is the disk that this computer runs from"},
		{"/dev/sda", "22 1 0:30 /@ / rw shared:1 - btrfs /dev/sda2 rw\n", "", "is the disk that this computer runs from"},
		{"/dev/sda", mounts, "Filename\t\tType\n/dev/sda1                               partition\t1\t0\t-2\n", "computer runs from"},
		{"/dev/sda2", mounts, "", "/dev/sda2 is a partition: name the whole disk, /dev/sda"},
		{"/dev/sdb", mounts + "25 22 8:11 / /media/stick rw - vfat /dev/sdb1 rw\n", "", "/dev/sdb1 is mounted at /media/stick; unmount it first"},
		{"/dev/sdb", mounts, "Filename\t\tType\n/dev/sdb1                               partition\t1\t0\t-2\n", "/dev/sdb1 is swapped to"},
		{"/dev/sdc", mounts, "", "/dev/sdc1 is part of md0"},
		{"/dev/sdd", mounts, "", "is write-protected"},
		{"/dev/sde", mounts, "", "is empty: there is no stick in it"},
		{"/dev/sdf", mounts, "", "/dev/sdf (0.0 GB) is too small: the image has 2.0 GB"},
		{"/dev/sdg", mounts, "", "sectors of 4096 bytes"},
		{"/dev/sdx", mounts, "", "/dev/sdx is no disk"},
	} {
		s.Mounts, s.Swaps = []byte(c.mounts), []byte(c.swaps)
		if _, err := s.Probe(c.path, 2e9); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", c.path, err, c.want)
		}
	}
	s.Mounts, s.Swaps = []byte(mounts), nil
	got, err := s.Probe("/dev/sdb", 2e9)
	if want := (Target{"/dev/sdb", "sdb", "SanDisk Ultra", 30720000000}); got != want || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if got.String() != "/dev/sdb (SanDisk Ultra, 30.7 GB)" {
		t.Errorf("it is called %s", got)
	}
	// A file is none, on any system.
	if _, _, err := blockDevice("probe_test.go"); err == nil || !strings.Contains(err.Error(), "is no disk") {
		t.Errorf("a file: %v", err)
	}
}
