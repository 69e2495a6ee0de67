package main

import (
	"context"
	"sync"
	"time"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/image/pairlab"
)

const (
	// lookEvery is the pause between two looks at the counters of both copies.
	lookEvery = 2 * time.Second
	// eventsEvery is how many looks are made for one at the events.
	eventsEvery = 5
	// diverged is the role of a copy whose execution was found to differ (ftlink/pair).
	diverged = "diverged"
)

// tally adds up over copies that come and go: a copy's counters begin at 0 when it goes live or becomes secondary, and
// end with its host. A copy that diverges is thrown away at once, counters and all: so divergences are counted by the
// events that tell of them.
type tally struct {
	mu        sync.Mutex
	boot      map[string]int // of each host, how many times it was killed
	resyncs   map[copyID]uint64
	divergent map[eventID]string // what it said
}

// eventID tells events apart.
type eventID struct {
	host string
	at   int64 // in ns since 1970
}

// copyID tells copies apart.
type copyID struct {
	host  string
	boot  int
	epoch uint64
}

func newTally() *tally {
	return &tally{boot: map[string]int{}, resyncs: map[copyID]uint64{}, divergent: map[eventID]string{}}
}

// see takes in what a host says about the VM. Resyncs are counted where they are made, by the copy that is live.
func (t *tally) see(host string, vm api.VM) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if vm.Live {
		id := copyID{host, t.boot[host], vm.Epoch}
		t.resyncs[id] = max(t.resyncs[id], vm.Counters.Resyncs)
	}
}

// seeEvents takes in what a host says has happened; the same may be told again.
func (t *tally) seeEvents(host string, list []api.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range list {
		if e.Role == diverged {
			t.divergent[eventID{host, e.At.UnixNano()}] = e.What
		}
	}
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
	for _, n := range t.resyncs {
		resyncs += n
	}
	return resyncs, uint64(len(t.divergent))
}

// watch looks at both hosts until ctx ends.
func (t *tally) watch(ctx context.Context, p *pairlab.Pair) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		t.look(ctx, p, n%eventsEvery == 0)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look asks both hosts once. One that is dead says nothing.
func (t *tally) look(ctx context.Context, p *pairlab.Pair, events bool) {
	for _, name := range pairlab.Names {
		try, cancel := context.WithTimeout(ctx, lookEvery)
		if vm, err := p.VM(try, name); err == nil {
			t.see(name, vm)
		}
		if events {
			if list, err := p.API(name).Events(try); err == nil {
				t.seeEvents(name, list)
			}
		}
		cancel()
	}
}
