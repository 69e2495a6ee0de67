package vmproc

import (
	"context"
	"fmt"
	"runtime"
	"sync"
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
)

// pulse sends this copy's heartbeats. The loop gives it what to say; while the
// loop carries out something that takes long (it waits for the guest to stop, or
// frees its memory), the pulse says the last thing again, so that the peer
// doesn't take work for death. That is no more than a message that was long on
// its way, which the protocol allows for. A loop that hangs isn't vouched for.
//
// It has a thread of its own, that the guest's doesn't keep from running.
type pulse struct {
	send func(payload []byte) error
	say  func(line string)

	mu     sync.Mutex // held while sending: numbers leave in order
	last   pair.Message
	known  bool // there is a last one
	sent   uint64
	sentAt time.Time
	turned time.Time // when the loop began its present step
}

// beat sends a message of the loop's. The pulse numbers messages anew, because
// its own are among them.
func (p *pulse) beat(m pair.Message, now time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last, p.known = m, true
	return p.transmit(now)
}

// turn notes that the loop goes round.
func (p *pulse) turn(now time.Time) {
	p.mu.Lock()
	p.turned = now
	p.mu.Unlock()
}

// repeat sends the last message again if it is time to.
func (p *pulse) repeat(now time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.known || now.Sub(p.sentAt) < overdue || now.Sub(p.turned) > vouch {
		return nil
	}
	return p.transmit(now)
}

func (p *pulse) transmit(now time.Time) error {
	p.sent++
	p.sentAt = now
	m := p.last
	m.Seq = p.sent
	return p.send(m.Encode())
}

// run repeats what is overdue until ctx ends. It sleeps in the kernel rather than
// by a timer of Go's, whose expiry another thread would have to notice, and ahead
// of all ordinary threads where the host allows it.
func (p *pulse) run(ctx context.Context) {
	runtime.LockOSThread() // for good: the thread ends with this goroutine
	ahead := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
	_ = unix.SchedSetAttr(0, &ahead, 0)
	var told time.Time
	for last := time.Now(); ctx.Err() == nil; {
		pause := unix.NsecToTimespec(pulseEvery.Nanoseconds())
		_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &pause, nil) // a signal only makes it shorter
		now := time.Now()
		if err := p.repeat(now); err != nil {
			p.say("heartbeat: " + err.Error())
		}
		if still := now.Sub(last) - pulseEvery; still > stoodStill && now.Sub(told) > quietFor {
			told = now
			p.say(fmt.Sprintf("this host stood still for %d ms; its peer may have taken it for dead", still.Milliseconds()))
		}
		last = now
	}
}
