package volumecmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

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
	head := make([]byte, min(n, volume.ImageHead))
	if _, err := image.ReadAt(head, 0); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := volume.CheckRaw(head); err != nil {
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
	e, err := v.Disk(ctx, vm, disk)
	if err != nil {
		return err
	}
	if _, bs := s.Capacity(); n > int64(e.Blocks)*int64(bs) {
		return fmt.Errorf("%s has %d bytes, more than disk %s of VM %s (%d)", path, n, disk, vm, int64(e.Blocks)*int64(bs))
	}
	if err := define.Stopped(ctx, v, def); err != nil && !errors.Is(err, define.ErrHeld) {
		return err
	}
	if err := s.join(ctx); err != nil {
		return err
	}
	h, err := hold(ctx, s, v, def, progress)
	if err != nil {
		return err
	}
	var written int64
	err = h.Keep(ctx, func(ctx context.Context) error {
		g, err := h.Guard(ctx, v)
		if err != nil {
			return err
		}
		return g.Fill(ctx, def, disk, volume.DiskPartial, func(ctx context.Context, d *volume.DiskIO) (err error) {
			if written, err = volume.CopyImage(ctx, d, image, n, false, percents(progress)); err != nil {
				return err
			}
			return h.Renew(ctx) // nobody else had it meanwhile
		})
	})
	if e := h.Release(context.WithoutCancel(ctx)); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s is on disk %s of VM %s, %d MiB were written\n", path, disk, vm, written>>20)
	return nil
}

// percents tells progress in steps of ten.
func percents(to io.Writer) func(done, total int64) {
	last := int64(-1)
	return func(done, total int64) {
		if percent := done * 10 / max(total, 1) * 10; percent != last {
			last = percent
			fmt.Fprintf(to, "%d %% of %d MiB\n", percent, total>>20)
		}
	}
}

// hold holds a VM, once others who change its disks have ended: a host zeroes new ones by itself.
func hold(ctx context.Context, s *store, v *volume.Volume, def volume.Definition, progress io.Writer) (*define.Hold, error) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for told := false; ; told = true {
		h, err := define.Take(ctx, v, s.keeper, def)
		if !errors.Is(err, define.ErrHeld) {
			return h, err
		}
		if !told {
			fmt.Fprintf(progress, "VM %s: %v; waiting for the end of that\n", def.Name, define.ErrHeld)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}
