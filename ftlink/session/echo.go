package session

import (
	"context"
	"encoding/binary"
	"slices"
	"sync"
	"time"
)

const (
	// echoEvery is the time between two echoes while a stream is up.
	echoEvery = 200 * time.Millisecond
	// echoes are how many of the last ones count.
	echoes = 64
	// echoSize is the payload of an echo and its answer, in bytes.
	echoSize = 8
)

// trips times echoes: how long a small message takes from this program to the
// peer's and back. That is what the link gives to programs, with both kernels and
// the waking of a thread on either side, and so what the time that an effect waits
// is to be compared with. The zero value is ready.
type trips struct {
	mu     sync.Mutex
	number uint64 // of the last echo
	asked  time.Time
	times  []time.Duration // a ring
	n      int
}

// ask begins an echo and returns its payload. An older one counts no more.
func (t *trips) ask(now time.Time) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.number++
	t.asked = now
	return binary.LittleEndian.AppendUint64(nil, t.number)
}

// answered takes the payload of an answer.
func (t *trips) answered(payload []byte, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(payload) != echoSize || t.asked.IsZero() || binary.LittleEndian.Uint64(payload) != t.number {
		return
	}
	d := now.Sub(t.asked)
	t.asked = time.Time{}
	if len(t.times) < echoes {
		t.times = append(t.times, d)
	} else {
		t.times[t.n%echoes] = d
	}
	t.n++
}

// median of the last echoes; 0 without any.
func (t *trips) median() time.Duration {
	t.mu.Lock()
	sorted := slices.Clone(t.times)
	t.mu.Unlock()
	if len(sorted) == 0 {
		return 0
	}
	slices.Sort(sorted)
	return sorted[len(sorted)/2]
}

// EchoTime is how long a small message takes over the direct NIC from this program
// to the peer's and back: the median of the last. 0 means that it isn't known.
func (l *Link) EchoTime() time.Duration { return l.trips.median() }

// echo sends echoes on the direct path while a stream is up, until ctx ends.
func (l *Link) echo(ctx context.Context) {
	for ; ctx.Err() == nil; pause(ctx, nil, echoEvery) {
		if l.traffic.up.Load() {
			direct := l.paths[0]
			direct.send(kindEcho, direct.peerAddr(), l.trips.ask(time.Now()))
		}
	}
}
