//go:build faultinject

package machine

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/transfer"
)

var (
	toyFlips = flag.Int("toyflips", 1000, "how many bits TestToyFlips flips")
	toySeed  = flag.Uint64("toyseed", 1, "which ones")
)

var flipKinds = []string{"memory", "register", "device", "log"}

// couple is a toy with its replica.
type couple struct {
	inputs *rand.Rand // what the primary gets
	p      lockstep.Primary[uint64]
	s      lockstep.Secondary[uint64]
	gate   lockstep.Gate[uint64]
	here   *toy
	there  *toy
	n      int               // inputs so far
	left   int               // effects that have left, since the log began
	spoil  func([]byte) bool // flips a bit of a batch on its way to the replica
}

// input gives the primary an input, and lets it run to some exits.
func (c *couple) input() error {
	c.n++
	r := c.inputs
	e := event.Entry{Kind: event.Time, Now: c.here.clock + r.Uint64N(1_000_000)}
	switch r.IntN(6) {
	case 0:
		e = event.Entry{Kind: event.Console, Data: []byte{byte(r.Uint32()), byte(r.Uint32())}}
	case 1:
		e = event.Entry{Kind: event.Frame, Data: make([]byte, 60)}
	case 2:
		if d, armed := c.here.board.Deadline(); armed && d < e.Now {
			e = event.Entry{Kind: event.Deadline}
		}
	}
	if err := c.p.Input(e); err != nil {
		return err
	}
	if c.here.digestDue() {
		d, err := c.here.digest()
		if err == nil {
			err = c.p.Input(event.Entry{Kind: event.Digest, Data: d})
		}
		if err != nil {
			return err
		}
	}
	for range 1 + r.IntN(4) {
		stop := lockstep.Free
		if r.IntN(2) == 0 {
			stop = c.here.traps + 1 + r.Uint64N(8)
		}
		_, effects, lsn, err := c.p.Run(stop)
		if err != nil {
			return err
		}
		for _, e := range effects {
			c.gate.Push(lsn, e)
		}
	}
	c.p.Mark()
	return nil
}

// send brings the log to the replica, which executes it, and lets go what it has
// verified: those must be effects that the replica makes itself.
func (c *couple) send() error {
	lsn, batch := c.p.Log.Take()
	if c.spoil != nil && c.spoil(batch) {
		c.spoil = nil
	}
	err := c.s.Log.Feed(lsn, batch)
	for do := lockstep.Run; err == nil && do != lockstep.Wait; {
		do, err = c.s.Step()
	}
	c.gate.Ack(lsn, c.s.Verified())
	for _, e := range c.gate.Release() {
		if c.left >= len(c.there.made) || c.there.made[c.left] != e {
			return fmt.Errorf("%w: effect %d", errLeft, c.left)
		}
		c.left++
	}
	return err
}

var errLeft = errors.New("an effect has left that the replica doesn't make")

// protect makes a replica on memory, with the pages whose hashes differ, and says
// how many these are.
func (c *couple) protect(memory *mem.Memory, salt uint64) (sent []int, err error) {
	if c.there, err = newToy(memory, c.inputs); err != nil {
		return nil, err
	}
	for p := range toyPages {
		if transfer.SumOf(memory.Page(p), salt) != transfer.SumOf(c.here.memory.Page(p), salt) {
			copy(memory.Page(p), c.here.memory.Page(p))
			sent = append(sent, p)
		}
	}
	c.here.begin()
	if err := c.there.restore(c.here); err != nil {
		return nil, err
	}
	c.there.begin()
	base := c.here.base()
	c.p = lockstep.Primary[uint64]{Machine: c.here, Log: lockstep.NewRecorder(base)}
	c.s = lockstep.Secondary[uint64]{Machine: c.there, Log: lockstep.NewReplayer(base)}
	c.gate.Set(lockstep.Open) // what is held leaves when the replica is dropped
	c.gate.Release()
	c.gate = lockstep.Gate[uint64]{}
	c.gate.Set(lockstep.Acked)
	c.left, c.spoil = 0, nil
	return sent, nil
}

// cycle lets the primary run until the window has compared all of its memory.
// It says how the replica was found to differ, if it was; nil: it executed all of
// the log, and could go live.
func (c *couple) cycle() (found, err error) {
	// What was passed before the flip, all pages, and those up to the next digest.
	limit := c.here.window.compared + uint64(c.here.window.pages+toyPages) + uint64(toyPages*toyDigest/toyCycle)
	for c.here.window.compared < limit || c.spoil != nil {
		if err := c.input(); err != nil {
			return nil, err
		}
		if found = c.send(); found != nil {
			return found, nil
		}
	}
	if c.s.Verified() != c.p.Log.LSN() {
		return fmt.Errorf("stuck: verified %d of %d", c.s.Verified(), c.p.Log.LSN()), nil
	}
	return nil, nil
}

// flip flips a bit of the replica.
func (c *couple) flip(kind string, r *rand.Rand) (what string, err error) {
	t := c.there
	switch kind {
	case "memory":
		return flipMemory(t.memory, r), nil
	case "register":
		n, bit := r.IntN(len(t.regs)+1), r.IntN(64)
		if n == len(t.regs) {
			t.pc ^= 1 << bit
		} else {
			t.regs[n] ^= 1 << bit
		}
		return fmt.Sprintf("bit %d of register %d", bit, n), nil
	case "device":
		return flipDevice(t.board, r)
	}
	after := r.IntN(8)
	c.spoil = func(b []byte) bool {
		if after--; after >= 0 || len(b) == 0 {
			return false
		}
		bit := r.IntN(8 * len(b))
		b[bit/8] ^= 1 << (bit % 8)
		return true
	}
	return "a bit of the log", nil
}

// same says whether both copies are equal in all they have.
func (c *couple) same() (bool, error) {
	a, err := c.here.whole()
	if err != nil {
		return false, err
	}
	b, err := c.there.whole()
	return a == b, err
}

// differ are the pages in which two memories differ.
func differ(a, b *mem.Memory) (pages []int) {
	for p := range a.Pages() {
		if !slices.Equal(a.Page(p), b.Page(p)) {
			pages = append(pages, p)
		}
	}
	return pages
}

// TestToyFlips flips bits of a replica: in memory, registers, devices and the log.
// Each is found within one cycle of the memory window, or is dead: the whole state
// is equal then. So no copy that differs comes to the log's end, from where it
// would go live, and no effect leaves that the replica doesn't make itself. A
// repair by hashes sends just the pages that differ, and the primary runs all the
// while as if alone. TestFlips of hvd/vm does that with a real machine.
func TestToyFlips(t *testing.T) {
	r := rand.New(rand.NewPCG(*toySeed, 1))
	c := newCouple(t)
	memory, err := mem.New(toyPages * mem.PageSize)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	found, dead := map[string]int{}, map[string]int{}
	sent := 0
	for n := range *toyFlips {
		want := differ(memory, c.here.memory)
		pages, err := c.protect(memory, r.Uint64())
		if err != nil || !slices.Equal(pages, want) {
			t.Fatalf("flip %d: pages %v differ, the repair sent %v: %v", n, want, pages, err)
		}
		if n > 0 {
			sent += len(pages)
		}
		for range r.IntN(20) {
			if err := errors.Join(c.input(), c.send()); err != nil {
				t.Fatalf("flip %d: before it: %v", n, err)
			}
		}
		kind := flipKinds[n%len(flipKinds)]
		what, err := c.flip(kind, r)
		if err != nil {
			t.Fatalf("flip %d: %v", n, err)
		}
		saw, err := c.cycle()
		if err != nil || errors.Is(saw, errLeft) {
			t.Fatalf("flip %d, %s: %v", n, what, errors.Join(err, saw))
		}
		equal, err := c.same()
		switch {
		case err != nil:
			t.Fatal(err)
		case saw != nil:
			found[kind]++
		case equal:
			dead[kind]++
		default:
			t.Fatalf("flip %d, %s: not found, and not dead", n, what)
		}
	}
	for _, k := range flipKinds {
		t.Logf("%s: %d found, %d dead", k, found[k], dead[k])
		if *toyFlips >= 400 && found[k] == 0 {
			t.Errorf("no flip of %s was found", k)
		}
	}
	t.Logf("a repair sent %.1f pages of %d", float64(sent)/float64(max(1, *toyFlips-1)), toyPages)
	c.alone(t)
}

// alone runs another toy without a replica, with the same inputs.
func (c *couple) alone(t *testing.T) {
	t.Helper()
	other := newCouple(t)
	other.p = lockstep.Primary[uint64]{Machine: other.here, Log: lockstep.NewRecorder(other.here.base())}
	for other.n < c.n {
		if err := other.input(); err != nil {
			t.Fatal(err)
		}
		other.p.Log.Take()
	}
	a, err := c.here.whole()
	b, e := other.here.whole()
	if a != b || err != nil || e != nil {
		t.Errorf("after %d inputs the primary isn't what it is without a secondary: %v", c.n, errors.Join(err, e))
	}
}

func newCouple(t *testing.T) *couple {
	t.Helper()
	c := &couple{inputs: rand.New(rand.NewPCG(*toySeed, 2))}
	var err error
	if c.here, err = newToy(nil, c.inputs); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.here.memory.Close() })
	return c
}
