package volume

import (
	"context"
	"fmt"
	"slices"
)

// find is the place of the disk with that name, or -1.
func (d Definition) find(disk string) int {
	return slices.IndexFunc(d.Disks, func(k DiskDef) bool { return k.Name == disk })
}

// A change of a VM's disks goes by the definition that the caller read, so that
// another VM which took the name since is left alone. The caller keeps hosts
// from starting the VM meanwhile.

// AddDisk adds a disk, DiskNew, behind the others.
func (v *Volume) AddDisk(ctx context.Context, vm Definition, k DiskDef) error {
	k.State = DiskNew
	return v.update(ctx, func(u *update) error {
		i, err := u.index(vm.Name, vm.UUID)
		if err != nil {
			return err
		}
		d := u.vms[i]
		if d.find(k.Name) >= 0 {
			return fmt.Errorf("VM %q: disk name %s %w", d.Name, k.Name, ErrExists)
		}
		d.Disks = append(slices.Clone(d.Disks), k)
		if err := d.check(); err != nil {
			return err
		}
		u.vms[i] = d
		return u.addDisk(v.id, d, k)
	})
}

// RemoveDisk removes a disk. A VM keeps at least one.
func (v *Volume) RemoveDisk(ctx context.Context, vm Definition, disk string) error {
	return v.update(ctx, func(u *update) error {
		i, k, err := u.disk(vm, disk)
		if err != nil {
			return err
		}
		d := &u.vms[i]
		if len(d.Disks) == 1 {
			return fmt.Errorf("%w: disk %q is the only one of VM %q: delete the VM", ErrInvalid, disk, d.Name)
		}
		d.Disks = slices.Delete(slices.Clone(d.Disks), k, k+1)
		return nil
	})
}

// GrowDisk makes a disk larger, where there is room behind it. zero is given
// what is added, to fill it with zeros; the disk has its old size until it has
// returned.
func (v *Volume) GrowDisk(ctx context.Context, vm Definition, disk string, n uint64, zero func(ctx context.Context, d *DiskIO) error) error {
	var added Extent
	err := v.update(ctx, func(u *update) (err error) {
		added, err = u.grow(v.id, vm, disk, n)
		return err
	})
	if err != nil || added.Blocks == 0 {
		return err
	}
	d, err := NewDiskIO(v.b, added)
	if err == nil {
		err = zero(ctx, d)
	}
	if err == nil {
		err = d.Sync(ctx)
	}
	if err != nil {
		return err
	}
	return v.update(ctx, func(u *update) error {
		i, k, err := u.disk(vm, disk)
		if err != nil {
			return err
		}
		u.vms[i].Disks = slices.Clone(u.vms[i].Disks)
		u.vms[i].Disks[k].SizeBytes = n
		return u.vms[i].check()
	})
}

// grow enlarges a disk's partition and returns the blocks that its definition
// doesn't cover yet: also those of a growth that died.
func (u *update) grow(volume GUID, vm Definition, disk string, n uint64) (added Extent, err error) {
	i, k, err := u.disk(vm, disk)
	if err != nil {
		return added, err
	}
	d, old := u.vms[i], u.vms[i].Disks[k].SizeBytes
	if n < old {
		return added, fmt.Errorf("%w: disk %q of VM %q has %s already; disks can't be made smaller", ErrInvalid, disk, d.Name, size(old))
	}
	d.Disks = slices.Clone(d.Disks)
	d.Disks[k].SizeBytes = n
	if err := d.check(); err != nil {
		return added, err
	}
	p := u.table.find(partitionID(volume, d.UUID, disk))
	if p == nil {
		return added, fmt.Errorf("partition of disk %q of VM %q %w in the volume's GPT: %w", disk, d.Name, ErrNotFound, ErrDamaged)
	}
	bs := uint64(u.table.blockSize)
	need := roundUp(n, alignment) / bs
	if room := u.table.room(*p); need > room {
		return added, fmt.Errorf("%w behind disk %q of VM %q: it can grow to %s there; a larger new disk that it is copied to may fit elsewhere", ErrFull, disk, d.Name, size(room*bs))
	}
	p.last = max(p.last, p.first+need-1)
	return Extent{p.first + old/bs, (n - old) / bs}, nil
}

// room is how many blocks a partition may have at most, where it begins.
func (t *table) room(p partition) uint64 {
	_, last := t.usable()
	end := last + 1
	for _, q := range t.parts {
		if q.typ != (GUID{}) && q.first > p.first {
			end = min(end, q.first)
		}
	}
	return end - p.first
}

// disk finds a disk: the place of its VM, and its own.
func (u *update) disk(vm Definition, disk string) (i, k int, err error) {
	if i, err = u.index(vm.Name, vm.UUID); err != nil {
		return 0, 0, err
	}
	if k = u.vms[i].find(disk); k < 0 {
		return 0, 0, fmt.Errorf("disk %.40q of VM %q %w on the volume", disk, vm.Name, ErrNotFound)
	}
	return i, k, nil
}

// Fill has a disk filled and makes it ready. While fill runs, and for good if it
// fails or the host dies, the disk's state is DiskNew or DiskPartial: with
// DiskNew, somebody has to fill it with zeros; with DiskPartial, a person decides.
func (v *Volume) Fill(ctx context.Context, vm Definition, disk, state string, fill func(ctx context.Context, d *DiskIO) error) error {
	if err := v.setState(ctx, vm, disk, state); err != nil {
		return err
	}
	e, err := v.Disk(ctx, vm.Name, disk)
	if err != nil {
		return err
	}
	d, err := NewDiskIO(v.b, e)
	if err == nil {
		err = fill(ctx, d)
	}
	if err == nil {
		err = d.Sync(ctx)
	}
	if err != nil {
		return err
	}
	return v.setState(ctx, vm, disk, "")
}

// setState changes a disk's state, if it isn't the one already.
func (v *Volume) setState(ctx context.Context, vm Definition, disk, state string) error {
	now, err := v.Definition(ctx, vm.Name)
	if err != nil {
		return err
	}
	if k := now.find(disk); k >= 0 && now.UUID == vm.UUID && now.Disks[k].State == state {
		return nil
	}
	return v.update(ctx, func(u *update) error {
		i, k, err := u.disk(vm, disk)
		if err != nil {
			return err
		}
		u.vms[i].Disks = slices.Clone(u.vms[i].Disks)
		u.vms[i].Disks[k].State = state
		return nil
	})
}

// zeroPart is how many bytes a target is told to zero at a time, so that there
// is progress to tell, and a hold to look at.
const zeroPart = 64 << 20

// Zero fills a disk with zeros: by the target itself where the volume can tell it
// to, else by writing where it doesn't hold zeros. progress, if not nil, is told
// the bytes that are done.
func Zero(ctx context.Context, d *DiskIO, progress func(done, total int64)) error {
	z, ok := d.b.(zeroer)
	if !ok {
		_, err := CopyImage(ctx, d, nil, 0, false, progress)
		return err
	}
	bs := uint64(d.blockSize)
	for at := uint64(0); at < d.e.Blocks; {
		n := min(d.e.Blocks-at, zeroPart/bs)
		if err := z.Zero(ctx, d.e.FirstLBA+at, n); err != nil {
			return err
		}
		at += n
		if progress != nil {
			progress(int64(at*bs), int64(d.e.Blocks*bs))
		}
	}
	return d.Sync(ctx)
}
