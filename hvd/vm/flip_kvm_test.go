//go:build faultinject

package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/boot"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/transfer"
)

var (
	flips    = flag.Int("flips", 12, "how many bits TestFlips flips")
	flipSeed = flag.Uint64("flipseed", 1, "which ones")
)

// The small guest of TestFlips: our kernel with image/exercise as its initramfs.
const (
	exerciseMemory = 96 << 20
	exerciseKernel = "/guest.vmlinuz"
	exerciseInitrd = "/guest.initrd"

	// Both are seconds on a real host; a test has no minute for each flip.
	flipCycle  = 2 * time.Second
	flipDigest = 200 * time.Millisecond
)

func exerciseMachine(t testing.TB, sys *kvm.System, memory *mem.Memory) *machine.Machine {
	t.Helper()
	m, err := machine.New(sys, machine.Config{
		MemoryBytes: exerciseMemory, Memory: memory,
		Board: board.Config{MAC: guestMAC, CID: 3, Wall: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)},
		Traps: kvm.FlagCR3 | kvm.FlagPF, SweepCycle: flipCycle, DigestEvery: flipDigest,
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// bootExercise makes a machine that stands at the small guest's first
// instruction.
func bootExercise(t testing.TB, sys *kvm.System) *machine.Machine {
	t.Helper()
	var img boot.Image
	var err error
	if img.Kernel, err = os.ReadFile(exerciseKernel); err != nil {
		t.Skip("needs a host with the small guest (image/boottest runs this test in one): ", err)
	}
	if img.Initrd, err = os.ReadFile(exerciseInitrd); err != nil {
		t.Fatal(err)
	}
	img.Root = "root=/dev/ram0"
	m := exerciseMachine(t, sys, nil)
	entry, err := boot.Load(m.Memory, &img, boot.Options{Seed: [32]byte{1}, Quiet: !*loud})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Boot(entry); err != nil {
		t.Fatal(err)
	}
	return m
}

// listener is a rim without disk and network: it counts the guest's rounds.
type listener struct {
	mu     sync.Mutex
	text   []byte
	rounds atomic.Uint64
}

func (l *listener) Effect(x board.Effect) {
	if x.Kind != board.Console {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, x.Data...)
	l.rounds.Add(uint64(bytes.Count(x.Data, []byte("\n"))))
	if n := len(l.text); n > 1<<16 {
		l.text = l.text[n-1<<15:]
	}
}

func (l *listener) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text[max(0, len(l.text)-2000):])
}

// replica is a secondary in the same process as its primary.
type replica struct {
	m     *machine.Machine
	e     *Engine
	base  event.Base
	state []byte
	err   chan error // of Replay

	mu      sync.Mutex
	waiting [][]byte // log that came before the state did
	first   uint64
	corrupt func([]byte) []byte // of the next batch, or nil
}

// Pages takes memory; Sink.
func (r *replica) Pages(pages []int, page func(int) []byte) error {
	for _, p := range pages {
		copy(r.m.Memory.Page(p), page(p))
	}
	return nil
}

// Snapshot takes the rest; Sink.
func (r *replica) Snapshot(s *machine.Snapshot, base event.Base) (err error) {
	r.base = base
	r.state, err = json.Marshal(s)
	return err
}

// log takes a batch of the log.
func (r *replica) log(lsn uint64, batch []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.corrupt; c != nil {
		r.corrupt = nil
		batch = c(bytes.Clone(batch))
	}
	if r.e == nil {
		if r.waiting == nil {
			r.first = lsn
		}
		r.waiting = append(r.waiting, batch)
		return
	}
	_ = r.e.Feed(lsn, batch)
}

// protect seeds a replica on memory, what is left of the last one, and starts
// it.
func protect(ctx context.Context, t *testing.T, sys *kvm.System, e *Engine, memory *mem.Memory) (*replica, SeedStats) {
	t.Helper()
	r := &replica{m: exerciseMachine(t, sys, memory), err: make(chan error, 1)}
	if err := r.m.Track(); err != nil {
		t.Fatal(err)
	}
	var known func(int, []byte) bool
	if memory != nil {
		known = func(p int, content []byte) bool {
			return transfer.SumOf(r.m.Memory.Page(p), 5) == transfer.SumOf(content, 5)
		}
	}
	stats, err := e.Seed(ctx, r, known, r.log)
	if err != nil {
		t.Fatal(err)
	}
	var s machine.Snapshot
	if err := json.Unmarshal(r.state, &s); err != nil {
		t.Fatal(err)
	}
	if err := r.m.Restore(&s); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	r.e = New(r.m, discard{}, tcgConfig())
	lsn := r.first
	for _, b := range r.waiting {
		if err := r.e.Feed(lsn, b); err != nil {
			t.Fatal(err)
		}
		lsn += uint64(len(b))
	}
	r.mu.Unlock()
	go func() {
		r.err <- r.e.Replay(ctx, r.base, func(received, verified uint64) {
			if err := e.Ack(received, verified); err != nil {
				t.Error(err)
			}
		})
	}()
	if err := e.Do(ctx, func(*machine.Machine) error {
		_, err := e.Gate(lockstep.Acked)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return r, stats
}

// until waits for a condition; the replica's end is its failure.
func (r *replica) until(t *testing.T, what string, cond func() bool) error {
	t.Helper()
	for begun := time.Now(); !cond(); runtime.Gosched() {
		select {
		case err := <-r.err:
			return err
		default:
		}
		if time.Since(begun) > 2*time.Minute {
			t.Fatalf("no %s in two minutes", what)
		}
	}
	return nil
}

// cycle waits until all that a digest holds has been compared.
func (r *replica) cycle(t *testing.T) error {
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
	for compared() < limit {
		select {
		case err := <-ended:
			return err
		default:
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

// same stops both copies at one position and compares all of their state.
func same(ctx context.Context, t *testing.T, e *Engine, r *replica) error {
	t.Helper()
	return e.Do(ctx, func(m *machine.Machine) error {
		if err := e.flush(true); err != nil {
			return err
		}
		r.e.Consume()
		if err := <-r.err; err != nil {
			return err
		}
		want, err := m.Snapshot()
		if err != nil {
			return err
		}
		got, err := r.m.Snapshot()
		if err != nil {
			return err
		}
		a, b := fmt.Sprintf("%x %+v %s", want.CPU, want.Counters, want.Board), fmt.Sprintf("%x %+v %s", got.CPU, got.Counters, got.Board)
		if want.Position != got.Position || a != b {
			return fmt.Errorf("at exit %d and %d the state differs:\n%s\n%s", want.Position, got.Position, a, b)
		}
		for p := range m.Memory.Pages() {
			if m.Memory.HashPage(p) != r.m.Memory.HashPage(p) {
				return fmt.Errorf("page %#x differs", p)
			}
		}
		return nil
	})
}

// TestFlips flips bits of a secondary: in memory, registers, devices and the
// log. Each is found within one cycle of the memory window, or is shown to be
// dead: the whole state is equal then. After each the secondary is repaired by
// a state transfer of what differs, and the primary never stops.
func TestFlips(t *testing.T) {
	sys := duetKVM(t)
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
	for begun := time.Now(); rim.rounds.Load() < 3; runtime.Gosched() {
		if time.Since(begun) > 2*time.Minute {
			t.Fatalf("the guest doesn't come up\nconsole:\n%s", rim.tail())
		}
	}
	rnd := rand.New(rand.NewPCG(*flipSeed, 1))
	kinds := []string{"memory", "register", "device", "log"}
	found, dead := map[string]int{}, map[string]int{}
	var memory *mem.Memory
	var sent, pages int
	for n := range *flips {
		kind := kinds[n%len(kinds)]
		r, seed := protect(ctx, t, sys, e, memory)
		if memory != nil {
			sent, pages = sent+seed.Pages, pages+m.Memory.Pages()
		}
		if err := r.until(t, "verified log", func() bool { return r.e.Stats.Verified.Load() > 0 }); err != nil {
			t.Fatalf("flip %d: before it: %v", n, err)
		}
		clock := r.e.Stats.Clock.Load()
		what := r.flip(t, kind, rnd)
		rounds := rim.rounds.Load()
		err := r.cycle(t)
		took := time.Duration(r.e.Stats.Clock.Load() - clock)
		if err != nil {
			found[kind]++
			t.Logf("flip %d, %s: found after %v: %v", n, what, took, err)
		} else if err := same(ctx, t, e, r); err != nil {
			t.Fatalf("flip %d, %s: not found, and not dead: %v", n, what, err)
		} else {
			dead[kind]++
			t.Logf("flip %d, %s: dead after %v", n, what, took)
		}
		if err := e.Do(ctx, func(*machine.Machine) error {
			if _, err := e.Gate(lockstep.Open); err != nil {
				return err
			}
			return e.EndLog()
		}); err != nil {
			t.Fatal(err)
		}
		if memory, err = r.m.CloseButMemory(); err != nil {
			t.Fatal(err)
		}
		for begun := time.Now(); rim.rounds.Load() == rounds; runtime.Gosched() {
			if time.Since(begun) > time.Minute {
				t.Fatalf("flip %d, %s: the primary makes no round\nconsole:\n%s", n, what, rim.tail())
			}
		}
	}
	t.Logf("%d flips: found %v, dead %v; a repair sends %.1f %% of memory", *flips, found, dead, 100*float64(sent)/float64(max(1, pages)))
	if memory != nil {
		memory.Close()
	}
}
