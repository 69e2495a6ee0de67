package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// hostDisk is the disk that the host runs from, as the kernel sees it.
type hostDisk struct {
	path     string // device node
	size     int64  // bytes
	perm     string // the fourth partition's device node
	permSize int64
}

// permNumber is the number of /perm in gokrazy's layout.
const permNumber = "4"

// findDisk finds the disk of the partition with that device number in the sysfs mounted at sys.
func findDisk(sys string, major, minor uint32) (hostDisk, error) {
	root, err := filepath.EvalSymlinks(filepath.Join(sys, "dev/block", fmt.Sprintf("%d:%d", major, minor)))
	if err != nil {
		return hostDisk{}, errors.New("the system runs from no disk")
	}
	if _, err := os.Stat(filepath.Join(root, "partition")); err != nil {
		return hostDisk{}, errors.New("the system runs from a disk without partitions")
	}
	dir := filepath.Dir(root)
	var d hostDisk
	if d.path, d.size, err = blockDevice(dir); err != nil {
		return hostDisk{}, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return hostDisk{}, err
	}
	for _, e := range entries {
		number, err := os.ReadFile(filepath.Join(dir, e.Name(), "partition"))
		if err != nil || strings.TrimSpace(string(number)) != permNumber {
			continue
		}
		d.perm, d.permSize, err = blockDevice(filepath.Join(dir, e.Name()))
		return d, err
	}
	return hostDisk{}, fmt.Errorf("%s has no partition %s", d.path, permNumber)
}

// blockDevice reads a block device's node and size from its directory in sysfs.
func blockDevice(dir string) (path string, size int64, err error) {
	uevent, err := os.ReadFile(filepath.Join(dir, "uevent"))
	if err != nil {
		return "", 0, err
	}
	for line := range strings.Lines(string(uevent)) {
		if name, ok := strings.CutPrefix(line, "DEVNAME="); ok {
			path = "/dev/" + strings.TrimSpace(name)
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "size"))
	if err != nil {
		return "", 0, err
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64) // always of 512 bytes
	if err != nil || path == "" {
		return "", 0, fmt.Errorf("%s is not described as a block device", dir)
	}
	return path, sectors * 512, nil
}
