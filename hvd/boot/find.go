package boot

import (
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/duet-ft/duet/hvd/boot/bzimage"
	"github.com/duet-ft/duet/hvd/boot/ext4"
	"github.com/duet-ft/duet/hvd/boot/partition"
)

// volume is one file system on the disk.
type volume struct {
	fs   *ext4.FS
	name string // for people: "the whole disk", "partition 1"
	dev  string // as the guest will call it: /dev/vda1
	root bool   // it has a system on it, not just /boot
}

// Find looks for the kernel and initrd on a guest's disk of size bytes: an
// ext2, ext3 or ext4 file system on the whole disk or in a partition, with the
// kernel in /boot, or in / of a boot partition. A symbolic link /vmlinuz or
// /boot/vmlinuz decides which kernel it is, else the newest with an initrd.
//
// Journals aren't replayed; see package ext4 and Image.Unclean.
func Find(disk io.ReaderAt, size int64) (*Image, error) {
	vols, err := volumes(disk, size)
	if err != nil {
		return nil, err
	}
	var looked []string
	for _, v := range vols {
		for _, dir := range []string{"/boot", "/"} {
			img, err := search(v, dir)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", v.name, err)
			}
			if img == nil {
				continue
			}
			img.Root = root(v, vols, len(img.Initrd) > 0)
			return img, nil
		}
		looked = append(looked, v.name)
	}
	return nil, fmt.Errorf("%w: looked for vmlinuz in /boot and / of the ext4 file system on %s; "+
		"install a kernel package in the guest", ErrNoKernel, strings.Join(looked, ", "))
}

// volumes opens every ext4 file system on the disk.
func volumes(disk io.ReaderAt, size int64) ([]volume, error) {
	fs, err := ext4.Open(disk, size)
	if err == nil {
		return []volume{{fs: fs, name: "the whole disk", dev: "/dev/vda", root: true}}, nil
	}
	if !errors.Is(err, ext4.ErrNone) {
		return nil, fmt.Errorf("the whole disk: %w", err)
	}
	parts, err := partition.Read(disk, size)
	if errors.Is(err, partition.ErrNone) {
		return nil, fmt.Errorf("%w: it has neither a partition table nor ext4 on the whole disk", ErrNoFileSystem)
	}
	if err != nil {
		return nil, err
	}
	var vols []volume
	var failed error
	for _, p := range parts {
		v := volume{name: fmt.Sprintf("partition %d", p.Number), dev: "/dev/vda" + strconv.Itoa(p.Number)}
		v.fs, err = ext4.Open(io.NewSectionReader(disk, p.Start, p.Size), p.Size)
		switch {
		case err == nil:
			v.root = v.fs.Exists("/etc") && v.fs.Exists("/usr")
			vols = append(vols, v)
		case !errors.Is(err, ext4.ErrNone):
			failed = fmt.Errorf("%s: %w", v.name, err)
		}
	}
	if len(vols) > 0 {
		return vols, nil
	}
	if failed != nil {
		return nil, failed
	}
	return nil, fmt.Errorf("%w: none of its %d partitions is ext4 (LVM, XFS, Btrfs and encrypted disks can't be read here)",
		ErrNoFileSystem, len(parts))
}

// root names the root file system for the kernel. By UUID it is found on any
// disk, which takes an initrd to do; the kernel alone knows device names only.
func root(found volume, vols []volume, initrd bool) string {
	if !found.root {
		for _, v := range vols {
			if v.root {
				found = v
				break
			}
		}
	}
	switch {
	case !found.root:
		return ""
	case initrd:
		return "root=UUID=" + found.fs.UUID()
	}
	return "root=" + found.dev
}

// search looks for kernels in one directory; it returns nil if there are none.
func search(v volume, dir string) (*Image, error) {
	list, err := v.fs.ReadDir(dir)
	if errors.Is(err, ext4.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := make(map[string]bool, len(list))
	for _, e := range list {
		names[e.Name] = true
	}
	kernel := choose(v.fs, dir, names)
	if kernel == "" {
		return nil, nil
	}
	img := &Image{Path: path.Join(dir, kernel), Version: version(kernel), Unclean: v.fs.NeedsRecovery()}
	if img.Kernel, err = v.fs.ReadFile(img.Path, MaxKernel); err != nil {
		return nil, err
	}
	if !bzimage.IsELF(img.Kernel) && bzimage.Header(img.Kernel) == nil {
		return nil, fmt.Errorf("%s: %w", img.Path, bzimage.ErrFormat)
	}
	if name := initrd(names, kernel); name != "" {
		if img.Initrd, err = v.fs.ReadFile(path.Join(dir, name), MaxInitrd); err != nil {
			return nil, err
		}
	}
	return img, nil
}

// choose picks the kernel among the names in a directory: where a link called
// vmlinuz points to, else the newest version that has an initrd, else the
// newest. It returns "" if there is none.
func choose(fs *ext4.FS, dir string, names map[string]bool) string {
	for _, link := range []string{"/vmlinuz", path.Join(dir, "vmlinuz")} {
		target, err := fs.Readlink(link)
		if err == nil && path.Join("/", path.Dir(link), target) == path.Join(dir, path.Base(target)) && names[path.Base(target)] {
			return path.Base(target)
		}
	}
	best, bestInitrd := "", false
	for name := range names {
		v := version(name)
		if v == "" || strings.HasSuffix(v, ".old") || strings.HasSuffix(v, ".bak") || strings.Contains(v, "rescue") {
			continue
		}
		has := initrd(names, name) != ""
		if best == "" || has && !bestInitrd || has == bestInitrd && compareVersions(v, version(best)) > 0 {
			best, bestInitrd = name, has
		}
	}
	if best == "" && names["vmlinuz"] {
		return "vmlinuz"
	}
	return best
}

// version is what follows the kernel's name: vmlinuz-VERSION.
func version(kernel string) string {
	v, ok := strings.CutPrefix(kernel, "vmlinuz-")
	if !ok {
		return ""
	}
	return v
}

// initrd names the initrd that belongs to a kernel, by the customs of Debian,
// Fedora, SUSE and Arch; "" if there is none.
func initrd(names map[string]bool, kernel string) string {
	v := version(kernel)
	candidates := []string{"initrd.img", "initrd", "initramfs.img"}
	if v != "" {
		candidates = []string{"initrd.img-" + v, "initramfs-" + v + ".img", "initrd-" + v, "initramfs-" + v, "initrd-" + v + ".img"}
	}
	for _, c := range candidates {
		if names[c] {
			return c
		}
	}
	return ""
}
