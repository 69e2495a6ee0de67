package vmproc

import (
	"context"
	"encoding/json"
	"net"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/ftlink/session"
	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/daemon/vmsock"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/iscsi"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/nexus"
	"github.com/duet-ft/duet/hvd/tap"
)

const (
	// arbiterTimeout bounds an arbiter operation or a fence; the protocol then
	// tries again.
	arbiterTimeout = 5 * time.Second
	maxEvents      = 256
)

// do carries out one output of the protocol machine. Whatever isn't "only
// started" by the machine's contract is complete when do returns.
func (p *Process) do(ctx context.Context, o pair.Output) {
	switch o := o.(type) {
	case pair.Send:
		// A message goes out on both paths at once; the machine asks for both.
		if o.Path == pair.Direct {
			p.complain(p.pulse.beat(o.Msg, time.Now()))
		}
	case pair.Arbiter:
		go p.arbitrate(ctx, o, p.guest == nil || !p.guest.wasLive)
	case pair.Fence:
		go p.fence(ctx)
	case pair.StartSeed:
		p.startSeed(ctx, o.Seed)
	case pair.EndSeed:
		p.endSeed(ctx)
	case pair.Gate:
		p.gate(ctx, o.Mode)
	case pair.Consume:
		if g := p.guest; g != nil {
			g.engine.AskConsumed(func(lsn uint64) { p.post(pair.Consumed{LSN: lsn}) })
		}
	case pair.Seal:
		if g := p.guest; g != nil {
			g.seal()
		}
	case pair.Register:
		go p.register(ctx, o.Op)
	case pair.Pause:
		p.pauseGuest(ctx, o.Op)
	case pair.Resume:
		p.resumeGuest(ctx)
	case pair.Yield:
		p.yield(ctx, o.Seed)
	case pair.TakeOver:
		p.takeOver()
	case pair.Reissue:
		p.reissue()
	case pair.GoLive:
		p.goLive(ctx)
	case pair.Boot:
		p.boot(ctx)
	case pair.Announce:
		go p.announce(ctx)
	case pair.Halt:
		p.halt()
	case pair.Event:
		p.event(o)
	}
}

// arbitrate carries out an arbiter operation. A copy that was never live has
// sent no write that could still land, so it may register anew, should a fence
// have taken its key; a live one may not.
func (p *Process) arbitrate(ctx context.Context, o pair.Arbiter, fresh bool) {
	ctx, cancel := context.WithTimeout(ctx, arbiterTimeout)
	defer cancel()
	if o.Kind == pair.Swap && fresh {
		p.complain(p.session.Join(ctx))
	}
	p.post(p.arbiter.Do(ctx, o))
}

// lasting makes a swap of the arbiter block survive a target's loss of power
// before anybody acts on it.
type lasting struct{ *iscsi.Session }

// CompareAndWrite swaps and flushes.
func (l lasting) CompareAndWrite(ctx context.Context, lba uint64, old, new []byte) (bool, error) {
	ok, err := l.Session.CompareAndWrite(ctx, lba, old, new)
	if err != nil || !ok {
		return ok, err
	}
	return true, l.Sync(ctx)
}

func (p *Process) complain(err error) {
	if err != nil {
		p.say(err.Error())
	}
}

// fence shuts the other host's copy of this VM out of the volume.
func (p *Process) fence(ctx context.Context) {
	peer := p.tie.Load().peer
	if peer == nil {
		p.post(pair.FenceDone{})
		return
	}
	ctx, cancel := context.WithTimeout(ctx, arbiterTimeout)
	defer cancel()
	err := p.session.Fence(ctx, iscsi.Port{
		Initiator: nexus.Initiator(peer.Name), ISID: nexus.ISID(p.def.Slot),
	})
	p.post(pair.FenceDone{Err: err})
}

func (p *Process) gate(ctx context.Context, mode pair.GateMode) {
	g := p.guest
	if g == nil {
		return // what boots next starts with an open gate, behind Fencing
	}
	m := map[pair.GateMode]lockstep.GateMode{
		pair.GateClosed: lockstep.Closed, pair.GateAcked: lockstep.Acked, pair.GateOpen: lockstep.Open,
	}[mode]
	var lsn uint64
	err := g.inside(ctx, func() (err error) {
		lsn, err = g.engine.Gate(m)
		return err
	})
	if err != nil {
		p.fault(g, err)
		return
	}
	if mode == pair.GateAcked {
		p.post(pair.Gated{LSN: lsn})
	}
}

func (p *Process) reissue() {
	g := p.guest
	if g == nil {
		return
	}
	<-g.ended // the replay, which Seal let come to its end
	g.rim.start()
	n := g.engine.Reissue()
	p.mu.Lock()
	p.failover.Reissued = n
	p.mu.Unlock()
}

// goLive lets the former secondary run by itself.
func (p *Process) goLive(ctx context.Context) {
	g := p.guest
	if g == nil || g.replayed != nil {
		return
	}
	p.openNetwork(g)
	g.engine.Input(event.Entry{Kind: event.VsockReset})
	p.live(ctx, g)
}

// announceAt is when the network is told where the VM is, after it went live:
// the first frame may come before a bridge forwards.
var announceAt = []time.Duration{0, 50 * time.Millisecond, 200 * time.Millisecond, time.Second}

func (p *Process) announce(ctx context.Context) {
	g := p.guest
	mac, err := net.ParseMAC(p.def.MAC)
	if g == nil || err != nil {
		return
	}
	frame := tap.Announcement(mac)
	begun := time.Now()
	for _, at := range announceAt {
		select {
		case <-ctx.Done():
			return
		case <-time.After(at - time.Since(begun)):
		}
		g.rim.send(frame)
	}
}

// halt destroys the copy. One that was live takes the process with it.
func (p *Process) halt() {
	if p.booting != nil {
		p.booting() // what it makes is destroyed as it arrives
	}
	p.expectLog(false)
	g := p.guest
	if g == nil {
		return
	}
	p.mu.Lock()
	p.guest = nil
	p.mu.Unlock()
	p.ending = p.ending || g.wasLive
	if g.wasLive {
		g.destroy()
		return
	}
	p.keep(g)
}

func (p *Process) event(o pair.Event) {
	e := api.Event{VM: p.def.Name, Kind: o.Kind.String(), Epoch: o.Epoch, Role: o.Role.String(), Cause: o.Cause, What: o.What}
	if o.From != o.Role {
		e.From = o.From.String()
	}
	p.record(e)
}

// record keeps an event, as of now and where the guest is, and tells the daemon.
func (p *Process) record(e api.Event) {
	e.At = time.Now()
	p.mu.Lock()
	if g := p.guest; g != nil && g.engine != nil {
		e.Position = g.engine.Stats.Position.Load()
	}
	p.events = append(p.events, e)
	if n := len(p.events); n > maxEvents {
		p.events = p.events[n-maxEvents:]
	}
	p.mu.Unlock()
	p.say(vmsock.EventLine(e))
}

// suspicion is why a secondary, or one that diverged, began to suspect its
// primary in a step that had these outputs; "" if it didn't.
func suspicion(out []pair.Output) string {
	for _, o := range out {
		if e, ok := o.(pair.Event); ok && e.Role == pair.Consuming {
			return e.What
		}
	}
	return ""
}

// time measures a failover from the roles that it passes through: before and
// after a step, which may have more in between. A secondary that has diverged
// has nothing to execute any more and claims in the step in which it suspects.
// cause is why it began, in the step that began it.
func (p *Process) time(before, after pair.Role, cause string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	since := func() float64 { return float64(time.Since(p.heard).Microseconds()) / 1000 }
	switch {
	case before == pair.Secondary && after == pair.Consuming, before == pair.Diverged && after == pair.Claiming:
		p.failover = api.Failover{At: time.Now(), Cause: cause, DetectionMS: since()}
		p.timing = true
	case !p.timing:
	case after == pair.Fencing:
		p.failover.ClaimMS = since()
	case after == pair.Alone:
		p.failover.LiveMS = since()
		done := p.failover
		p.failed, p.timing = &done, false
	case after == pair.Secondary || after == pair.Standby || after == pair.Primary:
		p.timing = false
	}
}

// fault tells the protocol why the guest's engine ended.
func (p *Process) fault(g *guest, err error) {
	p.note(err.Error())
	p.post(pair.Faulted{Fault: g.faultOf(err)})
}

// note keeps a line for whoever asks what is wrong, and prints it. An empty one
// says that nothing is any more.
func (p *Process) note(line string) {
	p.mu.Lock()
	p.trouble = line
	p.mu.Unlock()
	if line != "" {
		p.say(line)
	}
}

// command is a user's.
func (p *Process) command(v pair.Verb) { p.post(pair.Command{Verb: v}) }

// seedHeader is the SeedBegin frame.
type seedHeader struct {
	Seed   pair.Seed `json:"seed"`
	Memory uint64    `json:"memory"` // bytes
	Salt   uint64    `json:"salt"`   // of the pages' hashes
	Host   traits    `json:"host"`   // the sender's
	Disks  string    `json:"disks"`  // where they lie
}

func (h seedHeader) encode() []byte {
	b, err := json.Marshal(h)
	if err != nil {
		panic(err) // numbers and texts only
	}
	return b
}

// endSeed ends a state transfer and the log behind it, on either side.
func (p *Process) endSeed(ctx context.Context) {
	p.toSeed = nil
	p.mu.Lock()
	conn, in := p.conn, p.incoming
	p.incoming = nil
	p.mu.Unlock()
	if conn != nil {
		conn.Abort(session.ErrClosed)
	}
	if in != nil {
		in.drop()
	}
	g := p.guest
	if g == nil || !g.wasLive {
		return
	}
	g.stopSeed()
	if err := g.inside(ctx, g.engine.EndLog); err != nil {
		p.fault(g, err)
	}
}
