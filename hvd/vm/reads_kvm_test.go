package vm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/kvm/kvmtest"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/virtio/blk"
)

// The small guest's disk.
const exerciseSectors = 4096

// sharedDisk is a volume that two hosts reach. Its requests take as long as they
// like and overtake each other.
type sharedDisk struct {
	mu   sync.Mutex
	data []byte
}

func (d *sharedDisk) do(f func(data []byte)) {
	<-time.After(rand.N(4 * time.Millisecond)) // what a volume takes
	d.mu.Lock()
	defer d.mu.Unlock()
	f(d.data)
}

// diskRim is a host's rim with that disk.
type diskRim struct {
	listener
	engine  *Engine
	disk    *sharedDisk
	pending sync.WaitGroup
}

func (r *diskRim) Effect(x board.Effect) {
	if x.Kind != board.DiskRequest {
		r.listener.Effect(x)
		return
	}
	r.pending.Add(1)
	go func() {
		defer r.pending.Done()
		done := event.Entry{Kind: event.DiskDone, Disk: x.Disk, ID: x.Request.ID}
		r.disk.do(func(data []byte) {
			at := data[x.Request.Sector*blk.SectorSize:]
			if x.Request.Op == blk.OpRead {
				done.Data = append(done.Data, at[:x.Request.Len]...)
			} else {
				copy(at, x.Request.Data)
			}
		})
		r.engine.Input(done)
	}()
}

// said is how many pieces of work the guest says that its disk has done.
func (r *diskRim) said() (n int) {
	for line := range strings.Lines(r.tail()) {
		k := 0
		if _, err := fmt.Sscanf(line, "disk %d", &k); err == nil {
			n = max(n, k)
		}
	}
	return n
}

// diskSource reads the shared disk for a replica, fails now and then, and asks
// the primary.
type diskSource struct {
	t       *testing.T
	disk    *sharedDisk
	primary *Engine
	replica *replica
	down    atomic.Bool // neither volume nor primary answer
	asked   atomic.Uint64
}

var errDown = errors.New("no path to the volume")

func (s *diskSource) ReadDisk(_ context.Context, _ int, sector uint64, p []byte) error {
	if s.down.Load() || rand.IntN(100) == 0 {
		return errDown
	}
	s.disk.do(func(data []byte) { copy(p, data[sector*blk.SectorSize:]) })
	return nil
}

func (s *diskSource) Ask(disk int, id uint64, why error) {
	s.asked.Add(1)
	if errors.Is(why, ErrOtherBytes) {
		s.t.Errorf("request %d: %v", id, why)
	}
	if s.down.Load() {
		return
	}
	data, ok := s.primary.Referred(disk, id)
	if !ok {
		s.t.Errorf("the primary has forgotten request %d", id)
		return
	}
	if err := s.replica.e.Give(disk, id, data); err != nil {
		s.t.Error(err)
	}
}

func (s *diskSource) Holds(lsn uint64) {
	if err := s.primary.Ack(lsn, 0); err != nil {
		s.t.Error(err)
	}
}

// TestReferences protects a guest that reads and writes the same sectors across
// each other. Its secondary reads from the same disk, at times of its own, what
// the log refers to: all of both is equal in the end. Then it loses the volume and
// its primary while it waits for such a read, and goes live.
func TestReferences(t *testing.T) {
	for level, name := range map[lockstep.Level]string{lockstep.Verified: "verified", lockstep.Received: "received"} {
		t.Run(name, func(t *testing.T) { references(t, level) })
	}
}

func references(t *testing.T, level lockstep.Level) {
	sys := kvmtest.Open(t)
	runtime.GOMAXPROCS(4)
	spec := board.Disk{Sectors: exerciseSectors, Serial: "shared"}
	disk := &sharedDisk{data: make([]byte, exerciseSectors*blk.SectorSize)}
	cfg := tcgConfig()
	cfg.Level, cfg.SharedDisks = level, true
	rim := &diskRim{disk: disk}
	m := bootExercise(t, sys, spec)
	defer m.Close()
	e := New(m, rim, cfg)
	rim.engine = e
	ctx := t.Context()
	live, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- e.Live(live) }()
	defer stop()
	await(t, "disk work", func() bool { return rim.said() >= 100 })
	follow := func(memory *mem.Memory) (*replica, *diskSource) {
		r := &replica{m: exerciseMachine(t, sys, memory, spec), err: make(chan error, 1)}
		source := &diskSource{t: t, disk: disk, primary: e, replica: r}
		later := &diskRim{disk: disk}
		r.source, r.rim = source, later
		r.protect(ctx, t, e, memory)
		later.engine = r.e
		return r, source
	}

	r, source := follow(nil)
	enough := func() bool { return e.Stats.ReadRefs.Load() >= 400 && source.asked.Load() > 0 }
	if err := r.until(t, awaitLimit, "400 references", enough); err != nil {
		t.Fatal(err)
	}
	if err := same(ctx, t, e, r); err != nil {
		t.Fatal(err)
	}
	reads, refs := e.Stats.Reads.Load(), e.Stats.ReadRefs.Load()
	size := e.Stats.RefLogBytes.Load() / refs
	t.Logf("%d reads of %d bytes of log each, %d by reference of %d bytes, %d of those asked for",
		reads, e.Stats.ReadLogBytes.Load()/reads, refs, size, source.asked.Load())
	if size > 64 {
		t.Error("a reference takes more than 64 bytes")
	}
	if refs == reads {
		t.Error("no read met a write")
	}

	// Once more, and the secondary is left alone.
	r, source = follow(unprotect(ctx, t, e, r))
	defer r.m.Close()
	if err := r.until(t, awaitLimit, "20 references", func() bool { return e.Stats.ReadRefs.Load() >= refs+20 }); err != nil {
		t.Fatal(err)
	}
	source.down.Store(true)
	before := source.asked.Load()
	if err := r.until(t, awaitLimit, "unanswered question", func() bool { return source.asked.Load() > before }); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatalf("the primary ended: %v\nconsole:\n%s", err, rim.tail())
	}
	rim.pending.Wait() // what it sent to the volume has landed
	goesLive(t, r)
}

// goesLive lets a replica that waits for a read go on alone. Its guest would notice
// a lost write, or one that came too late.
func goesLive(t *testing.T, r *replica) {
	t.Helper()
	r.e.Consume()
	if err := <-r.err; err != nil {
		t.Fatalf("the replica ended: %v", err)
	}
	if r.e.Reissue() == 0 {
		t.Error("nothing was reissued, not even the read that it waited for")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.e.Live(ctx) }()
	rim := r.rim.(*diskRim)
	await(t, "disk work after going live", func() bool { return rim.said() > 0 })
	first := rim.said()
	await(t, "more disk work", func() bool { return rim.said() >= first+200 })
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatalf("the guest ended: %v\nconsole:\n%s", err, rim.tail())
	}
	rim.pending.Wait()
	if s := rim.tail(); strings.Contains(s, "exercise:") {
		t.Errorf("the guest complains:\n%s", s)
	}
}
