package vmproc

import (
	"cmp"
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/duet-ft/duet/ftlink/arbiter"
	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/ftlink/session"
	"github.com/duet-ft/duet/hvd/hostcfg"
	"github.com/duet-ft/duet/hvd/volume"
)

// ears keep what a pulse sends.
type ears struct {
	mu   sync.Mutex
	msgs []pair.Message
	ring chan struct{}
}

func newEars() *ears { return &ears{ring: make(chan struct{}, 1)} }

func (e *ears) hear(payload []byte) error {
	m, err := pair.Decode(payload)
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.msgs = append(e.msgs, m)
	e.mu.Unlock()
	select {
	case e.ring <- struct{}{}:
	default:
	}
	return nil
}

func (e *ears) all() []pair.Message {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]pair.Message{}, e.msgs...)
}

// wait returns what was heard once there are n more messages than now.
func (e *ears) wait(t *testing.T, n int) []pair.Message {
	t.Helper()
	limit := time.After(10 * time.Second)
	for want := len(e.all()) + n; ; {
		if msgs := e.all(); len(msgs) >= want {
			return msgs
		}
		select {
		case <-e.ring:
		case <-limit:
			t.Fatalf("%d messages were heard within 10 s, want %d", len(e.all()), want)
		}
	}
}

var message = pair.Message{VM: pair.UUID{1}, From: 2, Incarnation: 3, Seq: 1, Role: pair.Primary, Epoch: 4}

func TestPulse(t *testing.T) {
	e := newEars()
	start := time.Now()
	p := &pulse{send: e.hear, begun: start}
	step := func(after time.Duration, do func(now time.Time) error, sent int) {
		t.Helper()
		before := len(e.all())
		if err := do(start.Add(after)); err != nil {
			t.Fatal(err)
		}
		if n := len(e.all()) - before; n != sent {
			t.Fatalf("after %v: %d messages, want %d", after, n, sent)
		}
	}
	beat := func(now time.Time) error { return p.beat(message, now) }
	p.turn(start)
	step(0, p.repeat, 0) // there is nothing to say yet
	step(0, beat, 1)
	step(overdue-1, p.repeat, 0)
	step(overdue, p.repeat, 1)
	step(overdue+1, p.repeat, 0)
	step(2*overdue, beat, 1)
	step(vouch, p.repeat, 1)
	step(vouch+overdue, p.repeat, 0) // the loop hangs
	p.turn(start.Add(vouch + overdue))
	step(vouch+overdue, p.repeat, 1)
	for i, m := range e.all() {
		want := message
		want.Seq = uint64(i + 1)
		if m != want {
			t.Errorf("message %d is %+v, want %+v", i, m, want)
		}
	}
	p.send = func([]byte) error { return errors.New("no") }
	if p.repeat(start.Add(vouch+2*overdue)) == nil {
		t.Error("what couldn't be sent isn't told")
	}
}

// The loop's thread stands still while it sends, as one may that waits for its turn
// on the processor: the pulse doesn't wait for it.
func TestPulseWaitsForNobody(t *testing.T) {
	e := newEars()
	start := time.Now()
	p := &pulse{begun: start}
	stuck, release := make(chan struct{}), make(chan struct{})
	var later atomic.Bool
	p.send = func(b []byte) error {
		if !later.Swap(true) {
			close(stuck)
			<-release
		}
		return e.hear(b)
	}
	var both sync.WaitGroup
	defer both.Wait()
	defer close(release)
	both.Go(func() { _ = p.beat(message, start) })
	<-stuck
	both.Go(func() {
		p.turn(start)
		_ = p.repeat(start.Add(overdue))
	})
	if msgs := e.wait(t, 1); msgs[0].Seq != 2 {
		t.Errorf("heard %+v", msgs)
	}
}

// However the loop and the pulse overtake each other, a message is never older
// than one with a lower number.
func TestPulseKeepsOrder(t *testing.T) {
	e := newEars()
	start := time.Now()
	p := &pulse{send: e.hear, begun: start}
	const beats = 2000
	_ = p.beat(message, start)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range beats {
			m := message
			m.Epoch += uint64(i)
			_ = p.beat(m, start)
		}
	}()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
			_ = p.repeat(start.Add(overdue))
		}
	}
	msgs := e.all()
	slices.SortFunc(msgs, func(a, b pair.Message) int { return cmp.Compare(a.Seq, b.Seq) })
	for i, m := range msgs {
		if m.Seq != uint64(i+1) {
			t.Fatalf("message %d has number %d", i, m.Seq)
		}
		if i > 0 && m.Epoch < msgs[i-1].Epoch {
			t.Fatalf("message %d is of epoch %d, the one before of %d", i, m.Epoch, msgs[i-1].Epoch)
		}
	}
}

// A real-time thread of Go's may stop everything else on its processor.
func TestPulseIsNoRealTimeThread(t *testing.T) {
	policy := make(chan uint32, 1)
	now := time.Now()
	p := &pulse{say: func(string) {}, begun: now}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	loop := unix.Gettid()
	p.send = func([]byte) error {
		if unix.Gettid() != loop { // the pulse's own
			attr, err := unix.SchedGetAttr(0, 0)
			if err != nil {
				t.Error(err)
			}
			select {
			case policy <- attr.Policy:
			default:
			}
		}
		return nil
	}
	p.turn(now)
	if err := p.beat(message, now); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { p.run(ctx) })
	defer run.Wait()
	defer cancel()
	select {
	case got := <-policy:
		if got != unix.SCHED_NORMAL {
			t.Errorf("the pulse's thread has scheduling policy %d", got)
		}
	case <-time.After(10 * time.Second):
		t.Error("the pulse says nothing")
	}
}

// The loop waits for something, as for a guest that is being destroyed: the peer
// goes on hearing this copy.
func TestHeartbeatsWhileTheLoopWaits(t *testing.T) {
	e := newEars()
	p := &Process{
		host: &hostcfg.Config{Name: "b"}, def: volume.Definition{Name: "db"}, opt: Options{RunDir: t.TempDir()},
		inputs: make(chan pair.Input, 8), later: make(chan func(context.Context)), begun: time.Now(),
	}
	p.pulse = &pulse{send: e.hear, say: func(string) {}, begun: p.begun}
	vm := pair.UUID{1}
	p.arbiter = &arbiter.Executor{Blocks: volume.NewMemory(8, 512).Session("b"), Size: 512, VM: vm}
	free := pair.Block{VM: vm, Kind: pair.Free, Epoch: 1, Nonce: pair.Nonce{Incarnation: 1, N: 1}}
	_, err := p.arbiter.Blocks.CompareAndWrite(t.Context(), 0, make([]byte, 512), arbiter.Encode(free, 512))
	if err != nil {
		t.Fatal(err)
	}
	if p.pair, err = pair.New(pair.Config{Self: 1, Peer: 2, VM: vm, Heartbeat: heartbeat}, 3); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var both sync.WaitGroup
	both.Go(func() { p.pulse.run(ctx) })
	both.Go(func() { _ = p.loop(ctx) })
	defer both.Wait()
	defer cancel()
	e.wait(t, 2)
	waits, release := make(chan int), make(chan struct{})
	defer close(release)
	p.later <- func(context.Context) {
		waits <- len(e.all())
		<-release
	}
	begin := <-waits
	const more = 5
	msgs := e.wait(t, more)
	for i := 1; i < len(msgs); i++ {
		same := msgs[i]
		same.Seq = msgs[i-1].Seq
		if msgs[i].Seq != uint64(i+1) || i > begin && same != msgs[i-1] {
			t.Errorf("message %d: %+v, before it %+v", i, msgs[i], msgs[i-1])
		}
	}
}

// While the loop waits, heartbeats from the peer never fill its queue: what it
// posts itself would wait for itself.
func TestHeartbeatsLeaveRoom(t *testing.T) {
	p := &Process{inputs: make(chan pair.Input, 64)}
	for range 2 * cap(p.inputs) {
		(*handler)(p).Heartbeat(session.Direct, message.Encode())
	}
	if n := len(p.inputs); n == 0 || n > cap(p.inputs)/2+1 {
		t.Errorf("%d heartbeats wait in a queue of %d", n, cap(p.inputs))
	}
}

// A host that stood still says so.
func TestPulseTellsOfItsOwnStandstill(t *testing.T) {
	e := newEars()
	ctx, cancel := context.WithCancel(t.Context())
	said := make(chan string, 1)
	stuck := make(chan struct{})
	p := &pulse{say: func(l string) { said <- l }, begun: time.Now()}
	p.send = func(b []byte) error {
		if len(e.all()) == 1 { // the pulse's own thread is late
			time.AfterFunc(2*stoodStill, func() { close(stuck) })
			<-stuck
		}
		return e.hear(b)
	}
	now := time.Now()
	p.turn(now)
	if err := p.beat(message, now); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.run(ctx)
	}()
	select {
	case l := <-said:
		if !strings.HasPrefix(l, "this host stood still for ") {
			t.Errorf("%q", l)
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing was said")
	}
	cancel()
	<-done
}
