//go:build faultinject

package vm

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/kvm/kvmtest"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/mem"
)

var (
	flips    = flag.Int("flips", 12, "how many bits TestFlips flips")
	flipSeed = flag.Uint64("flipseed", 1, "which ones")
)

// flipStall is when a replica is stuck.
const flipStall = 10 * time.Second

// cycle waits until all that a digest holds has been compared, and drops a
// replica that is stuck, as hvd/vmproc does.
func (r *replica) cycle(t *testing.T, e *Engine) error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	compared := func() (n uint64) {
		_ = r.e.Do(ctx, func(m *machine.Machine) error { // fails when Replay has ended
			n = m.Compared()
			return nil
		})
		return n
	}
	ended := make(chan error, 1)
	go func() {
		ended <- <-r.err
		cancel()
	}()
	defer func() { r.err = ended }()
	limit := compared() + uint64(r.m.Memory.Pages()) + uint64(float64(r.m.Memory.Pages())*float64(flipDigest)/float64(flipCycle))
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for compared() < limit {
		select {
		case err := <-ended:
			return err
		case <-look.C:
		}
		if lag := e.Lag(); lag > flipStall {
			r.halt()
			return fmt.Errorf("stuck: %v behind; %w", lag, <-ended)
		}
	}
	return nil
}

// flip flips a bit of the given kind in the replica and says which.
func (r *replica) flip(t *testing.T, kind string, rnd *rand.Rand) string {
	t.Helper()
	var what string
	if kind == "log" {
		done := make(chan struct{})
		r.mu.Lock()
		r.corrupt = func(b []byte) []byte {
			bit := rnd.IntN(8 * len(b))
			what = fmt.Sprintf("bit %d of %d bytes of log", bit, len(b))
			b[bit/8] ^= 1 << (bit % 8)
			close(done)
			return b
		}
		r.mu.Unlock()
		<-done
		return what
	}
	err := r.e.Do(t.Context(), func(m *machine.Machine) (err error) {
		switch kind {
		case "memory":
			what, err = m.FlipMemory(rnd)
		case "register":
			what, err = m.FlipRegister(rnd)
		case "device":
			what, err = m.FlipDevice(rnd)
		}
		return err
	})
	if err != nil {
		t.Fatalf("flip a bit of %s: %v", kind, err)
	}
	return what
}

// flipped is what became of the flips of one kind.
type flipped struct {
	dead  int
	after []time.Duration // guest time until each of the others was found
	exits []uint64
}

func (f *flipped) found(after time.Duration, exits uint64) {
	f.after, f.exits = append(f.after, after), append(f.exits, exits)
}

// String says how many were found, and how soon.
func (f *flipped) String() string {
	if f == nil {
		return "none"
	}
	n := len(f.after)
	if n == 0 {
		return fmt.Sprintf("0 found, %d dead", f.dead)
	}
	slices.Sort(f.after)
	slices.Sort(f.exits)
	return fmt.Sprintf("%d found, %d dead; found after %v (median), %v (latest), %d and %d exits",
		n, f.dead, f.after[n/2], f.after[n-1], f.exits[n/2], f.exits[n-1])
}

// TestFlips flips bits of a secondary: in memory, registers, devices and the
// log. Each is found within one cycle of the memory window, or is shown to be
// dead: the whole state is equal then. After each the secondary is repaired by
// a state transfer of what differs, and the primary never stops.
func TestFlips(t *testing.T) {
	sys := kvmtest.Open(t)
	runtime.GOMAXPROCS(4)
	m := bootExercise(t, sys)
	defer m.Close()
	rim := &listener{}
	e := New(m, rim, tcgConfig())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- e.Live(ctx)
		cancel() // else the test would wait for it
	}()
	defer func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the primary ended: %v\nconsole:\n%s", err, rim.tail())
		}
	}()
	await(t, "third round of the guest's", func() bool { return rim.rounds.Load() >= 3 })
	rnd := rand.New(rand.NewPCG(*flipSeed, 1))
	kinds := []string{"memory", "register", "device", "log"}
	results := map[string]*flipped{}
	var memory *mem.Memory
	var sent, pages int
	for n := range *flips {
		kind := kinds[n%len(kinds)]
		r, seed := protect(ctx, t, e, exerciseMachine(t, sys, memory), memory)
		if memory != nil {
			sent, pages = sent+seed.Pages, pages+m.Memory.Pages()
		}
		if err := r.until(t, awaitLimit, "verified log", func() bool { return r.e.Stats.Verified.Load() > 0 }); err != nil {
			t.Fatalf("flip %d: before it: %v", n, err)
		}
		// By the primary: a bit of the log may set the replica's clock.
		clock, exits := e.Stats.Clock.Load(), e.Stats.Position.Load()
		what := r.flip(t, kind, rnd)
		rounds := rim.rounds.Load()
		err := r.cycle(t, e)
		took := time.Duration(e.Stats.Clock.Load() - clock)
		x := results[kind]
		if x == nil {
			x = new(flipped)
			results[kind] = x
		}
		if err != nil {
			x.found(took, e.Stats.Position.Load()-exits)
			t.Logf("flip %d, %s: found after %v: %v", n, what, took, err)
		} else if err := same(ctx, t, e, r); err != nil {
			t.Fatalf("flip %d, %s: not found, and not dead: %v", n, what, err)
		} else {
			x.dead++
			t.Logf("flip %d, %s: dead after %v", n, what, took)
		}
		memory = unprotect(ctx, t, e, r)
		await(t, "round of the primary's behind a flip", func() bool { return rim.rounds.Load() > rounds })
	}
	for _, kind := range kinds {
		t.Logf("%s: %v", kind, results[kind])
	}
	t.Logf("%d flips: a repair sends %.1f %% of memory", *flips, 100*float64(sent)/float64(max(1, pages)))
	if memory != nil {
		memory.Close()
	}
}
