package vm

import (
	"fmt"
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
type kicker struct {
	m     *machine.Machine
	every time.Duration

	running atomic.Bool
	due     atomic.Int64 // host time (UnixNano) since when an input is due; 0: none known
	entered atomic.Int64 // host time when the guest was entered
	asked   atomic.Int64 // since when somebody wants the loop (UnixNano); 0: nobody
	kicked  atomic.Bool  // Kick was called for this run
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
