package volumecmd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/duet-ft/duet/hvd/daemon/define"
	"github.com/duet-ft/duet/hvd/volume"
)

// importDisk copies a raw image onto a disk.
func importDisk(ctx context.Context, s *store, args []string, out, progress io.Writer) error {
	vm, disk, path := args[0], args[1], args[2]
	image, err := os.Open(path)
	if err != nil {
		return err
	}
	defer image.Close()
	n, err := image.Seek(0, io.SeekEnd) // works for block devices, too
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := checkRaw(image, n); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	v, err := volume.Open(ctx, s)
	if err != nil {
		return err
	}
	def, err := v.Definition(ctx, vm)
	if err != nil {
		return err
	}
	if err := define.Stopped(ctx, v, def); err != nil {
		return err
	}
	before, err := define.Block(ctx, v, def)
	if err != nil {
		return err
	}
	d, err := v.OpenDisk(ctx, vm, disk)
	if err != nil {
		return err
	}
	if size := int64(d.Sectors()) * volume.SectorSize; n > size {
		return fmt.Errorf("%s has %d bytes, more than disk %s of VM %s (%d)", path, n, disk, vm, size)
	}
	if err := s.join(ctx); err != nil {
		return err
	}
	last := int64(-1)
	written, err := volume.CopyImage(ctx, d, image, n, false, func(done, total int64) {
		if percent := done * 10 / max(total, 1) * 10; percent != last {
			last = percent
			fmt.Fprintf(progress, "%d %% of %d MiB\n", percent, total>>20)
		}
	})
	if err == nil {
		err = d.Sync(ctx)
	}
	if err != nil {
		return err
	}
	// Nothing keeps a host from starting the VM meanwhile, but its block shows that one did.
	after, err := define.Block(ctx, v, def)
	if err != nil {
		return err
	}
	if after != before {
		return fmt.Errorf("VM %s was started while disk %s was written, which is a mixture now: stop it and import again", vm, disk)
	}
	fmt.Fprintf(out, "%s is on disk %s of VM %s, %d MiB were written\n", path, disk, vm, written>>20)
	return nil
}

// formats are disk images that aren't raw, by what they begin with.
var formats = []struct{ magic, name string }{
	{"QFI\xfb", "qcow2"},
	{"KDMV", "VMDK"},
	{"# Disk DescriptorFile", "VMDK"},
	{"conectix", "VHD"},
	{"vhdxfile", "VHDX"},
	{"\x1f\x8b", "gzip"},
	{"\xfd7zXZ", "xz"},
	{"\x28\xb5\x2f\xfd", "Zstandard"},
}

// checkRaw refuses images of another kind, whose bytes would be no disk.
func checkRaw(image io.ReaderAt, n int64) error {
	if n == 0 {
		return fmt.Errorf("is empty")
	}
	head := make([]byte, min(n, 32))
	if _, err := image.ReadAt(head, 0); err != nil {
		return err
	}
	for _, f := range formats {
		if bytes.HasPrefix(head, []byte(f.magic)) {
			return fmt.Errorf("is a %s file, and not a raw disk image: convert it first (qemu-img convert -O raw, or unpack it)", f.name)
		}
	}
	return nil
}
