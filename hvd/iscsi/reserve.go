package iscsi

import (
	"context"
	"errors"
	"fmt"
)

// WriteExclusiveRegistrantsOnly is the type of reservation that is used here:
// everybody reads, registered initiators write (SPC-4, table 216).
const WriteExclusiveRegistrantsOnly = 5

// maxReserveIn limits the bytes of an answer to PERSISTENT RESERVE IN.
const maxReserveIn = 32 << 10

// Service actions of PERSISTENT RESERVE OUT (SPC-4, section 6.16.2).
const (
	actionReserve         = 0x01
	actionPreempt         = 0x04
	actionPreemptAndAbort = 0x05
	actionRegisterIgnore  = 0x06
)

// Register registers key for this session's initiator port (name and ISID),
// whatever was registered for it before (REGISTER AND IGNORE EXISTING KEY). Key
// 0 unregisters. Targets that can are asked to remember registrations and
// reservation when they lose power; others (istgt, tgt) forget them, and then
// everybody may write until somebody joins again.
func (s *Session) Register(ctx context.Context, key uint64) error {
	const op = "REGISTER"
	if key != 0 && !s.noPersist.Load() {
		err := s.reserveOut(ctx, op, actionRegisterIgnore, reserveParameters(0, key, true))
		var ce *CommandError
		if !errors.As(err, &ce) || ce.Status != statusCheckCondition || ce.Sense.Key != senseIllegalRequest {
			return err
		}
		s.noPersist.Store(true)
	}
	return s.reserveOut(ctx, op, actionRegisterIgnore, reserveParameters(0, key, false))
}

// Reserve takes the reservation, type 5 (write exclusive, registrants only),
// for the registered key. ErrReservationConflict: another one holds it, or the
// key isn't registered.
func (s *Session) Reserve(ctx context.Context, key uint64) error {
	return s.reserveOut(ctx, "RESERVE", actionReserve, reserveParameters(key, 0, false))
}

// preempt removes the registrations with the key victim, and takes the
// reservation over if they held it; with abort, their commands under way are
// aborted as well (ErrUnsupported where the target can't). key is our own
// registered one. Some targets lose track of keys then: see Fence.
func (s *Session) preempt(ctx context.Context, key, victim uint64, abort bool) error {
	op, action := "PREEMPT", byte(actionPreempt)
	if abort {
		op, action = "PREEMPT AND ABORT", actionPreemptAndAbort
	}
	return s.reserveOut(ctx, op, action, reserveParameters(key, victim, false))
}

func (s *Session) reserveOut(ctx context.Context, op string, action byte, p []byte) error {
	c := cdbReserve(scsiReserveOut, action, WriteExclusiveRegistrantsOnly, uint32(len(p)))
	_, err := s.exec(ctx, command{op: op, cdb: c, out: p, once: true})
	return err
}

// Reservation returns the key of the holder and the type of the reservation;
// zero and zero when there is none.
func (s *Session) Reservation(ctx context.Context) (holder uint64, typ byte, err error) {
	p := make([]byte, 24)
	c := cdbReserve(scsiReserveIn, 1, 0, uint32(len(p)))
	t, err := s.exec(ctx, command{op: "READ RESERVATION", cdb: c, in: p, short: true})
	if err != nil {
		return 0, 0, err
	}
	if holder, typ, err = parseReservation(p[:t.got]); err != nil {
		return 0, 0, s.named(err)
	}
	return holder, typ, nil
}

// Keys returns all registered keys, one for each registered initiator port,
// and the generation, which counts changes.
func (s *Session) Keys(ctx context.Context) (keys []uint64, generation uint32, err error) {
	for n := 1 << 10; ; {
		p := make([]byte, n)
		c := cdbReserve(scsiReserveIn, 0, 0, uint32(n))
		t, err := s.exec(ctx, command{op: "READ KEYS", cdb: c, in: p, short: true})
		if err != nil {
			return nil, 0, err
		}
		keys, generation, total, err := parseKeysIn(p[:t.got])
		if err != nil {
			return nil, 0, s.named(err)
		}
		if total <= t.got {
			return keys, generation, nil
		}
		if total <= n {
			return nil, 0, s.named(fmt.Errorf("READ KEYS: %d bytes of %d arrived", t.got, total))
		}
		n = total
	}
}
