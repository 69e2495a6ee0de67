package vmproc

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/duet-ft/duet/ftlink/pair"
)

const (
	// heartbeat is the protocol's.
	heartbeat = 50 * time.Millisecond
	// overdue is when a heartbeat is sent without the loop: the loop's own come
	// within a heartbeat and a tick.
	overdue = heartbeat * 3 / 2
	// pulseEvery is the pulse's own clock.
	pulseEvery = heartbeat / 4
	// vouch is how long the loop may take for one step before this copy counts as
	// hung, and falls silent. Destroying a large guest takes a good second.
	vouch = 2 * time.Second
	// stoodStill is from what delay of its own clock on the pulse tells of it,
	// once per quietFor.
	stoodStill = 4 * heartbeat
	quietFor   = 10 * time.Second
	// pulseNice and pulseSlice put the pulse's thread ahead of the others: the
	// weight of nine of them, and the shortest time slice that Linux has, which
	// lets it run at once when it wakes up.
	pulseNice  = -10
	pulseSlice = 100 * time.Microsecond
)

// pulse sends this copy's heartbeats. The loop gives it what to say; while the
// loop carries out something that takes long (it waits for the guest to stop, or
// frees its memory), the pulse says the last thing again, so that the peer
// doesn't take work for death. That is no more than a message that was long on
// its way, which the protocol allows for. A loop that hangs isn't vouched for.
//
// It has a thread of its own, that the guest's doesn't keep from running. The two
// never wait for each other: the one that holds a lock may wait for a processor.
type pulse struct {
	send  func(payload []byte) error
	say   func(line string)
	begun time.Time // what the times below are counted from

	last   atomic.Pointer[pair.Message] // the loop's newest
	sent   atomic.Uint64                // the newest message's number
	sentAt atomic.Int64
	turned atomic.Int64 // when the loop began its present step
}

// beat sends a message of the loop's. The pulse numbers messages anew, because
// its own are among them.
func (p *pulse) beat(m pair.Message, now time.Time) error {
	p.last.Store(&m)
	return p.transmit(now)
}

// turn notes that the loop goes round.
func (p *pulse) turn(now time.Time) { p.turned.Store(int64(now.Sub(p.begun))) }

// repeat sends the last message again if it is time to.
func (p *pulse) repeat(now time.Time) error {
	at := now.Sub(p.begun)
	if p.last.Load() == nil || at-time.Duration(p.sentAt.Load()) < overdue || at-time.Duration(p.turned.Load()) > vouch {
		return nil
	}
	return p.transmit(now)
}

// transmit takes the number first: so no message is older than one with a lower
// number, whichever thread is held up where. The peer drops what comes late.
func (p *pulse) transmit(now time.Time) error {
	seq := p.sent.Add(1)
	p.sentAt.Store(int64(now.Sub(p.begun)))
	m := *p.last.Load()
	m.Seq = seq
	return p.send(m.Encode())
}

// run repeats what is overdue until ctx ends. It sleeps in the kernel rather than
// by a timer of Go's, whose expiry another thread would have to notice, and ahead
// of other threads where the host allows it.
//
// Its thread isn't a real-time one, and must not be: to come back from the kernel
// while another thread looks at this goroutine's stack for the garbage collector,
// Go's runtime spins and yields until that is done. A real-time thread yields to
// no ordinary one. If the other has the same processor, everything on it stands
// still until Linux cuts real-time threads off, 0.95 s later.
func (p *pulse) run(ctx context.Context) {
	runtime.LockOSThread() // for good: the thread ends with this goroutine
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Flags: unix.SCHED_FLAG_RESET_ON_FORK,
		Nice: pulseNice, Runtime: uint64(pulseSlice),
	}, 0)
	var told time.Time
	for last := time.Now(); ctx.Err() == nil; {
		pause := unix.NsecToTimespec(pulseEvery.Nanoseconds())
		_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &pause, nil) // a signal only makes it shorter
		now := time.Now()
		if err := p.repeat(now); err != nil {
			go p.say("heartbeat: " + err.Error())
		}
		if still := now.Sub(last) - pulseEvery; still > stoodStill && now.Sub(told) > quietFor {
			told = now
			go p.say(fmt.Sprintf("this host stood still for %d ms; its peer may have taken it for dead", still.Milliseconds()))
		}
		last = now
	}
}
