package pair

import "fmt"

// A planned switchover exchanges the roles of two copies that are in lockstep:
//
//	the primary, A                              the secondary, B
//	Primary --Switchover--> Pausing             hears of it: Register
//	  its guest stands still, the log ends      executes all of the log
//	  and is executed there, B is ready         Registered: ready
//	Pausing --> Yielding
//	  PAIR(A, B, seed) -> PAIR(B, A, seed')
//	  won: Secondary of seed'                   reads it: Primary of seed'
//
// B names seed' while it is a secondary: one for each seeding that it holds, and
// no other. So the block gives the VM to the very state that B has.

// Unmovable says in a part of a sentence why a planned switchover or a test of
// the failover can't begin here now; "" if it can.
func (m *Machine) Unmovable() string {
	msg := m.peer.msg
	switch m.role {
	case Primary:
	case Pausing, Yielding:
		return "a switchover is under way already"
	case Alone, Seeding, Gating, Pairing:
		switch {
		case m.unprotected:
			return "it runs unprotected, as a user wants: have it protected first"
		case m.role != Alone:
			return "it isn't protected yet: wait until it is"
		}
		return "it isn't protected: no other host has a copy that could go on"
	case Resolving:
		return "it has just lost its secondary"
	case Stopping:
		return "it is being stopped"
	default:
		return fmt.Sprintf("it doesn't run here (this copy is %v): ask the host that it runs on", m.role)
	}
	switch {
	case m.wantStop != "":
		return "it is being stopped"
	case m.unprotected:
		return "it is about to run unprotected, as a user wants"
	case msg.Role != Secondary || msg.Seed != m.seed || m.torn || !m.heard():
		return "its secondary is in doubt"
	case msg.VolumeLost || m.volumeLost():
		return "the volume doesn't answer on both hosts"
	}
	return ""
}

// switchover begins one, for a reason.
func (m *Machine) switchover(cause string) {
	if why := m.Unmovable(); why != "" {
		m.event(AboutCommand, why, "refused a switchover: %s", why)
		return
	}
	m.ops++
	m.pausing, m.paused = m.ops, false
	m.change(AboutCommand, Pausing, cause, "%s: the VM moves to host %v, the guest stands still", cause, m.cfg.Peer)
	m.emit(Pause{m.pausing})
}

// drain keeps copies off this host, or lets them come again. A secondary stays
// until its primary goes on alone, which it asks for: that one may be dead.
func (m *Machine) drain(on bool) {
	if m.drained == on {
		return
	}
	m.drained, m.moveAt, m.idle, m.tell = on, m.now, false, true
	if on {
		m.wantStart = false
		m.event(AboutCommand, "", "this host is drained: no copy is started or received here")
		return
	}
	m.event(AboutCommand, "", "this host is no longer drained")
}

// leave moves the VM away from a host that is drained.
func (m *Machine) leave() bool {
	if !m.drained || m.now < m.moveAt || m.Unmovable() != "" {
		return false
	}
	m.moveAt = m.now + m.cfg.MoveAgain
	m.switchover("this host is drained")
	return true
}

// stayIdle tells once that a VM which could be started here isn't.
func (m *Machine) stayIdle(b Block) {
	if m.idle || b.Kind == Free || b.Kind == Solo && b.Owner != m.cfg.Self {
		return
	}
	m.idle = true
	m.event(AboutCommand, "this host is drained", "not started here: this host is drained; the block says %v", b)
}

// testFailover drops this copy as if it had crashed.
func (m *Machine) testFailover() {
	if why := m.Unmovable(); why != "" {
		m.event(AboutCommand, why, "refused to test the failover: %s", why)
		return
	}
	m.hold = m.now + m.cfg.Grace
	m.halt(AboutCommand, "a user tests the failover: this copy is dropped")
}

// pausedAt takes in that the guest stands still.
func (m *Machine) pausedAt(in Paused) {
	if m.role == Pausing && in.Op == m.pausing && !m.paused {
		m.paused, m.logEnd = true, in.LSN
	}
}

// advancePausing gives the VM away once the secondary has executed all there is,
// at either level: what it would find out later could cost the guest's memory.
func (m *Machine) advancePausing() bool {
	if k, why := m.secondaryLost(); why != "" {
		m.emit(Resume{})
		m.resolve(k, why)
		return true
	}
	msg := m.peer.msg
	executed := m.paused && m.progress.Verified >= m.logEnd
	switch {
	case msg.VolumeLost || m.volumeLost():
		m.resume("the volume doesn't answer on both hosts")
	case executed && msg.Ready && msg.Role == Secondary && msg.Successor != 0:
		m.yield()
	case m.now-m.since <= m.cfg.PausePatience:
		return false
	case !m.paused:
		m.resume("the guest's effects and disk requests did not come to their end in time")
	case !executed:
		m.resume("the secondary did not execute the rest of the log in time")
	default:
		m.resume("the other host did not get ready to write to the volume in time")
	}
	return true
}

// resume gives the switchover up. The block was never asked for.
func (m *Machine) resume(why string) {
	m.emit(Resume{})
	m.change(AboutRole, Primary, why, "the switchover is given up: %s; the guest goes on here", why)
}

// yield writes the PAIR block with the roles exchanged.
func (m *Machine) yield() {
	n := m.next(m.block, Pair, m.cfg.Peer)
	n.Secondary, n.Seed = m.cfg.Self, Seed{Incarnation: m.seedPeer, N: m.peer.msg.Successor}
	m.enter(Yielding, "host %v has executed all of the log", m.cfg.Peer)
	m.swapTo(n)
}

// yielded follows: the state at the log's end is that of the new seeding.
func (m *Machine) yielded() {
	m.former, m.seed, m.progress = m.seed, m.block.Seed, Progress{}
	m.wantStop = ""
	m.offerSuccessor()
	m.emit(Yield{m.seed})
	m.enter(Secondary, "gave the VM to host %v, and follows it: %v", m.cfg.Peer, m.block)
}

// offerSuccessor names the seeding that a switchover from the present one would
// begin. Each seeding has another one.
func (m *Machine) offerSuccessor() {
	m.seeds++
	m.successor, m.ready, m.registering, m.called = m.seeds, false, 0, false
}

// withdrawSuccessor forgets it: this copy holds no seeding any more.
func (m *Machine) withdrawSuccessor() {
	m.successor, m.ready, m.registering, m.called = 0, false, 0, false
	m.former = Seed{}
}

// given says that a block makes this copy the primary, by a switchover from the
// seeding that it holds.
func (m *Machine) given(b Block) bool {
	return m.successor != 0 && b.Kind == Pair && b.Owner == m.cfg.Self && b.Secondary == m.cfg.Peer &&
		b.Seed == Seed{m.incarnation, m.successor}
}

// attend does a secondary's part while its primary hands over: it gets ready,
// and looks at the block when its turn may have come.
func (m *Machine) attend() {
	msg := m.peer.msg
	ours := msg.Seed == m.seed
	if ours && msg.Role == Pausing && !m.ready && m.registering == 0 && m.now >= m.registerAt {
		m.ops++
		m.registering = m.ops
		m.emit(Register{m.ops})
	}
	called := msg.Seed == Seed{m.incarnation, m.successor}
	if called && !m.called || (called || ours && msg.Role == Yielding) && m.now >= m.lookAt {
		m.called, m.lookAt = called, m.now+m.cfg.Retry
		m.read()
	}
}

func (m *Machine) registered(in Registered) {
	if m.registering == 0 || in.Op != m.registering {
		return
	}
	m.registering = 0
	if in.Err != nil {
		m.registerAt = m.now + m.cfg.Retry
		m.event(AboutVolume, in.Err.Error(), "can't write to the volume yet, tries again: %v", in.Err)
		return
	}
	m.ready, m.tell = true, true
}

// takeOver makes the secondary the primary: the block says so.
func (m *Machine) takeOver() {
	if m.role == Diverged {
		m.halt(AboutDivergence, "was given the VM, but has diverged: %v", m.block)
		return
	}
	former := m.seed
	m.withdrawSuccessor()
	m.former, m.seed, m.seedPeer, m.progress = former, m.block.Seed, former.Incarnation, Progress{}
	m.final, m.reannounce = false, false
	m.emit(TakeOver{m.seed})
	m.emit(Reissue{})
	m.emit(GoLive{m.block.Epoch})
	m.emit(Announce{})
	m.enter(Primary, "took over by a switchover: %v", m.block)
}
