package vm

import (
	"sync/atomic"
	"time"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/virtio"
)

// unheard are the queues in which the guest adds chains without a notification, for
// the kicker: a guest that runs on and makes no exit would wait for ever.
type unheard struct {
	queues  [32]atomic.Uint64 // address and index as in virtio.Unheard; 0: none
	n       int               // of them in use; the loop's
	scratch []virtio.Unheard  // the loop's

	held  uint64    // the first queue with chains, when last looked at; the kicker's
	since time.Time // and since when
}

// note remembers the queues as they are when the guest is entered.
func (u *unheard) note(b *board.Board) {
	u.scratch = b.Unheard(u.scratch[:0])
	n := min(len(u.scratch), len(u.queues)) // a bus has no more devices
	for i, q := range u.scratch[:n] {
		u.queues[i].Store(q.At<<16 | uint64(q.Index))
	}
	for i := n; i < u.n; i++ {
		u.queues[i].Store(0)
	}
	u.n = n
}

// waiting is a queue with chains in it, or 0. Any goroutine may ask.
func (u *unheard) waiting(m *mem.Memory) uint64 {
	for i := range u.queues {
		q := u.queues[i].Load()
		if q == 0 {
			return 0
		}
		if index, err := m.Uint16(q >> 16); err == nil && index != uint16(q) {
			return q
		}
	}
	return 0
}

// look says since when chains wait, if any do.
func (u *unheard) look(m *mem.Memory, now time.Time) (since time.Time, ok bool) {
	q := u.waiting(m)
	if q != u.held {
		u.held, u.since = q, now
	}
	return u.since, q != 0
}
