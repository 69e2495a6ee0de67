package vmproc

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/ftlink/session"
	"github.com/duet-ft/duet/ftlink/wire"
	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/tap"
	"github.com/duet-ft/duet/hvd/vm"
)

// A planned switchover, as the protocol has it carried out:
//
//	the live copy            the other one
//	Pause                    Register
//	Yield                    TakeOver, Reissue, GoLive
//
// The machines stay where they are. What changes is which engine drives them:
// Live's or Replay's. Packets that come to the host that the VM has left go on to
// the other one, until the network has learnt where the VM is.

const (
	// maxEarly bounds the log that comes before this copy knows that it follows,
	// in bytes.
	maxEarly = 64 << 20
	// forwardFor is how long packets are sent after the VM; its new host announces
	// it at once and again, for one second (announceAt).
	forwardFor = 1500 * time.Millisecond
)

// moving is what a process keeps during a switchover.
type moving struct {
	hurry  atomic.Bool // the protocol waits for acknowledgements
	begun  time.Time   // when this host learnt that the guest stands still; the process' lock
	early  []vmLog     // of the other copy's new log; nil: none is expected; the process' lock
	expect bool        // early log may come; the process' lock
	bytes  int         // of early

	decided chan<- error // who waits for the end of what verb began, or nil; the loop's
	verb    pair.Verb

	trail *tap.Tap // where packets of a VM that left still come in, or nil; the process' lock
}

// pauseGuest lets the guest stand still.
func (p *Process) pauseGuest(ctx context.Context, op uint64) {
	g := p.guest
	if g == nil {
		return
	}
	p.expectLog(true)
	err := g.inside(ctx, func() error {
		return g.engine.Pause(g.rim.idle, func(lsn uint64) { p.post(pair.Paused{Op: op, LSN: lsn}) })
	})
	p.complain(err) // then the protocol gives it up
}

// expectLog says whether log of the other copy may come though this one is live.
func (p *Process) expectLog(yes bool) {
	p.moving.hurry.Store(yes)
	p.mu.Lock()
	p.moving.expect, p.moving.early, p.moving.bytes = yes, nil, 0
	p.mu.Unlock()
}

// resumeGuest lets the guest go on here.
func (p *Process) resumeGuest(ctx context.Context) {
	p.expectLog(false)
	g := p.guest
	if g == nil {
		return
	}
	err := g.inside(ctx, func() error {
		g.engine.Resume()
		return nil
	})
	if err != nil {
		p.fault(g, err)
	}
}

// register lets this host write to the volume. This copy has nothing under way
// there: it has never been live, or its guest stood still when it left.
func (p *Process) register(ctx context.Context, op uint64) {
	ctx, cancel := context.WithTimeout(ctx, arbiterTimeout)
	defer cancel()
	p.post(pair.Registered{Op: op, Err: p.session.Join(ctx)})
}

// keepEarly keeps log that comes before this copy knows that it follows. It may
// have learnt that a moment ago.
func (p *Process) keepEarly(c *session.Conn, f wire.Frame) error {
	lsn, log, err := wire.ParseLog(f, nil)
	if err != nil {
		return err
	}
	p.mu.Lock()
	if in := p.incoming; in != nil {
		p.mu.Unlock()
		return p.takeLog(c, in, f)
	}
	defer p.mu.Unlock()
	switch {
	case !p.moving.expect:
		return nil // of a transfer that was given up here
	case p.moving.bytes+len(log) > maxEarly:
		return vm.ErrBehind
	}
	p.moving.early = append(p.moving.early, vmLog{lsn, append([]byte(nil), log...)})
	p.moving.bytes += len(log)
	return nil
}

// yield makes the guest, which stands still, a copy that follows the other one.
func (p *Process) yield(ctx context.Context, seed pair.Seed) {
	old := p.guest
	if old == nil {
		return
	}
	conn := old.carrier
	p.forward(old.rim, conn)
	for _, in := range old.engine.Left() {
		p.sendAfter(conn, in)
	}
	old.stop()
	g := &guest{m: old.m, made: old.made, accessed: old.accessed, ended: make(chan struct{}), carrier: conn}
	g.ctx, g.cancel = context.WithCancel(context.WithoutCancel(ctx))
	g.rim = newRim(p, g)
	g.engine = vm.New(g.m, g.rim, p.engineConfig())
	g.rim.engine = g.engine
	in := &incoming{p: p, g: g, seed: seed, whole: true, given: true}
	base := g.m.Base()
	g.engine.Follow(g.ctx, base, source{p, in, conn})
	p.moving.hurry.Store(false)
	p.mu.Lock()
	var err error
	for _, l := range p.moving.early {
		if err == nil {
			err = g.engine.Feed(l.lsn, l.bytes)
			in.receivedUpTo(g.engine.Held(l.lsn + uint64(len(l.bytes))))
		}
	}
	p.moving.expect, p.moving.early, p.moving.bytes = false, nil, 0
	p.guest, p.incoming = g, in
	p.mu.Unlock()
	if err != nil {
		p.fault(g, err)
	}
	p.followLog(in, base, conn)
}

// takeOver makes the copy that follows the one that leads. All of the log is
// executed; the rest of going live is as after a failover.
func (p *Process) takeOver() {
	g := p.guest
	if g == nil {
		return
	}
	g.seal()
	<-g.ended
	p.mu.Lock()
	p.incoming = nil
	begun, blind := p.moving.begun, p.blind
	p.mu.Unlock()
	if g.replayed != nil {
		return // the fault is on its way
	}
	conn := g.carrier
	send := func(lsn uint64, batch []byte) { _ = conn.SendLog(lsn, batch) }
	if err := g.engine.Lead(send, blind); err != nil {
		g.replayed = err
		p.fault(g, err)
		return
	}
	if !begun.IsZero() {
		p.record(api.Event{VM: p.def.Name, Kind: api.EventRole, Epoch: p.epoch, Role: pair.Primary.String(), What: fmt.Sprintf(
			"the guest stood still for %.0f ms", ms(time.Since(begun)))})
	}
}

// watchPause notes when the other copy's guest stands still.
func (p *Process) watchPause(m pair.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case m.Role != pair.Pausing && m.Role != pair.Yielding && m.Role != pair.Secondary:
		p.moving.begun = time.Time{}
	case m.Role == pair.Pausing && p.moving.begun.IsZero():
		p.moving.begun = time.Now()
	}
}

// forward sends the packets that come in for a VM that has left after it, for a
// while. Some may come twice then, which networks do.
func (p *Process) forward(r *rim, conn *session.Conn) {
	after := func(in event.Entry) { p.sendAfter(conn, in) }
	r.after.Store(&after)
	r.mu.Lock()
	t := r.tap
	r.tap = nil
	r.mu.Unlock()
	p.mu.Lock()
	p.moving.trail = t
	p.mu.Unlock()
	time.AfterFunc(forwardFor, func() { p.endTrail(t) })
}

// sendAfter sends a packet after the VM, but for the VM's own broadcasts, which
// come from its new host. One that can't be sent is lost, as on a busy wire.
func (p *Process) sendAfter(conn *session.Conn, in event.Entry) {
	if in.Kind == event.Frame && conn != nil && !sentBy(in.Data, p.def.MAC) {
		_ = conn.Send(wire.Frame{Type: wire.TypePacket, Payload: in.Data})
	}
}

// sentBy says that an Ethernet frame has that source address.
func sentBy(frame []byte, mac string) bool {
	const at, end = 6, 12 // of the source address
	return len(frame) >= end && strings.EqualFold(net.HardwareAddr(frame[at:end]).String(), mac)
}

// endTrail closes the tap of a VM that has left, if it is still that one; nil
// means any.
func (p *Process) endTrail(t *tap.Tap) {
	p.mu.Lock()
	trail := p.moving.trail
	if trail == nil || t != nil && t != trail {
		p.mu.Unlock()
		return
	}
	p.moving.trail = nil
	p.mu.Unlock()
	p.complain(trail.Close())
}

// packet takes a packet that was sent after the VM.
func (p *Process) packet(data []byte) {
	p.mu.Lock()
	g := p.guest
	p.mu.Unlock()
	if g != nil && g.engine != nil { // not live yet: it gets the packet when it is
		g.rim.framesIn.Add(1)
		g.engine.Input(event.Entry{Kind: event.Frame, Data: append([]byte(nil), data...)})
	}
}
