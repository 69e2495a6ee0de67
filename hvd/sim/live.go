package sim

import (
	"errors"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/lockstep"
)

const clockEvery = 50 * time.Millisecond

// boot starts the guest from its disk.
func (p *process) boot(epoch uint64) {
	p.guest = newGuest(epoch)
	p.w.checkBoot(p, epoch)
	p.becomeLive()
	p.tracker.Reset() // run notes what it issues
	p.run()
}

// goLive lets the replica go on by itself.
func (p *process) goLive() {
	// One that froze may take over by a block that has been replaced since. That
	// makes it a primary like one that slept: nobody acknowledges what it does.
	if p.live == nil || p.w.givenTo(p) {
		p.w.checkGoLive(p)
	}
	if p.w.err != nil {
		return
	}
	if p.diverged {
		p.w.count.DivergedLive++
	}
	if p.live == nil { // else it took over by a switchover
		p.becomeLive()
	}
	p.run()
}

func (p *process) becomeLive() {
	p.replica, p.consuming, p.sealed, p.diverged = nil, false, false, false
	p.gate.Level = p.w.level
	p.live = &lockstep.Primary[effect]{Machine: p.guest, Log: lockstep.NewRecorder(p.guest.base())}
	p.track()
	if p.w.bugs.ackAfterSeal {
		p.closeStream()
	}
}

// reissue submits what the guest waits for. An order of its own is fine: a
// guest that cares waits for one before it issues the next.
func (p *process) reissue() {
	if p.w.bugs.forgetPending || p.guest == nil {
		return
	}
	for _, r := range p.guest.pending {
		p.submit(r)
	}
}

// clock gives a live guest the time.
func (p *process) clock() {
	if p.live != nil && !p.still.cut {
		p.input(event.Entry{Kind: event.Time, Now: max(p.guest.now, uint64(p.w.now))})
	}
	p.w.after(clockEvery, p.clocks)
}

// frame is a packet of a client.
func (p *process) frame(o op) {
	if p.live != nil && !p.still.cut {
		p.input(event.Entry{Kind: event.Frame, Data: o.encode()})
	}
}

// input records and applies an input, and lets the guest run.
func (p *process) input(e event.Entry) {
	if err := p.record(e); err != nil {
		p.w.fail("%v: %v", p, err)
		return
	}
	p.run()
}

// run lets the guest run until it waits. Some runs are stopped at a counted
// trap, as the host stops a guest that makes no exit.
func (p *process) run() {
	if p.still.op != 0 {
		p.standStill()
		if !p.w.bugs.runOn {
			return
		}
	}
	for first := true; first || p.guest.busy(); first = false {
		stop := lockstep.Free
		if p.w.chance(10) {
			stop = p.guest.traps + 1 + p.w.rng.Uint64N(3)
		}
		_, effects, lsn, err := p.live.Run(stop)
		if err != nil {
			p.w.fail("%v: %v", p, err)
			return
		}
		for _, r := range p.guest.takeIssued() {
			p.tracker.Issued(r.tracked())
			p.submit(r)
		}
		for _, e := range effects {
			if p.w.bugs.readsAtOnce && e.op.read {
				p.w.network.toClient(p, e)
				continue
			}
			if e.kind == write {
				p.tracker.Issued(e.request.tracked())
			}
			e.made = p.w.now
			p.gate.Push(lsn, e)
		}
	}
	p.live.Mark()
	p.sendLog()
	p.release()
}

// sendLog sends what the recorder wrote, or drops it when nobody follows.
func (p *process) sendLog() {
	lsn, batch := p.live.Log.Take()
	if !p.streaming || p.stream == nil || len(batch) == 0 {
		return
	}
	seed, cost := p.seed, p.load.cost
	if p.w.speed > 0 {
		p.load.pace.Sent(p.w.wall(), lsn+uint64(len(batch)))
	}
	p.stream.send(p.host, func(to *process) {
		if p.w.speed > 0 {
			p.w.at(to.takes(cost), func() { to.do(func() { to.receiveLog(seed, lsn, batch) }) })
			return
		}
		to.receiveLog(seed, lsn, batch)
	})
	if p.w.bugs.ackBeforeReceipt {
		p.gate.Ack(p.live.Log.LSN(), p.live.Log.LSN())
	}
}

// release lets effects out that the gate lets go.
func (p *process) release() {
	for _, e := range p.gate.Release() {
		p.w.checkLeaves(p, e)
		p.w.checkVerified(p, e)
		if p.w.link > 0 && p.mode == pair.GateAcked {
			p.w.delays = append(p.w.delays, p.w.now-e.made)
		}
		if p.w.err != nil {
			return
		}
		if e.kind == reply {
			p.w.network.toClient(p, e)
			continue
		}
		p.submit(e.request)
	}
}

// submit issues a disk request; its end is an input.
func (p *process) submit(r request) {
	g := p.guest
	p.inflight++
	done := func(data []byte, err error) {
		if p.guest != g || p.live == nil {
			return // of a guest that was halted
		}
		switch {
		case errors.Is(err, errConflict):
			p.w.count.FencedWrites++
			p.step(pair.Faulted{Fault: pair.Refused})
		case errors.Is(err, errMedium):
			p.inflight--
			p.input(event.Entry{Kind: event.DiskDone, ID: r.id, Status: ioError})
		case err != nil: // the disk stalls: the host tries again
			p.w.after(100*time.Millisecond, func() { p.do(func() { p.resubmit(g, r) }) })
		default:
			p.inflight--
			p.input(event.Entry{Kind: event.DiskDone, ID: r.id, Data: data})
		}
	}
	if r.read {
		p.w.volume.read(p, r.key, func(b block, err error) { done(b.encode(), err) })
		return
	}
	p.w.volume.write(p, r.key, r.record, func(err error) { done(nil, err) })
}

func (p *process) resubmit(g *guest, r request) {
	if p.guest == g && p.live != nil {
		p.inflight--
		p.submit(r)
	}
}

// startSeed sends the live guest's state in pieces, and from the last one on
// the log.
func (p *process) startSeed(seed pair.Seed) {
	s := p.stream
	p.seed, p.carrier = seed, s
	if s == nil {
		p.step(pair.Faulted{Fault: pair.SeedFailed})
		return
	}
	s.send(p.host, func(to *process) { to.seedBegins(seed) })
	pieces := 1 + p.w.rng.IntN(4)
	var next func()
	next = func() {
		if p.live == nil || p.seed != seed || p.stream != s {
			return // given up meanwhile
		}
		if pieces--; pieces > 0 {
			s.send(p.host, func(to *process) { to.seedPiece(seed) })
			p.w.after(p.w.between(5*time.Millisecond, 80*time.Millisecond), func() { p.do(next) })
			return
		}
		state := p.guest.clone()
		s.send(p.host, func(to *process) { to.seedEnds(seed, state.clone()) })
		p.live.Log = lockstep.NewRecorder(state.base())
		p.keeper.Reset()
		p.gate.Rebase()
		p.streaming = true
		p.load.pace.Reset()
	}
	p.w.after(p.w.between(5*time.Millisecond, 80*time.Millisecond), func() { p.do(next) })
}

// acknowledged is what the secondary says of the log that it got.
func (p *process) acknowledged(seed pair.Seed, received, verified uint64) {
	if p.live == nil || !p.streaming || seed != p.seed {
		return
	}
	p.keeper.Acked(received)
	p.load.executed(p, verified)
	p.gate.Ack(received, verified)
	p.release()
	if p.still.op != 0 {
		p.standStill()
	}
	p.step(pair.Progress{Received: received, Verified: verified})
}

// endSeed ends a seeding, or the log, on either side.
func (p *process) endSeed(seed pair.Seed) {
	p.streaming = false
	p.load.pace.Reset()
	p.closeStream()
}
