package machine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/locate"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/torture"
)

// newTortured makes a machine at the torture guest's first instruction.
func newTortured(t *testing.T) *Machine {
	t.Helper()
	sys, err := kvm.Open()
	if err != nil {
		t.Skip("needs a host with Duet's kernel (image/boottest runs this test in one): ", err)
	}
	t.Cleanup(func() { sys.Close() })
	if sys.Supported()&kvm.FlagTSC == 0 {
		t.Skip("needs a host with Duet's kernel (image/boottest runs this test in one)")
	}
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
	return fmt.Sprintf("RIP %#x, traps %d, reads %d, CPU %x, memory %x", s.Regs.RIP, m.cpu.Counters().Traps,
		m.cpu.Counters().Reads, xxh3.Hash(s.Append(nil)), xxh3.Hash(m.Memory.Bytes()))
}

// TestLocate stops the torture guest at random instructions of its sections
// without faults, and finds each of them again from the last exit: by the count
// of its branches, with an overflow that comes late, and a breakpoint.
func TestLocate(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	m := newTortured(t)
	rng := rand.New(rand.NewPCG(1, 2))
	var step Step
	m.Trace = func(s Step) { step = s }
	tried := map[uint64]int{} // by section
	for m.Ended() == 0 {
		for m.Waiting() {
			if err := m.Apply(event.Entry{Kind: event.Deadline}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := m.Run(lockstep.Free); err != nil {
			t.Fatal(err)
		}
		m.TakeEffects()
		// An exit at port 80h tells the section, once in a while.
		section := step.Data
		if step.Reason != kvm.ExitIO || step.Addr != 0x80 || tried[section] == 3 {
			continue
		}
		switch section {
		case 1, 7, 8, 11, 12:
			tried[section]++
			for range 6 {
				seekOnce(t, m, rng, section)
			}
		}
		if t.Failed() {
			return
		}
	}
	for _, section := range []uint64{1, 7, 8, 11, 12} {
		if tried[section] == 0 {
			t.Errorf("section %d never came", section)
		}
	}
}

// seekOnce goes somewhere from the exit where m is, comes back, and finds the
// place again.
func seekOnce(t *testing.T, m *Machine, rng *rand.Rand, section uint64) {
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
	primary := locate.NewStepper(m.cpu, m.Memory)
	n := rng.IntN(700)
	for range n {
		why, err := primary.Step()
		if err != nil {
			t.Fatal(err)
		}
		if why == locate.Exited {
			return
		}
	}
	point, ok, _, err := locate.Settle(primary, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	if !ok {
		return // an exit came first
	}
	want := placeOf(t, m)
	for _, skid := range []uint64{0, 5, 10_000} {
		back()
		secondary := locate.NewStepper(m.cpu, m.Memory)
		secondary.Late = func() uint64 { return rng.Uint64N(skid + 1) }
		s := &locate.Seeker{Want: point, Skid: skid}
		if err := locate.Seek(secondary, s); err != nil {
			t.Errorf("section %d, %d steps, skid %d: %v", section, n, skid, err)
			return
		}
		if got := placeOf(t, m); got != want {
			t.Errorf("section %d, %d steps, skid %d: found another place\n got %s\nwant %s", section, n, skid, got, want)
		}
		t.Logf("section %d: %d steps, %d branches, RIP %#x, skid %d: %d breakpoints, %d steps",
			section, n, point.Count, point.RIP, skid, s.Breaks, s.Steps)
	}
}
