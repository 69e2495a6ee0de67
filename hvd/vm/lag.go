package vm

import (
	"sync"
	"time"
)

const (
	throttleEvery = 10 * time.Millisecond // the guest runs at least so long between two stops
	maxThrottle   = 50 * time.Millisecond // and stands still so long at most: five sixths of the time
)

// pauseFor is how long a guest stands still, once each throttleEvery, whose
// secondary is behind by lag: from a third of the limit on, as long as it ever
// does. What is measured is the age of what the secondary executes now; what the
// primary makes now will be as old again, times what its secondary is slower. So
// one of half the speed stays within the limit. A pause that grows with the lag
// would find its speed more gently, but comes too late: it overshoots the limit.
func pauseFor(lag, limit time.Duration) time.Duration {
	if lag <= limit/3 {
		return 0
	}
	return maxThrottle
}

// maxSent bounds the batches that are timed one by one; with more on the way,
// new ones count with the last.
const maxSent = 4096

// lagMeter measures how far the secondary's execution is behind.
type lagMeter struct {
	mu      sync.Mutex
	batches []sentBatch
	bell    chan struct{}
}

type sentBatch struct {
	end uint64 // LSN behind it
	at  time.Time
}

func (l *lagMeter) reset() {
	l.mu.Lock()
	l.batches = nil
	l.mu.Unlock()
}

func (l *lagMeter) sent(end uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.batches); n >= maxSent {
		l.batches[n-1].end = end
		return
	}
	l.batches = append(l.batches, sentBatch{end, time.Now()})
}

func (l *lagMeter) ack(executed uint64) {
	l.mu.Lock()
	n := 0
	for n < len(l.batches) && l.batches[n].end <= executed {
		n++
	}
	l.batches = l.batches[n:]
	l.mu.Unlock()
	select {
	case l.bell <- struct{}{}:
	default:
	}
}

// now is the age of the oldest batch that isn't executed.
func (l *lagMeter) now() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.batches) == 0 {
		return 0
	}
	return time.Since(l.batches[0].at)
}
