package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/kvm/kvmtest"
	"github.com/duet-ft/duet/hvd/locate"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/trapset"
)

// loop computes with its flags, branches and stores, 700 rounds to an exit, and at
// each key that is typed mixes in where it was interrupted, with which flags and
// how far in its loop:
//
//	       set the PIC (vectors 20h) and the UART up; lidt; sti
//	again: mov ecx, 700
//	1:     inc rax; imul rbx, rbx, 1e3779b1h; add rbx, rax
//	       test bl, 3; jz 2f
//	       mov edx, ebx; and edx, ff8h; mov [rdx+200000h], rbx
//	2:     pushfq; pop rsi; add rbx, rsi; dec ecx; jnz 1b
//	       out 80h, al; jmp again
//	uart:  push rax; push rdx; mov edx, 3f8h; in al, dx; movzx eax, al
//	       add rax, [rsp+16]; add rax, [rsp+32]; add rax, rcx
//	       add [201000h], rax; inc qword [201008h]
//	       mov al, 20h; out 20h, al; pop rdx; pop rax; iretq
var loop = []byte{
	0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21, 0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6, 0x21,
	0xb0, 0xef, 0xe6, 0x21, 0xba, 0xfc, 0x03, 0x00, 0x00, 0xb0, 0x08, 0xee, 0xba, 0xf9, 0x03, 0x00,
	0x00, 0xb0, 0x01, 0xee, 0x0f, 0x01, 0x1c, 0x25, 0x90, 0x00, 0x10, 0x00, 0xfb, 0xb9, 0xbc, 0x02,
	0x00, 0x00, 0x48, 0xff, 0xc0, 0x48, 0x69, 0xdb, 0xb1, 0x79, 0x37, 0x1e, 0x48, 0x01, 0xc3, 0xf6,
	0xc3, 0x03, 0x74, 0x0f, 0x89, 0xda, 0x81, 0xe2, 0xf8, 0x0f, 0x00, 0x00, 0x48, 0x89, 0x9a, 0x00,
	0x00, 0x20, 0x00, 0x9c, 0x5e, 0x48, 0x01, 0xf3, 0xff, 0xc9, 0x75, 0xd6, 0xe6, 0x80, 0xeb, 0xcd,
	0x50, 0x52, 0xba, 0xf8, 0x03, 0x00, 0x00, 0xec, 0x0f, 0xb6, 0xc0, 0x48, 0x03, 0x44, 0x24, 0x10,
	0x48, 0x03, 0x44, 0x24, 0x20, 0x48, 0x01, 0xc8, 0x48, 0x01, 0x04, 0x25, 0x00, 0x10, 0x20, 0x00,
	0x48, 0xff, 0x04, 0x25, 0x08, 0x10, 0x20, 0x00, 0xb0, 0x20, 0xe6, 0x20, 0x5a, 0x58, 0x48, 0xcf,
	0xff, 0x0f, 0x00, 0xc0, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
}

const (
	loopKeys = 0x201008 // counts them
	loopUART = 0x100060 // its handler
)

// newLoop makes a machine that stands at loop's first instruction, in 64-bit mode
// with its memory mapped one to one, and counts these traps.
func newLoop(t *testing.T, sys *kvm.System, traps uint64) *machine.Machine {
	t.Helper()
	m, err := machine.New(sys, machine.Config{
		MemoryBytes: 4 << 20, Board: board.Config{Wall: time.Unix(0, 0).UTC(), NoNet: true, NoVsock: true}, Traps: traps,
	})
	if err != nil {
		t.Fatal(err)
	}
	const idt = 0xc000
	if err := m.Memory.PutUint64(idt+16*0x24, loopUART&0xffff|0x10<<16|0x8e<<40|loopUART>>16<<48); err != nil {
		t.Fatal(err)
	}
	if err := m.Boot(kvmtest.Flat(t, m.Memory, kvmtest.Text, loop)); err != nil {
		t.Fatal(err)
	}
	return m
}

// byStep finds points by single-stepping, with a counter whose overflow comes up
// to skid branches late.
func byStep(skid uint64) locate.Locator {
	rng := rand.New(rand.NewPCG(skid, 1))
	return locate.Locator{
		Method: locate.ByStep, Event: locate.Event{Skid: skid}, Late: func() uint64 { return rng.Uint64N(skid + 1) },
	}
}

// typed records loop while keys are typed, until so many are through.
func typed(t *testing.T, sys *kvm.System, cfg Config, traps, keys uint64, blind bool) (log []byte, base event.Base, want final, e *Engine) {
	t.Helper()
	m := newLoop(t, sys, traps)
	defer m.Close()
	e = New(m, discard{}, cfg)
	e.blind = blind
	base = m.Base()
	var buf bytes.Buffer
	startLog(t, e, m, &buf)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- e.Live(ctx) }()
	tick := time.NewTicker(30 * time.Millisecond)
	defer tick.Stop()
	for n, sent := uint64(0), uint64(0); n < keys; {
		select {
		case err := <-ended:
			t.Fatalf("the guest ended: %v", err)
		case <-tick.C:
		}
		if n == sent { // its handler takes one key an interrupt
			e.Input(event.Entry{Kind: event.Console, Data: []byte{byte('a' + n%26)}})
			sent++
		}
		if err := e.Do(ctx, func(m *machine.Machine) (err error) {
			n, err = m.Memory.Uint64(loopKeys)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatalf("the guest ended: %v", err)
	}
	if err := e.flush(time.Now(), true); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes(), base, finalOf(t, m), e
}

// retyped replays such a log.
func retyped(t *testing.T, sys *kvm.System, cfg Config, traps uint64, log []byte, base event.Base, want final) error {
	t.Helper()
	m := newLoop(t, sys, traps)
	defer m.Close()
	if err := m.Track(); err != nil {
		t.Fatal(err)
	}
	e := New(m, discard{}, cfg)
	if err := e.Feed(0, log); err != nil {
		t.Fatal(err)
	}
	e.Consume()
	begun := time.Now()
	if err := e.Replay(t.Context(), base, func(_, _ uint64) {}); err != nil {
		return err
	}
	t.Logf("replayed in %.1f s", time.Since(begun).Seconds())
	if got := finalOf(t, m); got.fingerprint != want.fingerprint || got.memory != want.memory || !bytes.Equal(got.state, want.state) {
		return fmt.Errorf("another end\n got exit %d, %x, memory %x, %s\nwant exit %d, %x, memory %x, %s",
			got.position, got.fingerprint, got.memory, got.state, want.position, want.fingerprint, want.memory, want.state)
	}
	return nil
}

// TestPoints: a guest that makes no exit when an input comes is stopped at a point,
// which a secondary finds, however late the overflows of its counter are; inputs
// are applied there, and both copies end equal. It needs no resync.
func TestPoints(t *testing.T) {
	sys := kvmtest.Open(t)
	cfg := tcgConfig()
	cfg.Locator, cfg.StopAfter = byStep(0), 100*time.Millisecond // some hundred steps
	log, base, want, e := typed(t, sys, cfg, 0, 12, false)
	s := &e.Stats
	t.Logf("%d exits, %d inputs: %d at exits, %d at points, %d by resync; %d points, %d resyncs, log %d bytes",
		s.Exits.Load(), s.Inputs.Load(), s.AtExit.Load(), s.AtPoint.Load(), s.AtResync.Load(), s.Points.Load(), s.Resyncs.Load(), len(log))
	if s.AtPoint.Load() < 6 || s.Resyncs.Load() != 0 {
		t.Errorf("%d inputs at points and %d resyncs, want most of them there and none", s.AtPoint.Load(), s.Resyncs.Load())
	}
	for _, skid := range []uint64{0, 5, 50, 10_000} {
		cfg.Locator = byStep(skid)
		if err := retyped(t, sys, cfg, 0, log, base, want); err != nil {
			t.Errorf("skid %d: %v", skid, err)
		}
	}
	// A secondary that can't says so.
	cfg.Locator = locate.Locator{}
	if err := retyped(t, sys, cfg, 0, log, base, want); err == nil {
		t.Error("a machine that can't count branches followed a log with points")
	}
}

// TestPointsMissed: a counter whose overflow comes later than its processor's skid
// makes a divergence, and never another point.
func TestPointsMissed(t *testing.T) {
	sys := kvmtest.Open(t)
	cfg := tcgConfig()
	cfg.Locator = byStep(0)
	log, base, want, _ := typed(t, sys, cfg, 0, 3, false)
	cfg.Locator.Late = func() uint64 { return 5000 }
	err := retyped(t, sys, cfg, 0, log, base, want)
	if !errors.Is(err, lockstep.ErrDiverged) {
		t.Errorf("%v, want a divergence", err)
	}
	t.Log(err)
}

// TestBlind: for a reader that finds no points there are none, and resyncs instead.
func TestBlind(t *testing.T) {
	sys := kvmtest.Open(t)
	cfg := tcgConfig()
	cfg.Locator = byStep(0)
	log, base, want, e := typed(t, sys, cfg, trapset.Initial, 3, true)
	if e.Stats.Points.Load() != 0 {
		t.Errorf("%d points in a log whose reader finds none", e.Stats.Points.Load())
	}
	cfg.Locator = locate.Locator{}
	if err := retyped(t, sys, cfg, trapset.Initial, log, base, want); err != nil {
		t.Error(err)
	}
}
