package sim

import (
	"errors"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/lockstep"
)

// seedBegins: a peer starts to send its guest's state.
func (p *process) seedBegins(seed pair.Seed) {
	p.step(pair.SeedBegin{Seed: seed})
	if p.machine.Role() == pair.Receiving && p.machine.CurrentSeed() == seed {
		p.seed, p.carrier, p.half = seed, p.stream, true
	}
}

// seedPiece: a part of it came.
func (p *process) seedPiece(seed pair.Seed) {
	if p.half && p.seed == seed && p.w.bugs.promoteHalf {
		p.step(pair.Seeded{Seed: seed})
		p.step(pair.Progress{Received: 1 << 40, Verified: 1 << 40})
	}
}

// seedEnds: it is complete.
func (p *process) seedEnds(seed pair.Seed, state *guest) {
	if !p.half || p.seed != seed {
		return
	}
	p.guest, p.half = state, false
	p.follow()
	p.w.after(p.w.between(0, 30*time.Millisecond), func() {
		p.do(func() {
			if p.replica != nil && p.seed == seed {
				p.step(pair.Seeded{Seed: seed})
				p.acknowledge()
			}
		})
	})
}

// receiveLog takes a batch of the log. It is acknowledged as received at once,
// and executed some time later.
func (p *process) receiveLog(seed pair.Seed, lsn uint64, log []byte) {
	if p.still.cut { // the block decides who leads, and this copy hasn't read it
		p.early = append(p.early, batch{seed, lsn, log})
		return
	}
	if p.replica == nil || p.seed != seed || p.sealed && !p.w.bugs.ackAfterSeal {
		return
	}
	if err := p.replica.Log.Feed(lsn, log); err != nil {
		p.w.fail("%v: %v", p, err)
		return
	}
	p.prefetch(lsn, log)
	p.acknowledge()
	p.execute()
}

func (p *process) acknowledge() {
	if p.stream == nil {
		return
	}
	seed, received, verified := p.seed, p.held(), p.replica.Verified()
	if p.w.bugs.ackUnexecuted {
		verified = received
	}
	p.stream.send(p.host, func(to *process) { to.acknowledged(seed, received, verified) })
	p.step(pair.Progress{Received: received, Verified: verified})
}

// execute arranges for the replica to execute what it has.
func (p *process) execute() {
	r := p.replica
	if r == nil || p.executing == r {
		return
	}
	p.executing = r
	lag := p.w.between(0, 5*time.Millisecond)
	switch {
	case p.w.link > 0 || p.w.speed > 0:
		lag = 0
	case p.w.chance(3) && !p.w.deaths:
		lag = p.w.between(0, 300*time.Millisecond)
	}
	p.w.after(lag, func() {
		if p.executing == r {
			p.executing = nil
		}
		p.do(func() {
			if p.replica == r && !p.sealed {
				p.executeNow()
			}
		})
	})
}

func (p *process) executeNow() {
	for !p.diverged {
		do, err := p.replica.Step()
		p.guest.takeIssued()
		if err != nil {
			p.diverge(err)
			return
		}
		if do == lockstep.Wait {
			break
		}
	}
	p.acknowledge()
	if resolving := p.replica != nil && p.replica.Log.Resolving(); resolving && !p.holder.Stuck() {
		return // it goes on when the block is read
	} else if resolving && p.consuming {
		p.w.count.CutShort++
	}
	if p.consuming && p.replica != nil && !p.diverged {
		p.consuming = false
		p.step(pair.Consumed{LSN: p.replica.Log.Executed()})
	}
}

// diverge follows a fingerprint that differs. Only the fault that makes one
// may be its cause: of this copy, or of the one that it follows, which was a
// replica when it had it and took over before that showed.
func (p *process) diverge(err error) {
	if !errors.Is(err, lockstep.ErrDiverged) || p.guest.flipped == 0 && p.w.truth.guest.flipped == 0 {
		p.w.fail("%v diverged by itself: %v", p, err)
		return
	}
	p.w.log("%v %v", p, err)
	p.w.count.Divergences++
	p.diverged = true
	p.step(pair.Faulted{Fault: pair.Diverge})
}
