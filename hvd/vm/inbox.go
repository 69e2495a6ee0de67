package vm

import (
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
}

func (b *inbox) put(in event.Entry) bool {
	b.mu.Lock()
	// A disk owes each request one completion; their number is bounded by the
	// guest's queues.
	if in.Kind != event.DiskDone && (len(b.queue) >= maxQueued || b.bytes+len(in.Data) > maxQueuedBytes) {
		b.mu.Unlock()
		return false
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

func (b *inbox) take() []event.Entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.queue
	b.queue, b.bytes = nil, 0
	return q
}

// waiting says since when an input waits.
func (b *inbox) waiting() (time.Time, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.since, len(b.queue) > 0
}
