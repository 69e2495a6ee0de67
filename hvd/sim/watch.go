package sim

import (
	"slices"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/lockstep"
)

const (
	watchEvery = 50 * time.Millisecond
	// takeoverBound is how long a copy that could go on may take until it does: three
	// heartbeats until it suspects, what it has yet to execute, which takes up to 300 ms
	// here for a batch, three operations on the volume, and ticks in between.
	takeoverBound = time.Second
)

// watch looks now and then at what no single event shows.
func (w *World) watch() {
	for h, p := range w.hosts {
		if !w.couldGoOn(p) {
			w.able[h] = w.now
		} else if w.now-w.able[h] > takeoverBound {
			w.fail("%v could go on since %v, reaches the volume, and doesn't", p, w.able[h])
		}
	}
	w.after(watchEvery, w.watch)
}

// couldGoOn says that a host has a current copy and reaches the volume, while the VM
// runs nowhere.
func (w *World) couldGoOn(p *process) bool {
	if p == nil || p.paused {
		return false
	}
	if o := w.hosts[1-p.host]; o != nil && !o.paused && o.machine.Role() != pair.Standby {
		return false // it runs, or is heard to have a copy
	}
	v := w.volume
	if v.unreachable[p.host] || v.loseReplies || v.stallUntil[p.host] > w.now {
		return false
	}
	self := pair.HostID(10 + p.host)
	switch b := w.blockNow(); p.machine.Role() {
	case pair.Secondary, pair.Consuming, pair.Claiming:
		return b.Kind == pair.Pair && b.Secondary == self && b.Seed == p.machine.CurrentSeed() && !p.half
	case pair.Fencing:
		return b.Kind == pair.Solo && b.Owner == self
	}
	return false
}

// checkMachine follows what a role machine knows.
func (p *process) checkMachine() {
	epoch := p.machine.Block().Epoch
	if epoch < p.epoch {
		p.w.fail("%v goes back from epoch %d to %d", p, p.epoch, epoch)
	}
	p.epoch = epoch
}

// checkVerified follows an effect that a primary lets go by an acknowledgement. At
// level verified, its secondary has made the same one.
func (w *World) checkVerified(p *process, e effect) {
	o := w.hosts[1-p.host]
	if w.level != lockstep.Verified || p.mode != pair.GateAcked || o == nil || o.replica == nil || o.seed != p.seed || o.half {
		return
	}
	if g := o.guest; e.boot != g.boot || e.n > uint64(len(g.history)) || g.history[e.n-1] != e.hash {
		w.fail("%v lets effect %d go, which %v has not executed with the same outcome", p, e.n, o)
	}
}

// quantile is the value that a part of all values doesn't exceed.
func quantile(values []time.Duration, part float64) time.Duration {
	if len(values) == 0 {
		return 0
	}
	values = slices.Clone(values)
	slices.Sort(values)
	return values[min(len(values)-1, int(part*float64(len(values))))]
}
