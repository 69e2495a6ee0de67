package vm

import (
	"sync"
	"time"

	"github.com/duet-ft/duet/hvd/lockstep"
)

// lagMeter measures how far the secondary's execution is behind, and says when the
// guest is to wait for it.
type lagMeter struct {
	mu   sync.Mutex
	pace lockstep.Pace
	bell chan struct{} // an acknowledgement came, or something is to be done
}

func (l *lagMeter) reset() {
	l.mu.Lock()
	l.pace.Reset()
	l.mu.Unlock()
}

func (l *lagMeter) sent(end uint64) {
	l.mu.Lock()
	l.pace.Sent(time.Now(), end)
	l.mu.Unlock()
}

func (l *lagMeter) ack(executed uint64) {
	l.mu.Lock()
	l.pace.Executed(time.Now(), executed)
	l.mu.Unlock()
	l.ring()
}

// ring wakes a loop that lets the guest stand still.
func (l *lagMeter) ring() {
	select {
	case l.bell <- struct{}{}:
	default:
	}
}

// now is the age of the oldest batch that isn't executed.
func (l *lagMeter) now() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pace.Lag(time.Now())
}

// stop says for how long the guest is to stand still, at most; 0: it runs on.
func (l *lagMeter) stop(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pace.Stop(now)
}

// near says that the guest needn't stand still any more.
func (l *lagMeter) near() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pace.Near(time.Now())
}

// stood says that it runs again.
func (l *lagMeter) stood() {
	l.mu.Lock()
	l.pace.Stood(time.Now())
	l.mu.Unlock()
}
