package vm

import (
	"sync/atomic"
	"time"

	"github.com/duet-ft/duet/hvd/machine"
)

// kicker gets a guest that runs without exits to a stop when something is due.
type kicker struct {
	m      *machine.Machine
	asleep chan struct{} // bell: the guest runs again

	running atomic.Bool
	due     atomic.Int64 // host time (UnixNano) since when an input is due; 0: none known
	entered atomic.Int64 // host time when the guest was entered
	asked   atomic.Int64 // since when somebody wants the loop (UnixNano); 0: nobody
	kicked  atomic.Bool  // Kick was called for this run
	stop    chan struct{}
	done    chan struct{}
}

func (k *kicker) start(e *Engine) {
	k.stop, k.done = make(chan struct{}), make(chan struct{})
	go k.watch(e)
}

func (k *kicker) end() {
	close(k.stop)
	<-k.done
}

// ask wants the loop between two runs as soon as possible.
func (k *kicker) ask() {
	k.asked.CompareAndSwap(0, time.Now().UnixNano())
	k.ring()
}

func (k *kicker) ring() {
	select {
	case k.asleep <- struct{}{}:
	default:
	}
}

// enter is called before the guest runs; due is when the next timer is due. A
// guest that makes exits gets what is overdue there, so only the time since the
// last exit counts.
func (k *kicker) enter(due time.Time) {
	now := time.Now()
	if due.Before(now) {
		due = now
	}
	k.due.Store(due.UnixNano())
	k.entered.Store(now.UnixNano())
	k.kicked.Store(false)
	if !k.running.Swap(true) {
		k.ring()
	}
}

// idle is called when the guest has halted: nothing to watch until enter.
func (k *kicker) idle() { k.running.Store(false) }

// watch polls while the guest runs, at half the time that an input may wait:
// arming a timer at each exit would cost more.
func (k *kicker) watch(e *Engine) {
	defer close(k.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if !k.running.Load() {
			select {
			case <-k.stop:
				return
			case <-k.asleep:
				continue
			}
		}
		timer.Reset(e.cfg.StopAfter / 2)
		select {
		case <-k.stop:
			return
		case <-timer.C:
		case <-k.asleep:
		}
		since := k.due.Load()
		if t, ok := e.inbox.waiting(); ok {
			since = min(since, t.UnixNano())
		}
		if t := k.asked.Load(); t != 0 {
			since = min(since, t)
		}
		late := time.Duration(time.Now().UnixNano() - max(since, k.entered.Load()))
		if late >= e.cfg.StopAfter {
			k.m.RequestStop()
		}
		if late >= e.cfg.KickAfter && !k.kicked.Swap(true) {
			k.m.Kick()
		}
	}
}
