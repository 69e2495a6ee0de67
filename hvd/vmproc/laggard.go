package vmproc

import (
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
)

const (
	// maxStall is how old the oldest of the log may be that the secondary hasn't
	// executed. A primary slows down long before; what is so late comes from a
	// secondary that is stuck, as one does that diverged into a loop without
	// exits or waits for log that it misread. Effects wait for it all the while.
	maxStall = 5 * time.Second
	// maxStallEmulated is that for an emulated host.
	maxStallEmulated = 30 * time.Second
	// stallFor is how long that must be seen: after a stop of the whole host the
	// acknowledgements come first.
	stallFor = time.Second
)

// laggard finds a secondary that is too far behind.
type laggard struct {
	limit time.Duration
	since time.Time // when it was seen first; zero: it isn't
}

// stuck takes the present lag in, and says that the secondary should be dropped.
func (l *laggard) stuck(now time.Time, lag time.Duration) bool {
	switch {
	case lag <= l.limit:
		l.since = time.Time{}
	case l.since.IsZero():
		l.since = now
	case now.Sub(l.since) >= stallFor:
		l.since = time.Time{} // told; once more a second later
		return true
	}
	return false
}

// lagging is the fault of a secondary that is stuck, to be stepped with.
func (p *Process) lagging() (pair.Faulted, bool) {
	g := p.guest
	if g == nil || g.engine == nil || !p.pair.Role().Live() {
		return pair.Faulted{}, false
	}
	return pair.Faulted{Fault: pair.Lagging}, p.laggard.stuck(time.Now(), g.engine.Lag())
}
