package machine

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/kvm/kvmtest"
	"github.com/duet-ft/duet/hvd/locate"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/torture"
)

// newTortured makes a machine at the torture guest's first instruction.
func newTortured(t *testing.T) *Machine {
	t.Helper()
	sys := kvmtest.Open(t)
	m, err := New(sys, Config{
		MemoryBytes: torture.MemoryBytes,
		Board:       board.Config{MAC: [6]byte{2}, NoVsock: true, Wall: time.Unix(0, 0)},
		Traps:       kvm.FlagCR3 | kvm.FlagPF,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	entry, err := torture.Load(m.Memory)
	if err == nil {
		err = m.Boot(entry)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// placeOf is all there is to compare between two instructions.
func placeOf(t *testing.T, m *Machine) string {
	t.Helper()
	var s kvm.State
	if err := m.cpu.State(&s); err != nil {
		t.Fatal(err)
	}
	s.Regs.RFLAGS &^= 0x10100
	return fmt.Sprintf("exit %d, %x, RIP %#x, traps %d, reads %d, CPU %x, memory %x", m.pos, m.hash, s.Regs.RIP, m.cpu.Counters().Traps,
		m.cpu.Counters().Reads, xxh3.Hash(s.Append(nil)), xxh3.Hash(m.Memory.Bytes()))
}

// TestLocate stops the torture guest at random instructions behind its exits, and
// finds each of them again from the last exit: by the count of its branches, with
// an overflow that comes late, and a breakpoint.
func TestLocate(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	m := newTortured(t)
	rng := rand.New(rand.NewPCG(1, 2))
	found, exits := 0, 0
	for m.Ended() == 0 {
		for m.Waiting() {
			if err := m.Apply(event.Entry{Kind: event.Deadline}); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if exits%7 == 0 && seekOnce(t, m, rng) {
				found++
			}
		}
		if _, err := m.Run(lockstep.Free); err != nil {
			t.Fatal(err)
		}
		m.TakeEffects()
		if exits++; t.Failed() {
			return
		}
	}
	if t.Logf("%d points behind %d exits", found, exits); found < 20 {
		t.Error("few points were found")
	}
}

// seekOnce goes somewhere from the exit where m is, comes back, and finds the
// place again; false if the guest made an exit first.
func seekOnce(t *testing.T, m *Machine, rng *rand.Rand) bool {
	t.Helper()
	start, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	memory := bytes.Clone(m.Memory.Bytes())
	back := func() {
		if err := m.Leave(); err != nil {
			t.Fatal(err)
		}
		copy(m.Memory.Bytes(), memory)
		if err := m.Restore(start); err != nil {
			t.Fatal(err)
		}
	}
	defer back()
	locateBy := func(skid uint64) {
		err := m.Locate(locate.Locator{
			Method: locate.ByStep, Event: locate.Event{Skid: skid}, Late: func() uint64 { return rng.Uint64N(skid + 1) },
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	locateBy(0)
	for range 1 + rng.IntN(40) {
		if self, err := m.SelfSteps(); err != nil || self {
			return false
		}
		if d, _, err := m.Step(lockstep.Free); err != nil || d == Exited {
			return false // the guest's end is an error
		}
	}
	exit, err := m.PointHere(10_000)
	if err != nil || exit.Kind != lockstep.Pointed {
		return false
	}
	want := placeOf(t, m)
	for _, skid := range []uint64{0, 5, 10_000} {
		back()
		locateBy(skid)
		if err := m.Apply(*exit.Point); err != nil {
			t.Errorf("%+v, skid %d: %v", *exit.Point, skid, err)
			return true
		}
		if got := placeOf(t, m); got != want {
			t.Errorf("%+v, skid %d: found another place\n got %s\nwant %s", *exit.Point, skid, got, want)
		}
	}
	return true
}

// TestSelfSteppingGuest comes to where the torture guest single-steps itself: no
// point is made there, and a log with a point beyond stops the copy that would have
// to step the guest.
func TestSelfSteppingGuest(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	m := newTortured(t)
	if err := m.Locate(locate.Locator{Method: locate.ByStep}); err != nil {
		t.Fatal(err)
	}
	for m.cpu.Regs().RFLAGS&flagTF == 0 {
		for m.Waiting() {
			if err := m.Apply(event.Entry{Kind: event.Deadline}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := m.Run(lockstep.Free); err != nil {
			t.Fatal(err)
		}
		m.TakeEffects()
	}
	if exit, err := m.PointHere(1000); err != nil || exit.Kind != lockstep.Async {
		t.Errorf("a point is made: %+v, %v", exit, err)
	}
	err := m.Apply(event.Entry{Kind: event.Point, Pos: m.Position(), Count: 1000, RIP: 1})
	if !errors.Is(err, lockstep.ErrDiverged) || !strings.Contains(fmt.Sprint(err), errSelfSteps.Error()) {
		t.Errorf("a point behind that is sought: %v", err)
	}
}
