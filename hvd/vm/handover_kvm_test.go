package vm

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/kvm/kvmtest"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/machine"
)

// side is a copy of a guest whose roles are exchanged within one process.
type side struct {
	m    *machine.Machine
	e    *Engine
	rim  *sideRim
	err  chan error // of the loop that runs
	stop context.CancelFunc
}

// sideRim lets a copy that leads reach the disk that both share. Frames are lost.
type sideRim struct {
	disk  *testRim
	e     *Engine
	under atomic.Int64
}

func (r *sideRim) Effect(x board.Effect) {
	if x.Kind != board.DiskRequest {
		return
	}
	r.under.Add(1)
	go func() {
		defer r.under.Add(-1)
		r.e.Input(r.disk.serveDisk(x))
	}()
}

// lead has the machine run live, by an engine of its own.
func (s *side) lead(ctx context.Context, t *testing.T, disk *testRim, begin func(*Engine) error) {
	t.Helper()
	s.rim = &sideRim{disk: disk}
	s.e = New(s.m, s.rim, tcgConfig())
	s.rim.e = s.e
	if err := begin(s.e); err != nil {
		t.Fatal(err)
	}
	s.err = make(chan error, 1)
	ctx, s.stop = context.WithCancel(ctx)
	e, ended := s.e, s.err
	go func() { ended <- e.Live(ctx) }()
}

// exchange has the two copies change their roles.
func exchange(ctx context.Context, t *testing.T, leads, follows *side) {
	t.Helper()
	ended := make(chan uint64, 1)
	if err := leads.e.Do(ctx, func(*machine.Machine) error {
		return leads.e.Pause(func() bool { return leads.rim.under.Load() == 0 }, func(lsn uint64) { ended <- lsn })
	}); err != nil {
		t.Fatal(err)
	}
	var lsn uint64
	select {
	case lsn = <-ended:
	case err := <-leads.err:
		t.Fatal(err)
	case err := <-follows.err:
		t.Fatal(err)
	}
	await(t, "secondary at the log's end", func() bool { return leads.e.Stats.Verified.Load() >= lsn })
	follows.e.Consume()
	if err := <-follows.err; err != nil {
		t.Fatal(err)
	}
	leads.stop()
	if err := <-leads.err; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	base := leads.m.Base()
	if got := follows.m.Base(); got != base || follows.m.Fingerprint() != leads.m.Fingerprint() {
		t.Fatalf("the secondary is at %+v (%x), the primary at %+v (%x)", got, follows.m.Fingerprint(), base, leads.m.Fingerprint())
	}
	if n := len(follows.m.Board.PendingDisk()); n > 0 {
		t.Fatalf("%d disk requests are under way", n)
	}
	next := New(leads.m, discard{}, tcgConfig())
	follows.lead(ctx, t, leads.rim.disk, func(e *Engine) error {
		return e.Lead(func(lsn uint64, batch []byte) { _ = next.Feed(lsn, batch) }, false)
	})
	leads.e, leads.err = next, make(chan error, 1)
	ack := follows.e.Ack
	replayed := leads.err
	go func() {
		replayed <- next.Replay(ctx, base, func(received, verified uint64) {
			if err := ack(received, verified); err != nil {
				t.Error(err)
			}
		})
	}()
}

// TestSwitchover has a guest that boots change between two machines again and
// again, without a state transfer but the first. In the end all is equal.
func TestSwitchover(t *testing.T) {
	sys := kvmtest.Open(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	disk := newTestRim(t)
	a, b := &side{m: bootDebian(t, sys)}, &side{}
	a.lead(ctx, t, disk, func(*Engine) error { return nil })
	await(t, "boot", func() bool { return a.e.Stats.Exits.Load() > 2000 })
	var err error
	if b.m, err = machine.New(sys, guestConfig(t)); err != nil {
		t.Fatal(err)
	}
	r, _ := protect(ctx, t, a.e, b.m, nil)
	b.e, b.err = r.e, r.err
	leads, follows := a, b
	const times, between = 8, 4000 // exits
	for range times {
		from := leads.e.Stats.Exits.Load()
		leads.progress(t, follows, from+between)
		exchange(ctx, t, leads, follows)
		leads, follows = follows, leads
	}
	leads.progress(t, follows, leads.e.Stats.Exits.Load()+between)
	if err := same(ctx, t, leads.e, &replica{m: follows.m, e: follows.e, err: follows.err}); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d switchovers, to exit %d; %d resyncs since the last", times, leads.e.Stats.Position.Load(), leads.e.Stats.Resyncs.Load())
}

// progress waits until the guest has made so many exits.
func (s *side) progress(t *testing.T, other *side, exits uint64) {
	t.Helper()
	if err := (&replica{err: other.err}).until(t, awaitLimit, "progress", func() bool { return s.e.Stats.Exits.Load() >= exits }); err != nil {
		t.Fatal(err)
	}
}

// TestPauseNeedsSecondary: a guest that runs alone can't be handed over.
func TestPauseNeedsSecondary(t *testing.T) {
	e := &Engine{}
	if err := e.Pause(nil, nil); err == nil {
		t.Error("a guest without a log was paused")
	}
	e.primary = &lockstep.Primary[board.Effect]{}
	if err := e.Pause(nil, nil); err == nil {
		t.Error("a guest whose log is only recorded was paused")
	}
}
