package vm

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/event"
)

// soakPlan is what a seed makes of a run beside its workload: when inputs
// arrive, how long they may wait, and what else the host and the guest do.
type soakPlan struct {
	Config
	counted string // what is counted, in words

	delayed float64       // the share of inputs that come late
	delay   time.Duration // by how much at the most
	typed   int           // bytes that are typed at once at the most
	busy    time.Duration // the host is busy with something else for so long
	idle    time.Duration // and isn't for so long; 0: never busy
	sleeper string        // a program that only sleeps, at some rate, in the guest; "": none
}

// planOf draws a plan.
func planOf(r *rand.Rand) soakPlan {
	between := func(low, high time.Duration) time.Duration { return low + time.Duration(r.Int64N(int64(high-low))) }
	p := soakPlan{Config: Config{
		Window:     between(300*time.Microsecond, 6*time.Millisecond),
		StopAfter:  between(time.Millisecond, 8*time.Millisecond),
		KickAfter:  between(15*time.Millisecond, 60*time.Millisecond),
		FlushAfter: between(time.Millisecond, 10*time.Millisecond),
	}}
	p.Costs = tcgConfig().Costs
	p.counted, p.Choose = soakTraps(r)
	p.delayed = []float64{0, 0.02, 0.15}[r.IntN(3)]
	p.delay = between(time.Millisecond, 15*time.Millisecond)
	p.typed = 1 + r.IntN(16)
	if r.IntN(2) == 0 {
		p.busy, p.idle = between(time.Millisecond, 10*time.Millisecond), between(5*time.Millisecond, 30*time.Millisecond)
	}
	if r.IntN(2) == 0 {
		p.sleeper = fmt.Sprintf("perl -e 'select undef, undef, undef, %.4f while 1' & ", between(500*time.Microsecond, 30*time.Millisecond).Seconds())
	}
	return p
}

// String names the plan's numbers for people.
func (p soakPlan) String() string {
	s := fmt.Sprintf("window %v, stop after %v, kick after %v, flush after %v, traps %s, %.0f %% of inputs late by at most %v",
		p.Window, p.StopAfter, p.KickAfter, p.FlushAfter, p.counted, 100*p.delayed, p.delay)
	if p.idle > 0 {
		s += fmt.Sprintf(", host busy for %v of %v", p.busy, p.busy+p.idle)
	}
	if p.sleeper != "" {
		s += ", a sleeper in the guest: " + p.sleeper
	}
	return s
}

// load keeps the host busy now and then until ctx ends.
func (p soakPlan) load(ctx context.Context) {
	if p.idle == 0 {
		return
	}
	tick := time.NewTicker(p.busy + p.idle)
	defer tick.Stop()
	for ctx.Err() == nil {
		for begun := time.Now(); time.Since(begun) < p.busy; {
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// soakRim is a testRim whose engine changes from run to run, and whose inputs
// arrive when the plan's random numbers say.
type soakRim struct {
	*testRim

	late    sync.WaitGroup // what is on its way to the engine
	current sync.Mutex
	engine  *Engine // nil between two runs
	plan    soakPlan
	rng     *rand.Rand
}

func newSoakRim(t *testing.T) *soakRim {
	t.Helper()
	r := &soakRim{testRim: newTestRim(t)}
	r.arrive = r.receive
	r.openNetwork(t)
	t.Cleanup(r.close)
	return r
}

// begin has the inputs go to an engine.
func (r *soakRim) begin(e *Engine, plan soakPlan, rng *rand.Rand) {
	r.current.Lock()
	defer r.current.Unlock()
	r.engine, r.plan, r.rng = e, plan, rng
}

// forget forgets what the console said.
func (r *soakRim) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.console = nil
}

// end loses what is on its way.
func (r *soakRim) end() {
	r.current.Lock()
	r.engine = nil
	r.current.Unlock()
	r.late.Wait()
}

// put delivers an input to the present engine, perhaps late.
func (r *soakRim) put(in event.Entry) {
	r.current.Lock()
	defer r.current.Unlock()
	r.deliver(r.engine, in, r.lateness())
}

// lateness draws how late an input comes. The caller holds the lock.
func (r *soakRim) lateness() time.Duration {
	if r.engine == nil || r.rng.Float64() >= r.plan.delayed {
		return 0
	}
	return time.Duration(r.rng.Int64N(int64(r.plan.delay)))
}

// deliver gives e an input after a while, unless e isn't the present engine any
// more then. The caller holds the lock.
func (r *soakRim) deliver(e *Engine, in event.Entry, late time.Duration) {
	if e == nil || r.engine != e {
		return
	}
	if late == 0 {
		e.Input(in)
		return
	}
	r.late.Add(1)
	time.AfterFunc(late, func() {
		defer r.late.Done()
		r.current.Lock()
		defer r.current.Unlock()
		r.deliver(e, in, 0)
	})
}

// receive delivers a frame. One that comes late holds up those behind it, as on
// a wire, but for a few that they overtake.
func (r *soakRim) receive(in event.Entry) {
	r.current.Lock()
	defer r.current.Unlock()
	e, late := r.engine, r.lateness()
	if late > 0 && r.rng.IntN(overtaken) > 0 {
		r.current.Unlock()
		<-time.After(late)
		r.current.Lock()
		late = 0
	}
	r.deliver(e, in, late)
}

// overtaken is one in how many late frames is overtaken.
const overtaken = 16

// Effect implements Rim.
func (r *soakRim) Effect(x board.Effect) {
	if x.Kind != board.DiskRequest {
		r.testRim.Effect(x)
		return
	}
	r.late.Add(1)
	go func() {
		defer r.late.Done()
		r.put(r.serveDisk(x))
	}()
}

// disk returns what the guest has written to its disk so far.
func (r *soakRim) written() map[uint64][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.overlay)
}

// rewrite makes the disk what written returned.
func (r *soakRim) rewrite(w map[uint64][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.overlay = map[uint64][]byte{}
	maps.Copy(r.overlay, w)
}

// say types a line, some bytes at a time.
func (r *soakRim) say(ctx context.Context, line string) error {
	rest := []byte(line + "\r")
	for len(rest) > 0 {
		r.current.Lock()
		e, n := r.engine, min(len(rest), 1+r.rng.IntN(r.plan.typed))
		pause := time.Duration(r.rng.Int64N(int64(r.plan.delay)))
		r.current.Unlock()
		e.Input(event.Entry{Kind: event.Console, Data: rest[:n:n]})
		rest = rest[n:]
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
	return nil
}

// said is what the console said from a place on, which counts from the end if it
// is negative.
func (r *soakRim) said(from int) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if from < 0 {
		from = max(0, len(r.console)+from)
	}
	return string(r.console[min(from, len(r.console)):])
}
