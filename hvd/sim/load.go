package sim

import (
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/lockstep"
)

// A guest under load (Options.Speed) does a quantum of work each millisecond; its
// secondary takes longer for each. Everything else costs no time.
const (
	quantum = time.Millisecond
	// maxLag and maxStall are hvd/vm's and hvd/vmproc's.
	maxLag   = 100 * time.Millisecond
	maxStall = 5 * time.Second
)

// load is what a process under load keeps.
type load struct {
	works   func()
	pace    lockstep.Pace
	laggard lockstep.Laggard
	cost    time.Duration // of the batch that is being made
	stands  time.Duration // live: the guest stands still until then; 0: it runs
	busy    time.Duration // secondary: until then

	quanta, stops int
	lags          []time.Duration // at each quantum of a protected guest
}

// wall is the simulated time as package time has it.
func (w *World) wall() time.Time { return time.Unix(0, 0).Add(w.now) }

func (p *process) startLoad() {
	l := &p.load
	l.pace.MaxLag, l.laggard.Limit = maxLag, maxStall
	l.pace.Reset()
	work := p.work
	l.works = func() { p.do(work) }
	p.w.after(quantum, l.works)
}

// work is a quantum of the live guest, or of standing still.
func (p *process) work() {
	l := &p.load
	p.w.after(quantum, l.works)
	if p.live == nil || p.still.cut || l.stands > p.w.now {
		return
	}
	if l.stands != 0 {
		l.stands = 0
		l.pace.Stood(p.w.wall())
	}
	l.cost = quantum
	p.input(event.Entry{Kind: event.Time, Now: max(p.guest.now, uint64(p.w.now))})
	l.cost = 0
	l.quanta++
	if p.machine.Role() == pair.Primary {
		l.lags = append(l.lags, p.lag())
	}
	if stop := l.pace.Stop(p.w.wall()); stop > 0 {
		l.stops++
		l.stands = p.w.now + stop
	}
	if l.laggard.Stuck(p.w.wall(), p.lag()) {
		p.step(pair.Faulted{Fault: pair.Lagging})
	}
}

// lag is the age of the oldest log that the secondary hasn't executed.
func (p *process) lag() time.Duration { return p.load.pace.Lag(p.w.wall()) }

// executed takes an acknowledgement in.
func (l *load) executed(p *process, lsn uint64) {
	l.pace.Executed(p.w.wall(), lsn)
	if l.stands > p.w.now && l.pace.Near(p.w.wall()) {
		l.stands = p.w.now
	}
}

// takes is when the secondary is done with a batch that comes now.
func (p *process) takes(cost time.Duration) time.Duration {
	l := &p.load
	l.busy = max(l.busy, p.w.now) + time.Duration(float64(cost)/p.w.speed)
	return l.busy
}
