package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/duet-ft/duet/hvd/iscsi"
)

// Create adds a VM and its disks, and returns the definition with what was
// chosen for it. The disks hold whatever was there before: see CopyImage. The
// VM's arbiter block is zeroed.
func (v *Volume) Create(ctx context.Context, d Definition) (Definition, error) {
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
		for _, k := range d.Disks {
			p := partition{typ: TypeDisk, id: partitionID(v.id, d.UUID, k.Name), name: "duet:" + d.Name + ":" + k.Name}
			if err := u.table.allocate(p, k.SizeBytes); err != nil {
				return fmt.Errorf("disk %q of VM %q: %w", k.Name, d.Name, err)
			}
		}
		_, bs := v.b.Capacity()
		if err := v.b.Write(ctx, v.ArbiterLBA(d.Slot), make([]byte, bs)); err != nil {
			return err
		}
		u.vms = append(u.vms, d)
		return nil
	})
	return d, err
}

// Delete removes a VM and its disks. Neither host may run it.
func (v *Volume) Delete(ctx context.Context, name string) error {
	return v.update(ctx, func(u *update) error {
		i := slices.IndexFunc(u.vms, func(d Definition) bool { return d.Name == name })
		if i < 0 {
			return fmt.Errorf("VM %.40q %w on the volume", name, ErrNotFound)
		}
		u.vms = slices.Delete(u.vms, i, i+1)
		return nil
	})
}

// Modify changes memory, output rule, command line or protection of a VM; the rest stays.
func (v *Volume) Modify(ctx context.Context, name string, change func(*Definition)) error {
	return v.update(ctx, func(u *update) error {
		i := slices.IndexFunc(u.vms, func(d Definition) bool { return d.Name == name })
		if i < 0 {
			return fmt.Errorf("VM %.40q %w on the volume", name, ErrNotFound)
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
	h, err := v.takeLock(ctx)
	if err != nil {
		return err
	}
	d, slot, err := v.newest(ctx)
	if err == nil {
		// Past the generation of the lock block, so that they hold again.
		d.generation = max(d.generation, h.record.generation)
		err = v.commit(ctx, h, &d, 1-slot)
	}
	v.giveLock(ctx, h, max(d.generation, h.record.generation))
	return err
}

// update is the state that an update works on.
type update struct {
	vms   []Definition
	table *table
}

// update runs change under the lock and commits; see the package comment for
// the order.
func (v *Volume) update(ctx context.Context, change func(*update) error) error {
	h, err := v.takeLock(ctx)
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
	t, err := readTable(ctx, v.b)
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
	if err := h.check(v); err != nil {
		return d, err
	}
	if t.fromBackup || *t != before {
		if err := writeTable(ctx, v.b, t); err != nil {
			return d, err
		}
	}
	next := definitions{generation: d.generation, vms: u.vms}
	if err := v.commit(ctx, h, &next, 1-slot); err != nil {
		return d, err
	}
	if !t.keep(v.id, next.vms) {
		return next, nil
	}
	if err := h.check(v); err != nil {
		return next, err
	}
	return next, writeTable(ctx, v.b, t)
}

// commit writes d with the next generation into a slot.
func (v *Volume) commit(ctx context.Context, h *holding, d *definitions, slot int) error {
	next := *d
	next.generation++
	b, err := next.encode()
	if err != nil {
		return err
	}
	if err := h.check(v); err != nil {
		return err
	}
	if err := v.b.Write(ctx, v.lba(slotAt[slot]), b); err != nil {
		return err
	}
	if err := v.b.Sync(ctx); err != nil {
		return err
	}
	*d = next
	return nil
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

// holding is the lock while it is ours.
type holding struct {
	record lockRecord
	since  time.Time
}

// check ends an update that took too long: another host may have the lock by
// now.
func (h *holding) check(v *Volume) error {
	if took := time.Since(h.since); took > v.lease {
		return fmt.Errorf("change of the VM definitions took %v and was given up; the volume is too slow", took.Round(time.Second))
	}
	return nil
}

func (v *Volume) readLock(ctx context.Context) (lockRecord, error) {
	_, bs := v.b.Capacity()
	b := make([]byte, bs)
	if err := v.b.Read(ctx, v.lba(lockAt), b); err != nil {
		return lockRecord{}, err
	}
	return decodeLock(b)
}

// takeLock waits for the lock on the definitions, and takes it over from a dead
// owner.
func (v *Volume) takeLock(ctx context.Context) (*holding, error) {
	tick := time.NewTicker(v.poll)
	defer tick.Stop()
	nonce := randomGUID()
	var seen lockRecord
	var since time.Time
	start := time.Now()
	tried := start // when the first COMPARE AND WRITE was issued
	for {
		l, err := v.readLock(ctx)
		if err != nil && ctx.Err() != nil && !since.IsZero() {
			return nil, fmt.Errorf("%w (%s): %w", ErrBusy, seen.owner, ctx.Err())
		}
		if err != nil {
			return nil, err
		}
		now := time.Now()
		if l != seen || since.IsZero() {
			seen, since = l, now
		}
		if l.nonce == nonce { // a COMPARE AND WRITE whose answer was lost
			return &holding{l, tried}, nil
		}
		if l.nonce == (GUID{}) || now.Sub(since) > v.steal {
			if tried.Equal(start) {
				tried = now
			}
			next := lockRecord{l.generation, nonce, v.host[:min(len(v.host), 64)]}
			swapped, err := v.swapLock(ctx, l, next)
			if swapped {
				return &holding{next, now}, nil
			}
			if err != nil && !errors.Is(err, iscsi.ErrUnknownOutcome) {
				return nil, err
			}
			if err == nil {
				continue // somebody else was faster
			}
		}
		if now.Sub(start) > 3*v.steal {
			return nil, fmt.Errorf("%w (%s)", ErrBusy, l.owner)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w (%s): %w", ErrBusy, l.owner, ctx.Err())
		}
	}
}

// giveLock sets the lock free. When that fails, the update holds all the same,
// and others have to wait until the lock expires.
func (v *Volume) giveLock(ctx context.Context, h *holding, generation uint64) {
	// Also when ctx is cancelled.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), v.lease)
	defer cancel()
	for range 5 {
		// After an unknown outcome the lock is free, ours, or somebody else's:
		// another try harms nobody.
		if _, err := v.swapLock(ctx, h.record, lockRecord{generation: generation}); !errors.Is(err, iscsi.ErrUnknownOutcome) {
			return
		}
	}
}

func (v *Volume) swapLock(ctx context.Context, from, to lockRecord) (bool, error) {
	_, bs := v.b.Capacity()
	swapped, err := v.b.CompareAndWrite(ctx, v.lba(lockAt), from.encode(bs), to.encode(bs))
	if errors.Is(err, iscsi.ErrUnsupported) {
		err = fmt.Errorf("volume's target lacks COMPARE AND WRITE, which Duet needs: %w", err)
	}
	return swapped, err
}
