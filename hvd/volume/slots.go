package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// slots is what both copies of the definitions and the lock block say.
type slots struct {
	copies  [2]definitions
	faults  [2]error // ErrDamaged, or what else keeps a copy from being used; nil: it is good
	lock    lockRecord
	lockErr error // ErrDamaged: the lock block can't be read
	lockRaw []byte
}

// readSlots reads both copies, and then the lock. An error is one of access.
func (v *Volume) readSlots(ctx context.Context) (s slots, err error) {
	for i := range slotAt {
		s.copies[i], s.faults[i] = v.readSlot(ctx, i)
		if f := s.faults[i]; f != nil && !errors.Is(f, ErrDamaged) && !errors.Is(f, ErrInvalid) && !errors.Is(f, errNewer) {
			return s, f
		}
	}
	s.lock, s.lockRaw, s.lockErr = v.readLock(ctx)
	if s.lockErr != nil && !errors.Is(s.lockErr, ErrDamaged) {
		return s, s.lockErr
	}
	return s, nil
}

// newest is the newest copy that is good, or an error. It is only certain to
// hold if settled says so.
func (s *slots) newest() (slot int, err error) {
	for _, f := range s.faults { // what isn't damaged, but can't be understood, must not be passed over
		if f != nil && !errors.Is(f, ErrDamaged) {
			return -1, f
		}
	}
	switch a, b := s.faults[0], s.faults[1]; {
	case a != nil && b != nil:
		return -1, fmt.Errorf("both copies of the VM definitions on the volume are unreadable: %w", a)
	case b == nil && (a != nil || s.copies[1].generation > s.copies[0].generation):
		return 1, nil
	}
	return 0, nil
}

// settled says whether a copy is sure to be the newest: the lock block names no
// later generation. Without the lock block, both copies have to be good.
func (s *slots) settled(slot int) error {
	d := s.copies[slot]
	switch {
	case s.lockErr == nil && s.lock.generation <= d.generation:
		return nil
	case s.lockErr == nil:
		return fmt.Errorf("VM definitions of generation %d on the volume are %w; those of generation %d are intact, and \"hvd volume rollback\" returns to them", s.lock.generation, ErrDamaged, d.generation)
	case s.faults[1-slot] == nil:
		return nil
	}
	return fmt.Errorf("the volume's lock block and one copy of the VM definitions are %w, so nobody knows whether the other copy, of generation %d, is the newest; \"hvd volume rollback\" takes it", ErrDamaged, d.generation)
}

// load returns the definitions that hold and the slot that they are in. An
// update that commits meanwhile can make the lock block look newer than the
// slots that were read a moment before, so a mismatch is looked at again.
func (v *Volume) load(ctx context.Context) (d definitions, slot int, err error) {
	for range 5 {
		var s slots
		if s, err = v.readSlots(ctx); err != nil {
			return d, -1, err
		}
		if slot, err = s.newest(); err == nil {
			d = s.copies[slot]
			if err = s.settled(slot); err == nil {
				return d, slot, nil
			}
		}
		if !errors.Is(err, ErrDamaged) {
			return d, slot, err
		}
	}
	return d, slot, err
}

// slotName is what people call a slot.
func slotName(i int) string { return fmt.Sprintf("VM definitions, copy %d", i+1) }

func (v *Volume) readSlot(ctx context.Context, i int) (definitions, error) {
	head := make([]byte, slotHeader)
	if err := v.b.Read(ctx, v.lba(slotAt[i]), head); err != nil {
		return definitions{}, err
	}
	n, err := slotLength(head, i)
	if err != nil {
		return definitions{}, err
	}
	all := make([]byte, roundUp(uint64(slotHeader+n), 4096))
	if err := v.b.Read(ctx, v.lba(slotAt[i]), all); err != nil {
		return definitions{}, err
	}
	d, err := decodeSlot(all, i)
	slices.SortFunc(d.vms, func(a, b Definition) int { return strings.Compare(a.Name, b.Name) })
	return d, err
}

// commit writes d with the next generation into the slot beside the one that
// holds, and syncs: from then on it holds. Then it writes it over the other one,
// too, so that damage to either leaves the same definitions.
func (v *Volume) commit(ctx context.Context, h *holding, d *definitions, slot int) error {
	next := *d
	next.generation++
	for i, at := range [2]int{1 - slot, slot} {
		b, err := next.encode(at)
		if err != nil {
			return err
		}
		_, fault := v.readSlot(ctx, at)
		err = h.check(ctx, v)
		if err == nil {
			err = v.b.Write(ctx, v.lba(slotAt[at]), b)
		}
		if err == nil {
			err = v.b.Sync(ctx)
		}
		if err == nil && errors.Is(fault, ErrDamaged) {
			v.repaired(slotName(at), fault)
		}
		if err != nil && i > 0 {
			return fmt.Errorf("the change holds, but its second copy couldn't be written: %w", err)
		}
		if err != nil {
			return err
		}
		*d = next
	}
	return nil
}
