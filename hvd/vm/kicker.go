package vm

import (
	"fmt"
	"math"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/duet-ft/duet/hvd/machine"
)

// kicker gets a guest that runs without exits to a stop when something is due.
//
// It looks while the guest runs, at half the time that an input may wait: to arm
// a timer at each exit would cost more. The timer is the kernel's, which is
// switched on and off without waking a thread; a guest that halts again soon, as
// an idle one does, is never looked at.
//
// What a kick costs a primary is a resync, and a guest that only computes would
// be kicked for each tick of its timer. A tick that is late is caught up with, so
// it waits until the time since the last kick is worth one; what comes from
// outside doesn't.
type kicker struct {
	m     *machine.Machine
	every time.Duration

	running atomic.Bool
	due     atomic.Int64 // host time (UnixNano) since when an input is due; 0: none known
	entered atomic.Int64 // host time when the guest was entered
	asked   atomic.Int64 // since when somebody wants the loop (UnixNano); 0: nobody
	kicked  atomic.Bool  // Kick was called for this run
	soon    atomic.Bool  // a kick costs no resync
	worth   atomic.Int64 // a timer alone waits so long for a kick, ns; at least KickAfter
	timer   int          // timerfd
	file    *os.File     // the same, for reading
	done    chan struct{}
}

func (k *kicker) start(e *Engine) (err error) {
	k.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("make the timer that stops the guest: %w", err)
	}
	k.every = max(e.cfg.StopAfter/2, time.Microsecond)
	k.file, k.done = os.NewFile(uintptr(k.timer), "timerfd"), make(chan struct{})
	go k.watch(e)
	return nil
}

func (k *kicker) end() {
	k.idle()
	_ = k.file.Close() // ends watch's Read
	<-k.done
}

// ask wants the loop between two runs as soon as possible.
func (k *kicker) ask() { k.asked.CompareAndSwap(0, time.Now().UnixNano()) }

// enter is called before the guest runs; due is when the next timer is due. A
// guest that makes exits gets what is overdue there, so only the time since the
// last exit counts.
func (k *kicker) enter(now, due time.Time) {
	if due.Before(now) {
		due = now
	}
	k.due.Store(due.UnixNano())
	k.entered.Store(now.UnixNano())
	k.kicked.Store(false)
	if !k.running.Swap(true) {
		k.tick(k.every)
	}
}

// idle is called when the guest has halted: nothing to watch until enter.
func (k *kicker) idle() {
	if k.running.Swap(false) {
		k.tick(0)
	}
}

// tick has the timer expire again and again, or not at all.
func (k *kicker) tick(every time.Duration) {
	t := unix.NsecToTimespec(every.Nanoseconds())
	// It can't fail: the descriptor is a timer's and the time is one.
	_ = unix.TimerfdSettime(k.timer, 0, &unix.ItimerSpec{Interval: t, Value: t}, nil)
}

// watch looks at the guest whenever the timer has expired.
func (k *kicker) watch(e *Engine) {
	defer close(k.done)
	for expired := make([]byte, 8); ; {
		if _, err := k.file.Read(expired); err != nil {
			return // closed
		}
		if !k.running.Load() {
			continue
		}
		came := int64(math.MaxInt64) // since when something from outside waits
		if t, ok := e.inbox.waiting(); ok {
			came = t.UnixNano()
		}
		if t := k.asked.Load(); t != 0 {
			came = min(came, t)
		}
		now := time.Now()
		if t, ok := e.unheard.look(k.m.Memory, now); ok {
			came = min(came, t.UnixNano())
		}
		stop, kick := k.look(now.UnixNano(), came, &e.cfg)
		if stop {
			k.m.RequestStop()
		}
		if kick && !k.kicked.Swap(true) {
			k.m.Kick()
		}
	}
}

// look says what the guest is due for at now, when something from outside has
// waited since came (UnixNano).
func (k *kicker) look(now, came int64, cfg *Config) (stop, kick bool) {
	entered, due := k.entered.Load(), k.due.Load()
	late := func(since int64) time.Duration { return time.Duration(now - max(since, entered)) }
	stop = late(min(came, due)) >= cfg.StopAfter
	if k.soon.Load() {
		return false, stop
	}
	return stop,
		late(came) >= cfg.KickAfter || late(due) >= max(cfg.KickAfter, time.Duration(k.worth.Load()))
}

// cost notes what answering a kick has taken.
func (k *kicker) cost(took time.Duration) {
	k.worth.Store(int64(min(took*kickShare, maxPatience)))
}

const (
	kickShare   = 50                     // a kick is worth as many times the time it takes
	maxPatience = 100 * time.Millisecond // but a timer waits no longer, or KickAfter
)
