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
)

// lagging is the fault of a secondary that is stuck, to be stepped with.
func (p *Process) lagging() (pair.Faulted, bool) {
	g := p.guest
	if g == nil || g.engine == nil || !p.pair.Role().Live() {
		return pair.Faulted{}, false
	}
	return pair.Faulted{Fault: pair.Lagging}, p.laggard.Stuck(time.Now(), g.engine.Lag())
}
