package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/diskfs/go-diskfs"
	"github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/duet-ft/duet/image/sparse"
)

const (
	// The numbers of the EFI system partition, root A and /perm, from 1.
	bootPartition = 1
	rootPartition = 2
	permPartition = 4
)

// Copy makes a disk for one host: a sparse copy of the image at path whose /perm holds the given files. Keys are
// paths relative to /perm, such as "duet/host.json". Files are readable by root only. It needs mke2fs, but not root.
// The image itself has an empty /perm, which the host's first boot makes.
func (i *Image) Copy(ctx context.Context, path string, perm map[string][]byte) error {
	if err := sparse.Copy(path, i.Path, 0o600); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), "perm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for name, content := range perm {
		if !filepath.IsLocal(name) {
			return fmt.Errorf("%q is not a path below /perm", name)
		}
		f := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(f), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(f, content, 0o600); err != nil {
			return err
		}
	}
	return makePerm(ctx, path, dir)
}

// makePerm makes an ext4 file system in the image's /perm partition, with the files of dir.
// A journal of the usual size is kept: hosts lose power.
func makePerm(ctx context.Context, image, dir string) error {
	p, err := partition(image, permPartition)
	if err != nil {
		return err
	}
	args := []string{
		"-q", "-F", "-t", "ext4", "-L", "perm", "-b", "4096",
		"-E", fmt.Sprintf("offset=%d,nodiscard,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0", p.start),
		"-d", dir, image, fmt.Sprintf("%dk", p.size>>10),
	}
	out, err := exec.CommandContext(ctx, "mke2fs", args...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return errors.New("mke2fs is missing: install the package e2fsprogs")
	}
	if err != nil {
		return fmt.Errorf("mke2fs: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// extent is a partition's place on the disk, in bytes, and its identity.
type extent struct {
	start, size int64
	guid        string
}

// partition finds the partition of that number, from 1, in the image's GPT.
func partition(image string, number int) (extent, error) {
	d, err := diskfs.Open(image, diskfs.WithOpenMode(diskfs.ReadOnly))
	if err != nil {
		return extent{}, fmt.Errorf("%s: %w", image, err)
	}
	defer d.Close()
	table, err := d.GetPartitionTable()
	if err != nil {
		return extent{}, fmt.Errorf("%s: %w", image, err)
	}
	t, ok := table.(*gpt.Table)
	if !ok || len(t.Partitions) < number {
		return extent{}, fmt.Errorf("%s has no GPT with a partition %d", image, number)
	}
	p := t.Partitions[number-1]
	return extent{p.GetStart(), p.GetSize(), p.GUID}, nil
}

// keepBoot puts into dir what a direct boot of the image needs: the kernel, and its command line made as monogok makes
// that of the EFI system partition, with the root by the identity that the image's partition table gives it.
func keepBoot(image, kernelDir, console, dir string) error {
	kernel, err := os.ReadFile(filepath.Join(kernelDir, "vmlinuz"))
	if err != nil {
		return err
	}
	line, err := os.ReadFile(filepath.Join(kernelDir, "cmdline.txt"))
	if err != nil {
		return err
	}
	boot, err := partition(image, bootPartition)
	if err != nil {
		return err
	}
	cmdline, err := directCmdline(string(line), console, boot.guid)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "vmlinuz"), kernel, 0o644),
		os.WriteFile(filepath.Join(dir, "cmdline.txt"), []byte(cmdline+"\n"), 0o644))
}

// rootPlaceholders are what gokrazy's kernel packages write for the root device, for the packer to replace.
var rootPlaceholders = []string{"root=/dev/mmcblk0p2", "root=/dev/sda2"}

// directCmdline names root A as gokrazy's init expects it: relative to the first partition.
func directCmdline(line, console, bootGUID string) (string, error) {
	fields := strings.Fields(line)
	found := false
	for i, f := range fields {
		if slices.Contains(rootPlaceholders, f) {
			fields[i] = "root=PARTUUID=" + strings.ToLower(bootGUID) + "/PARTNROFF=1"
			found = true
		}
	}
	if !found {
		return "", fmt.Errorf("the kernel package's cmdline.txt has none of %s for the packer to replace",
			strings.Join(rootPlaceholders, ", "))
	}
	prefix := []string{"console=tty1"}
	if console != "" {
		prefix = append(prefix, "console="+console)
	}
	return strings.Join(append(prefix, fields...), " "), nil
}
