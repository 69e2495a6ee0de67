package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/daemon/define"
	"github.com/duet-ft/duet/hvd/daemon/survey"
	"github.com/duet-ft/duet/hvd/iscsi"
	"github.com/duet-ft/duet/hvd/volume"
)

// Volume implements server.Backend.
func (d *instance) Volume(ctx context.Context) (api.Report, error) {
	d.mu.Lock()
	blocks, state := d.blocks, d.storage()
	d.mu.Unlock()
	if blocks == nil {
		return api.Report{}, api.Errorf(http.StatusServiceUnavailable, "%s", state)
	}
	session, _ := blocks.(*iscsi.Session) // else it's one of a test
	f, err := survey.Look(ctx, blocks, session)
	if err != nil {
		return api.Report{}, volumeError(err)
	}
	return f.Report(), nil
}

// Disks implements server.Backend.
func (d *instance) Disks(ctx context.Context) ([]api.Disk, error) {
	v, err := d.opened()
	if err != nil {
		return nil, err
	}
	list, err := v.Definitions(ctx)
	if err != nil {
		return nil, volumeError(err)
	}
	var disks []api.Disk
	for _, def := range list {
		for _, k := range def.Disks {
			disks = append(disks, d.describeDisk(def.Name, k))
		}
	}
	return disks, nil
}

// describeDisk is a disk with what this host does to it.
func (d *instance) describeDisk(vm string, k volume.DiskDef) api.Disk {
	disk := api.Disk{VM: vm, Name: k.Name, SizeBytes: k.SizeBytes, State: k.State}
	if k.State == "" {
		disk.State = "ready"
	}
	d.jobs.mu.Lock()
	defer d.jobs.mu.Unlock()
	if j := d.jobs.all[vm]; j != nil && j.disk == k.Name {
		disk.Doing, disk.Percent = j.what, j.percent()
	}
	if err := d.jobs.failed[vm+" "+k.Name]; err != nil {
		disk.Error = api.OneLine(err.Error())
	}
	return disk
}

// disk is one disk as it is now.
func (d *instance) disk(ctx context.Context, v *volume.Volume, vm, name string) (api.Disk, error) {
	def, err := v.Definition(ctx, vm)
	if err != nil {
		return api.Disk{}, volumeError(err)
	}
	for _, k := range def.Disks {
		if k.Name == name {
			return d.describeDisk(vm, k), nil
		}
	}
	return api.Disk{}, api.Errorf(http.StatusNotFound, "VM %s has no disk %.40q", vm, name)
}

// changeDisk runs a job on a disk and answers with the disk, as it is by then.
func (d *instance) changeDisk(ctx context.Context, vm, disk, what string, do func(ctx context.Context, h held) error) (api.Disk, error) {
	j, err := d.start(ctx, vm, disk, what, do)
	if err != nil {
		return api.Disk{}, err
	}
	if err := j.await(ctx, promptly); err != nil {
		return api.Disk{}, volumeError(err)
	}
	return d.changedDisk(ctx, vm, disk)
}

// changedDisk has the VMs follow a change, and answers with the disk.
func (d *instance) changedDisk(ctx context.Context, vm, disk string) (api.Disk, error) {
	if err := d.changed(ctx); err != nil {
		return api.Disk{}, err
	}
	v, err := d.opened()
	if err != nil {
		return api.Disk{}, err
	}
	return d.disk(ctx, v, vm, disk)
}

// finish waits for a job that ends with the request.
func (j *job) finish(ctx context.Context) error {
	defer context.AfterFunc(ctx, j.cancel)()
	<-j.done
	if j.err != nil {
		return volumeError(j.err)
	}
	return nil
}

// AddDisk implements server.Backend.
func (d *instance) AddDisk(ctx context.Context, vm, disk string, n uint64) (api.Disk, error) {
	return d.changeDisk(ctx, vm, disk, changing, func(ctx context.Context, h held) error {
		err := h.vol.AddDisk(ctx, h.def, volume.DiskDef{Name: disk, SizeBytes: n})
		if err == nil {
			d.event(api.EventDisk, vm, fmt.Sprintf("disk %s was added, %d bytes", disk, n))
		}
		return err
	})
}

// DeleteDisk implements server.Backend.
func (d *instance) DeleteDisk(ctx context.Context, vm, disk string) error {
	j, err := d.start(ctx, vm, disk, changing, func(ctx context.Context, h held) error {
		return h.vol.RemoveDisk(ctx, h.def, disk)
	})
	if err != nil {
		return err
	}
	if err := j.finish(ctx); err != nil {
		return err
	}
	d.event(api.EventDisk, vm, fmt.Sprintf("disk %s was deleted", disk))
	return d.changed(ctx)
}

// GrowDisk implements server.Backend.
func (d *instance) GrowDisk(ctx context.Context, vm, disk string, n uint64) (api.Disk, error) {
	return d.changeDisk(ctx, vm, disk, growing, func(ctx context.Context, h held) error {
		err := h.vol.GrowDisk(ctx, h.def, disk, n, func(ctx context.Context, added *volume.DiskIO) error {
			if err := volume.Zero(ctx, added, h.job.progress); err != nil {
				return err
			}
			return h.hold.Renew(ctx)
		})
		if err == nil {
			d.event(api.EventDisk, vm, fmt.Sprintf("disk %s has %d bytes now", disk, n))
		}
		return err
	})
}

// ImportDisk implements server.Backend.
func (d *instance) ImportDisk(ctx context.Context, vm, disk string, image io.Reader) (api.Disk, error) {
	j, err := d.start(ctx, vm, disk, importing, func(ctx context.Context, h held) error {
		// The image is looked at first: one that is none must not cost the disk's content.
		head := make([]byte, volume.ImageHead)
		n, err := io.ReadFull(image, head)
		if n == 0 {
			return fmt.Errorf("%w: the image is empty, or was broken off (%v)", volume.ErrImage, err)
		}
		if err := volume.CheckRaw(head[:n]); err != nil {
			return err
		}
		whole := io.MultiReader(bytes.NewReader(head[:n]), image)
		return h.vol.Fill(ctx, h.def, disk, volume.DiskPartial, func(ctx context.Context, to *volume.DiskIO) error {
			written, err := volume.CopyStream(ctx, to, whole, h.job.progress)
			if err == nil {
				err = h.hold.Renew(ctx)
			}
			if err == nil {
				d.event(api.EventDisk, vm, fmt.Sprintf("an image was imported to disk %s, %d bytes were written", disk, written))
			}
			return err
		})
	})
	if err != nil {
		return api.Disk{}, err
	}
	if err := j.finish(ctx); err != nil {
		return api.Disk{}, err
	}
	return d.changedDisk(ctx, vm, disk)
}

// exportPiece is how much of a disk is read at a time.
const exportPiece = 1 << 20

// ExportDisk implements server.Backend.
func (d *instance) ExportDisk(ctx context.Context, vm, disk string, size func(n int64), w io.Writer) error {
	j, err := d.start(ctx, vm, disk, exporting, func(ctx context.Context, h held) error {
		from, err := h.vol.OpenDisk(ctx, vm, disk)
		if err != nil {
			return err
		}
		total := int64(from.Sectors()) * volume.SectorSize
		size(total)
		buf := make([]byte, exportPiece)
		for at := int64(0); at < total; at += exportPiece {
			p := buf[:min(exportPiece, total-at)]
			if err := from.Read(ctx, uint64(at/volume.SectorSize), p); err != nil {
				return err
			}
			if at+exportPiece >= total { // what is exported is one state of the disk, or cut
				if err := h.hold.Renew(ctx); err != nil {
					return err
				}
			}
			if _, err := w.Write(p); err != nil {
				return err
			}
			h.job.progress(at+int64(len(p)), total)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return j.finish(ctx)
}

// CopyDisk implements server.Backend. The copy's VM is held as the original's is.
func (d *instance) CopyDisk(ctx context.Context, vm, disk string, to api.DiskName) (api.Disk, error) {
	if to.VM == vm {
		if to.Disk == disk {
			return api.Disk{}, api.Errorf(http.StatusBadRequest, "disk %s of VM %s can't be copied onto itself", disk, vm)
		}
		return d.changeDisk(ctx, vm, to.Disk, copying, func(ctx context.Context, h held) error { return d.copyDisk(ctx, h, h, disk, to.Disk) })
	}
	return d.changeDisk(ctx, to.VM, to.Disk, copying, func(ctx context.Context, target held) error {
		v, err := d.opened()
		if err != nil {
			return err
		}
		j, err := d.begin(ctx, v, vm, disk, exporting, func(ctx context.Context, source held) error {
			return d.copyDisk(ctx, source, target, disk, to.Disk)
		})
		if err != nil {
			return err
		}
		return j.finish(ctx)
	})
}

// copyDisk copies a disk of one VM that is held to one of another, or the same. The copy is made if there is none of that
// name.
func (d *instance) copyDisk(ctx context.Context, source, target held, disk, to string) error {
	from, err := source.vol.OpenDisk(ctx, source.def.Name, disk)
	if err != nil {
		return err
	}
	n := from.Sectors() * volume.SectorSize
	e, err := target.vol.Disk(ctx, target.def.Name, to)
	switch {
	case errors.Is(err, volume.ErrNotFound):
		if err := target.vol.AddDisk(ctx, target.def, volume.DiskDef{Name: to, SizeBytes: n}); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		if _, bs := target.vol.Blocks().Capacity(); e.Blocks*uint64(bs) < n {
			return fmt.Errorf("%w: disk %s of VM %s has %d bytes, and disk %s of VM %s %d: grow it first", volume.ErrInvalid, to, target.def.Name, e.Blocks*uint64(bs), disk, source.def.Name, n)
		}
	}
	err = target.vol.Fill(ctx, target.def, to, volume.DiskPartial, func(ctx context.Context, io *volume.DiskIO) error {
		_, err := volume.CopyImage(ctx, io, readerAt{ctx, from}, int64(n), false, func(done, total int64) {
			target.job.progress(done, total)
			source.job.progress(done, total)
		})
		if err != nil {
			return err
		}
		return errors.Join(source.hold.Renew(ctx), target.hold.Renew(ctx))
	})
	if err == nil {
		d.event(api.EventDisk, target.def.Name, fmt.Sprintf("disk %s is a copy of disk %s of VM %s", to, disk, source.def.Name))
	}
	return err
}

// readerAt reads a disk, in whole sectors.
type readerAt struct {
	ctx  context.Context
	disk *volume.DiskIO
}

// ReadAt implements io.ReaderAt.
func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	if err := r.disk.Read(r.ctx, uint64(off/volume.SectorSize), p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// startable fails if a VM can't be started because of its disks, and says why better than its process could.
func (d *instance) startable(ctx context.Context, name string) error {
	v, err := d.opened()
	if err != nil {
		return nil // its process may still have the volume
	}
	def, err := v.Definition(ctx, name)
	if err != nil {
		return nil
	}
	if j := d.jobs.of(name); j != nil {
		return api.Errorf(http.StatusConflict, "VM %s can't be started: %s", name, j.describe())
	}
	if err := def.Ready(); err != nil {
		return api.Errorf(http.StatusConflict, "VM %s can't be started: %v", name, err)
	}
	if b, err := define.Block(ctx, v, def); err == nil && define.Held(b) {
		return api.Errorf(http.StatusConflict, "VM %s can't be started: its disks are being changed by another host", name)
	}
	return nil
}
