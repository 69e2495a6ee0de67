package iscsi

import (
	"errors"
	"fmt"
	"testing"

	"github.com/duet-ft/duet/image/target"
)

func mustDo(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// TestReservation goes once through what a pair does with reservation keys.
func TestReservation(t *testing.T) {
	t.Parallel()
	for _, abort := range []bool{false, true} {
		t.Run(fmt.Sprintf("abort=%v", abort), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			tg := startTarget(t, target.Config{})
			a, b := dialTest(t, testConfig(tg, "a")), dialTest(t, testConfig(tg, "b"))
			block := make([]byte, 512)
			mustDo(t, "register a", a.Register(ctx, 0xa))
			mustDo(t, "reserve a", a.Reserve(ctx, 0xa))
			if holder, typ, err := b.Reservation(ctx); holder != 0xa || typ != WriteExclusiveRegistrantsOnly || err != nil {
				t.Fatalf("reservation: %x %d %v", holder, typ, err)
			}
			if err := b.Write(ctx, 0, block); !errors.Is(err, ErrReservationConflict) {
				t.Fatalf("unregistered write: %v", err)
			}
			if _, err := b.CompareAndWrite(ctx, 0, block, block); !errors.Is(err, ErrReservationConflict) {
				t.Fatalf("unregistered COMPARE AND WRITE: %v", err)
			}
			mustDo(t, "unregistered read", b.Read(ctx, 0, block))
			mustDo(t, "register b", b.Register(ctx, 0xb))
			mustDo(t, "registered write", b.Write(ctx, 0, block))
			if err := b.Reserve(ctx, 0xb); !errors.Is(err, ErrReservationConflict) {
				t.Fatalf("second reserve: %v", err)
			}
			mustDo(t, "preempt", b.preempt(ctx, 0xb, 0xa, abort))
			keys, _, err := b.Keys(ctx)
			if err != nil || len(keys) != 1 { // which of the two keys is listed: see Fence
				t.Fatalf("keys after preempt: %x %v", keys, err)
			}
			if holder, _, err := a.Reservation(ctx); holder != 0xb || err != nil {
				t.Fatalf("holder after preempt: %x %v", holder, err)
			}
			if err := a.Write(ctx, 0, block); !errors.Is(err, ErrReservationConflict) {
				t.Fatalf("fenced write: %v", err)
			}
			mustDo(t, "survivor's write", b.Write(ctx, 0, block))
			if err := a.Register(ctx, 0); err != nil {
				t.Fatalf("unregister without a registration: %v", err)
			}
			mustDo(t, "unregister b", b.Register(ctx, 0))
			if keys, _, err := b.Keys(ctx); err != nil || len(keys) != 0 {
				t.Fatalf("keys at the end: %x %v", keys, err)
			}
		})
	}
}

// TestFenceAmongMany: six sessions, of which one after another is fenced and
// joins again, in an order that mixes istgt's keys up. Exactly the fenced one
// must be locked out, each time.
func TestFenceAmongMany(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	tg := startTarget(t, target.Config{})
	const n = 6
	var all []*Session
	block := make([]byte, 512)
	for i := range n {
		s := dialTest(t, testConfig(tg, fmt.Sprintf("host-%d", i)))
		mustDo(t, "join", s.Join(ctx))
		mustDo(t, "join again", s.Join(ctx))
		all = append(all, s)
	}
	for round := range 24 {
		victim := (round * 5) % n
		by := all[(victim+1+round%(n-1))%n]
		mustDo(t, "fence", by.Fence(ctx, all[victim].Port()))
		for i, s := range all {
			err := s.Write(ctx, uint64(i), block)
			if fenced := errors.Is(err, ErrReservationConflict); fenced != (i == victim) || err != nil && !fenced {
				t.Fatalf("round %d: %d was fenced, write of %d: %v", round, victim, i, err)
			}
		}
		if in, err := all[victim].Registered(ctx); in || err != nil {
			t.Fatalf("round %d: victim registered: %v %v", round, in, err)
		}
		mustDo(t, "fence twice", by.Fence(ctx, all[victim].Port()))
		mustDo(t, "join", all[victim].Join(ctx))
	}
	if err := all[0].Fence(ctx, all[0].Port()); err == nil {
		t.Error("fenced itself")
	}
}
