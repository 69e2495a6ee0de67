package main

import (
	"context"
	"sync"
	"time"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/image/pairlab"
)

// lookEvery is the pause between two looks at the counters of both copies.
const lookEvery = 2 * time.Second

// tally adds up counters over copies that come and go: a copy's counters begin at 0 when it goes live or becomes
// secondary, and end with its host.
type tally struct {
	mu   sync.Mutex
	boot map[string]int // of each host, how many times it was killed
	best map[copyID]api.Counters
}

// copyID tells copies apart.
type copyID struct {
	host  string
	boot  int
	epoch uint64
	live  bool
}

func newTally() *tally {
	return &tally{boot: map[string]int{}, best: map[copyID]api.Counters{}}
}

// see takes in what a host says.
func (t *tally) see(host string, vm api.VM) {
	t.mu.Lock()
	defer t.mu.Unlock()
	id := copyID{host, t.boot[host], vm.Epoch, vm.Live}
	c := t.best[id]
	c.Resyncs = max(c.Resyncs, vm.Counters.Resyncs)
	c.Divergences = max(c.Divergences, vm.Counters.Divergences)
	t.best[id] = c
}

// killed says that a host's copies are gone.
func (t *tally) killed(host string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.boot[host]++
}

// sums are the resyncs that live copies made, and the divergences that any copy found.
func (t *tally) sums() (resyncs, divergences uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, c := range t.best {
		if id.live {
			resyncs += c.Resyncs
		}
		divergences += c.Divergences
	}
	return resyncs, divergences
}

// watch looks at both hosts until ctx ends.
func (t *tally) watch(ctx context.Context, p *pairlab.Pair) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		t.look(ctx, p)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (t *tally) look(ctx context.Context, p *pairlab.Pair) {
	for _, name := range pairlab.Names {
		try, cancel := context.WithTimeout(ctx, lookEvery)
		if vm, err := p.VM(try, name); err == nil { // a host that is dead says nothing
			t.see(name, vm)
		}
		cancel()
	}
}
