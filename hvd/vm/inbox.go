package vm

import (
	"context"
	"sync"
	"time"

	"github.com/duet-ft/duet/hvd/event"
)

// maxQueued bounds the inputs that wait, in entries and in bytes.
const (
	maxQueued      = 4096
	maxQueuedBytes = 16 << 20
)

// inbox queues inputs for the loop.
type inbox struct {
	mu    sync.Mutex
	queue []event.Entry
	bytes int
	since time.Time // when the first of the queue came
	bell  *doorbell

	vsock int           // bytes of vsock packets in the queue
	room  int           // what the vsock device can take of them
	taken chan struct{} // rings when the loop has looked at the queue
}

func (b *inbox) init(bell *doorbell, vsockRoom int) {
	b.bell, b.taken, b.room = bell, make(chan struct{}, 1), vsockRoom
}

// fits says whether an input may wait. A disk owes each request one completion,
// and a guest that went live gets one reset of its vsock: these always may. A
// vsock packet may if the device will have room for it.
func (b *inbox) fits(in event.Entry) bool {
	switch in.Kind {
	case event.DiskDone, event.VsockReset:
		return true
	case event.Vsock:
		if b.vsock+len(in.Data) > b.room {
			return false
		}
	}
	return len(b.queue) < maxQueued && b.bytes+len(in.Data) <= maxQueuedBytes
}

func (b *inbox) put(in event.Entry) bool {
	b.mu.Lock()
	if !b.fits(in) {
		b.mu.Unlock()
		return false
	}
	if in.Kind == event.Vsock {
		b.vsock += len(in.Data)
	}
	if len(b.queue) == 0 {
		b.since = time.Now()
	}
	b.queue = append(b.queue, in)
	b.bytes += len(in.Data)
	b.mu.Unlock()
	b.bell.ring()
	return true
}

// offer puts an input, waiting for room until ctx ends. One caller at a time.
func (b *inbox) offer(ctx context.Context, in event.Entry) bool {
	for !b.put(in) {
		select {
		case <-ctx.Done():
			return false
		case <-b.taken:
		}
	}
	return true
}

// take empties the queue. vsockRoom is what the vsock device can take at this
// moment, before it gets the packets of the queue.
func (b *inbox) take(vsockRoom int) []event.Entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.queue
	b.queue, b.bytes = nil, 0
	b.room, b.vsock = vsockRoom-b.vsock, 0
	select {
	case b.taken <- struct{}{}:
	default:
	}
	return q
}

// waiting says since when an input waits.
func (b *inbox) waiting() (time.Time, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.since, len(b.queue) > 0
}
