package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/duet-ft/duet/hvd/iscsi"
)

// Create adds a VM and its disks, and returns the definition with what was
// chosen for it. The disks are DiskNew: Fill makes them usable. arbiter makes
// the content of the VM's arbiter block, which is there before the definition is.
func (v *Volume) Create(ctx context.Context, d Definition, arbiter func(Definition) ([]byte, error)) (Definition, error) {
	err := v.update(ctx, func(u *update) error {
		var err error
		if d, err = d.complete(u.vms); err != nil {
			return err
		}
		if err := d.check(); err != nil {
			return err
		}
		for _, o := range u.vms {
			if err := d.conflict(o); err != nil {
				return err
			}
		}
		d.Disks = slices.Clone(d.Disks)
		for i := range d.Disks {
			d.Disks[i].State = DiskNew
			if err := u.addDisk(v.id, d, d.Disks[i]); err != nil {
				return err
			}
		}
		block, err := arbiter(d)
		if err != nil {
			return err
		}
		u.arbiter = func() error { return v.b.Write(ctx, v.ArbiterLBA(d.Slot), block) }
		u.vms = append(u.vms, d)
		return nil
	})
	return d, err
}

// addDisk enters a disk's partition.
func (u *update) addDisk(volume GUID, d Definition, k DiskDef) error {
	p := partition{typ: TypeDisk, id: partitionID(volume, d.UUID, k.Name), name: "duet:" + d.Name + ":" + k.Name}
	if err := u.table.allocate(p, k.SizeBytes); err != nil {
		return fmt.Errorf("disk %q of VM %q: %w", k.Name, d.Name, err)
	}
	return nil
}

// index finds a VM by its name, and by its UUID unless that is empty.
func (u *update) index(name, uuid string) (int, error) {
	i := slices.IndexFunc(u.vms, func(d Definition) bool {
		return d.Name == name && (uuid == "" || strings.EqualFold(d.UUID, uuid))
	})
	if i < 0 {
		return i, fmt.Errorf("VM %.40q %w on the volume", name, ErrNotFound)
	}
	return i, nil
}

// Delete removes a VM and its disks. Neither host may run it, nor start it
// meanwhile. With a UUID, another VM that took the name since is left alone.
func (v *Volume) Delete(ctx context.Context, name, uuid string) error {
	return v.update(ctx, func(u *update) error {
		i, err := u.index(name, uuid)
		if err != nil {
			return err
		}
		u.vms = slices.Delete(u.vms, i, i+1)
		return nil
	})
}

// Modify changes memory, output rule, command line or protection of a VM; the rest stays.
func (v *Volume) Modify(ctx context.Context, name string, change func(*Definition)) error {
	return v.update(ctx, func(u *update) error {
		i, err := u.index(name, "")
		if err != nil {
			return err
		}
		d := u.vms[i]
		change(&d)
		u.vms[i].MemoryMiB, u.vms[i].Output, u.vms[i].Cmdline = d.MemoryMiB, d.Output, d.Cmdline
		u.vms[i].Unprotected = d.Unprotected
		return u.vms[i].check()
	})
}

// Rollback returns to the older definitions when the newest ones are damaged.
// It does nothing when they aren't.
func (v *Volume) Rollback(ctx context.Context) error {
	if _, _, err := v.load(ctx); err == nil || !errors.Is(err, ErrDamaged) {
		return err
	}
	h, err := v.takeLock(ctx, true)
	if err != nil {
		return err
	}
	s, err := v.readSlots(ctx)
	if err != nil {
		return err
	}
	d := definitions{}
	slot, err := s.newest()
	if err == nil {
		d = s.copies[slot]
		// Past the generation of the lock block, so that they hold again.
		d.generation = max(d.generation, h.record.generation)
		err = v.commit(ctx, h, &d, slot)
	}
	v.giveLock(ctx, h, max(d.generation, h.record.generation))
	return err
}

// update is the state that an update works on.
type update struct {
	vms     []Definition
	table   *table
	rewrite bool         // the table, though it doesn't change
	arbiter func() error // writes an arbiter block, or nil

	mbrFault, superFault error // what a repair writes again beside
}

// update runs change under the lock and commits; see the package comment for
// the order.
func (v *Volume) update(ctx context.Context, change func(*update) error) error {
	h, err := v.takeLock(ctx, false)
	if err != nil {
		return err
	}
	d, err := v.locked(ctx, h, change)
	if !errors.Is(err, iscsi.ErrUnknownOutcome) {
		// After an unknown outcome the lock is left to expire: the write may
		// still be under way.
		v.giveLock(ctx, h, max(d.generation, h.record.generation))
	}
	return err
}

// locked returns the definitions that hold in the end, also with an error.
func (v *Volume) locked(ctx context.Context, h *holding, change func(*update) error) (definitions, error) {
	d, slot, err := v.load(ctx)
	if err != nil {
		return d, err
	}
	both, err := readTables(ctx, v.b)
	if err != nil {
		return d, err
	}
	t, stale, err := both.use()
	if err != nil {
		return d, err
	}
	// Remnants of updates that died are dropped, and what is to go stays until
	// the definitions don't mention it any more.
	before := *t
	t.keep(v.id, d.vms)
	u := &update{vms: slices.Clone(d.vms), table: t}
	if err := change(u); err != nil {
		return d, err
	}
	if err := h.check(ctx, v); err != nil {
		return d, err
	}
	if u.arbiter != nil {
		if err := u.arbiter(); err != nil {
			return d, err
		}
	}
	if stale || u.rewrite || *t != before {
		if err := writeTable(ctx, v.b, t); err != nil {
			return d, err
		}
		v.repaired("GPT", both.firstErr)
		v.repaired("GPT backup", both.backupErr)
		if u.rewrite {
			v.repaired("protective MBR", u.mbrFault)
			v.repaired("superblock", u.superFault)
		}
	}
	next := definitions{generation: d.generation, vms: u.vms}
	if err := v.commit(ctx, h, &next, slot); err != nil {
		return next, err
	}
	if !t.keep(v.id, next.vms) {
		return next, nil
	}
	if err := h.check(ctx, v); err != nil {
		return next, err
	}
	return next, writeTable(ctx, v.b, t)
}

// keep drops disk partitions that no VM owns, and says whether it did.
func (t *table) keep(volume GUID, vms []Definition) (dropped bool) {
	owned := map[GUID]bool{}
	for _, d := range vms {
		for _, k := range d.Disks {
			owned[partitionID(volume, d.UUID, k.Name)] = true
		}
	}
	for i, p := range t.parts {
		if p.typ == TypeDisk && !owned[p.id] {
			t.parts[i] = partition{}
			dropped = true
		}
	}
	return dropped
}
