package vm

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/lockstep"
)

func TestInboxIsBoundedButForDisks(t *testing.T) {
	var b inbox
	b.init(&doorbell{}, 0)
	for i := range maxQueued {
		if !b.put(event.Entry{Kind: event.Frame}) {
			t.Fatalf("frame %d of %d was refused", i, maxQueued)
		}
	}
	if b.put(event.Entry{Kind: event.Frame}) {
		t.Error("a frame was taken beyond the limit")
	}
	if !b.put(event.Entry{Kind: event.DiskDone}) {
		t.Error("a disk's completion was refused")
	}
	if !b.put(event.Entry{Kind: event.VsockReset}) {
		t.Error("the reset of the vsock was refused")
	}
	if got := len(b.take(0)); got != maxQueued+2 {
		t.Errorf("%d inputs, want %d", got, maxQueued+2)
	}
	if _, waiting := b.waiting(); waiting {
		t.Error("something waits after all was taken")
	}
	if b.put(event.Entry{Kind: event.Frame, Data: make([]byte, maxQueuedBytes+1)}) {
		t.Error("a frame of too many bytes was taken")
	}
}

// TestVsockWaitsForRoom expects that no packet gets past what the device can take, counting those on their way to it.
func TestVsockWaitsForRoom(t *testing.T) {
	var b inbox
	b.init(&doorbell{}, 10)
	packet := func(n int) event.Entry { return event.Entry{Kind: event.Vsock, Data: make([]byte, n)} }
	if !b.put(packet(6)) || b.put(packet(5)) || !b.put(packet(4)) || b.put(packet(1)) {
		t.Error("the queue doesn't hold exactly what the device has room for")
	}
	if !b.put(event.Entry{Kind: event.Frame, Data: make([]byte, 100)}) {
		t.Error("a frame waits for the vsock")
	}
	b.take(13) // the driver has taken 3 bytes; 10 are on their way
	if b.put(packet(4)) || !b.put(packet(3)) {
		t.Error("packets that were taken don't count")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	b.take(3)
	if b.offer(ended, packet(1)) {
		t.Error("a packet was taken without room, after the end")
	}
	came := make(chan bool)
	go func() { came <- b.offer(t.Context(), packet(8)) }()
	for done := false; !done; {
		b.take(8) // again and again, as the loop does
		select {
		case ok := <-came:
			done = true
			if !ok {
				t.Error("a packet was refused although there is room")
			}
		default:
			runtime.Gosched()
		}
	}
}

func TestLag(t *testing.T) {
	l := lagMeter{bell: make(chan struct{}, 1)}
	if l.now() != 0 {
		t.Error("there is a lag before anything was sent")
	}
	begun := time.Now()
	l.sent(10)
	l.ack(9)
	if got := l.now(); got > time.Since(begun) || got == 0 {
		t.Errorf("lag %v, want the age of the batch", got)
	}
	l.ack(10)
	if l.now() != 0 {
		t.Error("there is a lag after all was executed")
	}
	if len(l.bell) != 1 {
		t.Error("nobody is told of acknowledgements")
	}
}

// TestThrottle: acknowledgements that leave the secondary far behind don't end a stop, and something that is to be done does.
func TestThrottle(t *testing.T) {
	e := &Engine{primary: &lockstep.Primary[board.Effect]{}, do: make(chan func(), 1)}
	e.lag.bell = make(chan struct{}, 1)
	e.lag.pace.MaxLag = 30 * time.Millisecond
	e.lag.reset()
	ctx := context.Background()
	if e.throttle(ctx, time.Now()) {
		t.Error("stands still, and nothing is under way")
	}
	begun := time.Now()
	e.lag.pace.Sent(begun.Add(-time.Second), 10)
	e.lag.ack(9)
	if !e.throttle(ctx, begun) || time.Since(begun) < 40*time.Millisecond || e.Stats.Throttled.Load() != 1 {
		t.Errorf("stood for %v, %d times", time.Since(begun), e.Stats.Throttled.Load())
	}
	if !e.standsOn() {
		t.Error("a stop ends by itself")
	}
	e.do <- func() {}
	if e.standsOn() {
		t.Error("stands still although there is something to do")
	}
	<-e.do
	e.lag.ack(10)
	if e.standsOn() {
		t.Error("stands still although the secondary has executed all")
	}
}

func TestFeed(t *testing.T) {
	e := &Engine{}
	e.feed.bell = &e.bell
	var consumed []uint64
	e.AskConsumed(func(lsn uint64) { consumed = append(consumed, lsn) })
	if err := e.Feed(0, []byte{1, 2}); err != nil {
		t.Fatal(err)
	}
	if e.feed.asked() != nil {
		t.Error("all counts as executed while a batch waits")
	}
	if chunks, closed := e.feed.take(); len(chunks) != 1 || closed {
		t.Errorf("%d batches, closed %t", len(chunks), closed)
	}
	if f := e.feed.asked(); f == nil {
		t.Error("nobody is told that all is executed")
	}
	if e.feed.asked() != nil {
		t.Error("somebody is told twice")
	}
	if err := e.Feed(2, make([]byte, maxFeed+1)); !errors.Is(err, ErrBehind) {
		t.Errorf("too much log: %v, want ErrBehind", err)
	}
	e.Consume()
	if err := e.Feed(2, []byte{3}); err != nil {
		t.Error(err)
	}
	if chunks, closed := e.feed.take(); len(chunks) != 0 || !closed {
		t.Errorf("%d batches were taken after the end, closed %t", len(chunks), closed)
	}
}

func TestDelays(t *testing.T) {
	var s Stats
	if m, p := s.Delays(); m != 0 || p != 0 {
		t.Errorf("delays %v, %v of nothing", m, p)
	}
	for i := range 2000 { // more than the ring holds
		s.delay(time.Duration(i))
	}
	if m, p := s.Delays(); m != 2000-512 || p != 2000-1024+1024*99/100 {
		t.Errorf("median %d, 99th percentile %d", m, p)
	}
}
