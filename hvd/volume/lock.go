package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/duet-ft/duet/hvd/iscsi"
)

// holding is the lock while it is ours.
type holding struct {
	record lockRecord
	since  time.Time
}

// check ends an update that took too long, or whose lock is gone: another host
// may have it by now.
func (h *holding) check(ctx context.Context, v *Volume) error {
	if took := time.Since(h.since); took > v.lease {
		return fmt.Errorf("change of the VM definitions took %v and was given up; the volume is too slow", took.Round(time.Second))
	}
	l, _, err := v.readLock(ctx)
	if err == nil && l != h.record || errors.Is(err, ErrDamaged) {
		return fmt.Errorf("change of the VM definitions was given up: %w: the lock block isn't what this host wrote", ErrBusy)
	}
	return err
}

func (v *Volume) readLock(ctx context.Context) (l lockRecord, raw []byte, err error) {
	_, bs := v.b.Capacity()
	raw = make([]byte, bs)
	if err := v.b.Read(ctx, v.lba(lockAt), raw); err != nil {
		return l, raw, err
	}
	l, err = decodeLock(raw)
	return l, raw, err
}

// takeLock waits for the lock on the definitions, and takes it over from a dead
// owner. A lock block that is damaged belongs to nobody who is alive if it stays
// as it is for as long; what it said is then known by two good copies of the
// definitions, or, with anyway, given up.
func (v *Volume) takeLock(ctx context.Context, anyway bool) (*holding, error) {
	tick := time.NewTicker(v.poll)
	defer tick.Stop()
	nonce := randomGUID()
	var seen []byte
	var since time.Time
	start := time.Now()
	tried := start // when the first COMPARE AND WRITE was issued
	for {
		l, raw, err := v.readLock(ctx)
		damaged := errors.Is(err, ErrDamaged)
		if damaged {
			l = lockRecord{nonce: GUID{0xff}, owner: "its lock block is damaged"}
		}
		if err != nil && ctx.Err() != nil && !since.IsZero() {
			return nil, fmt.Errorf("%w: %w", ErrBusy, ctx.Err())
		}
		if err != nil && !damaged {
			return nil, err
		}
		now := time.Now()
		if seen == nil || !bytes.Equal(raw, seen) {
			seen, since = raw, now
		}
		if l.nonce == nonce { // a COMPARE AND WRITE whose answer was lost
			return &holding{l, tried}, nil
		}
		if l.nonce == (GUID{}) || now.Sub(since) > v.steal {
			if tried.Equal(start) {
				tried = now
			}
			next := lockRecord{l.generation, nonce, v.host[:min(len(v.host), 64)]}
			if damaged {
				if next.generation, err = v.lostGeneration(ctx, anyway); err != nil {
					return nil, err
				}
			}
			swapped, err := v.swapLock(ctx, raw, next)
			if swapped {
				if damaged {
					v.repaired(LockName, ErrDamaged)
				}
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

// lostGeneration is the generation that a damaged lock block had: that of the
// newest definitions.
func (v *Volume) lostGeneration(ctx context.Context, anyway bool) (uint64, error) {
	s, err := v.readSlots(ctx)
	if err != nil {
		return 0, err
	}
	slot, err := s.newest()
	if err == nil && !anyway {
		err = s.settled(slot)
	}
	if err != nil {
		return 0, err
	}
	return s.copies[slot].generation, nil
}

// giveLock sets the lock free. When that fails, the update holds all the same,
// and others have to wait until the lock expires.
func (v *Volume) giveLock(ctx context.Context, h *holding, generation uint64) {
	// Also when ctx is cancelled.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), v.lease)
	defer cancel()
	_, bs := v.b.Capacity()
	for range 5 {
		// After an unknown outcome the lock is free, ours, or somebody else's:
		// another try harms nobody.
		if _, err := v.swapLock(ctx, h.record.encode(bs), lockRecord{generation: generation}); !errors.Is(err, iscsi.ErrUnknownOutcome) {
			return
		}
	}
}

func (v *Volume) swapLock(ctx context.Context, from []byte, to lockRecord) (bool, error) {
	_, bs := v.b.Capacity()
	swapped, err := v.b.CompareAndWrite(ctx, v.lba(lockAt), from, to.encode(bs))
	if errors.Is(err, iscsi.ErrUnsupported) {
		err = fmt.Errorf("volume's target lacks COMPARE AND WRITE, which Duet needs: %w", err)
	}
	return swapped, err
}
