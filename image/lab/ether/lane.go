package ether

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// laneDepth is how many frames wait in one direction at most; more are dropped, as a switch does. A machine that is
// stopped takes none, and must not hold up the others.
const laneDepth = 2048

// Counters counts the frames of one direction of a port.
type Counters struct {
	// Frames and Bytes were carried.
	Frames, Bytes uint64
	// Dropped were lost because the direction was cut or lossy, or its queue was full.
	Dropped uint64
	// Resets are the TCP segments with RST among those carried.
	Resets uint64
}

// lane carries the frames of one direction, in order, to its sink.
type lane struct {
	queue chan waiting
	sink  func(frame []byte) bool // reports whether the frame was taken
	cut   atomic.Bool
	delay atomic.Int64 // nanoseconds
	loss  atomic.Int64 // frames of a thousand
	only  atomic.Pointer[func(frame []byte) bool]

	frames, bytes, dropped, resets atomic.Uint64

	stop chan struct{}
	done sync.WaitGroup
}

type waiting struct {
	frame []byte
	due   time.Time
}

func newLane(sink func([]byte) bool) *lane {
	l := &lane{queue: make(chan waiting, laneDepth), sink: sink, stop: make(chan struct{})}
	l.done.Add(1)
	go l.run()
	return l
}

// put queues a frame; it never blocks.
func (l *lane) put(frame []byte) {
	if l.cut.Load() || rand.Int64N(1000) < l.loss.Load() {
		l.dropped.Add(1)
		return
	}
	if only := l.only.Load(); only != nil && !(*only)(frame) {
		l.dropped.Add(1)
		return
	}
	w := waiting{frame: frame}
	if d := l.delay.Load(); d > 0 {
		w.due = time.Now().Add(time.Duration(d))
	}
	select {
	case l.queue <- w:
	default:
		l.dropped.Add(1)
	}
}

func (l *lane) run() {
	defer l.done.Done()
	for {
		select {
		case <-l.stop:
			return
		case w := <-l.queue:
			if !l.waitUntil(w.due) {
				return
			}
			// A cut takes what is under way, too.
			if l.cut.Load() || !l.sink(w.frame) {
				l.dropped.Add(1)
				continue
			}
			l.frames.Add(1)
			l.bytes.Add(uint64(len(w.frame)))
			if IsReset(w.frame) {
				l.resets.Add(1)
			}
		}
	}
}

func (l *lane) waitUntil(due time.Time) bool {
	if due.IsZero() {
		return true
	}
	t := time.NewTimer(time.Until(due))
	defer t.Stop()
	select {
	case <-l.stop:
		return false
	case <-t.C:
		return true
	}
}

// drain forgets what is queued.
func (l *lane) drain() {
	for {
		select {
		case <-l.queue:
			l.dropped.Add(1)
		default:
			return
		}
	}
}

func (l *lane) counters() Counters {
	return Counters{l.frames.Load(), l.bytes.Load(), l.dropped.Load(), l.resets.Load()}
}

func (l *lane) close() {
	close(l.stop)
	l.done.Wait()
}
