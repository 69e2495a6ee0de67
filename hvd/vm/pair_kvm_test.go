package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/transfer"
)

// replica is a secondary in the same process as its primary.
type replica struct {
	m     *machine.Machine
	e     *Engine
	base  event.Base
	state []byte
	err   chan error // of Replay
	halt  context.CancelFunc

	mu      sync.Mutex
	waiting [][]byte // log that came before the state did
	first   uint64
	corrupt func([]byte) []byte // of the next batch, or nil
	source  Source              // what the log refers to; nil: it refers to nothing
	rim     Rim                 // once it is live; nil: it won't be
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

// protect seeds m as e's replica, on memory that holds what is left of the last
// one or is nil, and starts it.
func protect(ctx context.Context, t *testing.T, e *Engine, m *machine.Machine, memory *mem.Memory) (*replica, SeedStats) {
	t.Helper()
	r := &replica{m: m, err: make(chan error, 1)}
	return r, r.protect(ctx, t, e, memory)
}

func (r *replica) protect(ctx context.Context, t *testing.T, e *Engine, memory *mem.Memory) SeedStats {
	t.Helper()
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
	rim := r.rim
	if rim == nil {
		rim = discard{}
	}
	r.e = New(r.m, rim, tcgConfig())
	if r.source != nil {
		r.e.Follow(ctx, r.base, r.source)
	}
	lsn := r.first
	for _, b := range r.waiting {
		if err := r.e.Feed(lsn, b); err != nil {
			t.Fatal(err)
		}
		lsn += uint64(len(b))
	}
	r.mu.Unlock()
	follow, halt := context.WithCancel(ctx)
	r.halt = halt
	go func() {
		defer halt()
		r.err <- r.e.Replay(follow, r.base, func(received, verified uint64) {
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
	return stats
}

// until waits for a condition; the replica's end is its failure.
func (r *replica) until(t *testing.T, limit time.Duration, what string, cond func() bool) error {
	t.Helper()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	late := time.After(limit)
	for !cond() {
		select {
		case err := <-r.err:
			return err
		case <-look.C:
		case <-late:
			t.Fatalf("no %s in %v", what, limit)
		}
	}
	return nil
}

// await waits for a condition.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	_ = new(replica).until(t, awaitLimit, what, cond) // which can't end
}

const (
	lookEvery  = 5 * time.Millisecond // a loop without rest would take the guest's time
	awaitLimit = 2 * time.Minute
)

// unprotect drops a replica that has ended and returns its memory. The primary
// goes on alone, and what it did leaves.
func unprotect(ctx context.Context, t *testing.T, e *Engine, r *replica) *mem.Memory {
	t.Helper()
	if err := e.Do(ctx, func(*machine.Machine) error {
		if _, err := e.Gate(lockstep.Open); err != nil {
			return err
		}
		return e.EndLog()
	}); err != nil {
		t.Fatal(err)
	}
	memory, err := r.m.CloseButMemory()
	if err != nil {
		t.Fatal(err)
	}
	return memory
}

// same stops both copies at one position and compares all of their state.
func same(ctx context.Context, t *testing.T, e *Engine, r *replica) error {
	t.Helper()
	return e.Do(ctx, func(m *machine.Machine) error {
		if err := e.flush(time.Now(), true); err != nil {
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
