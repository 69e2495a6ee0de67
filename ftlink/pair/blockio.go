package pair

import (
	"errors"
	"time"
)

// swap is a COMPARE AND WRITE whose outcome isn't known yet.
type swap struct {
	op       uint64
	old, new Block
	retryAt  time.Duration // 0: an attempt is under way
}

var errStrange = errors.New("the swap failed although the block holds what was expected")

// next returns the block that would follow b.
func (m *Machine) next(b Block, kind BlockKind, owner HostID) Block {
	m.nonces++
	return Block{
		VM: m.cfg.VM, Kind: kind, Epoch: b.Epoch + 1, Owner: owner,
		Nonce: Nonce{Incarnation: m.incarnation, N: m.nonces},
	}
}

// swapTo starts to replace the block that is known. It is tried until its
// outcome is known, and no other is begun before: the old block still being
// there proves nothing while an attempt may be on its way.
func (m *Machine) swapTo(n Block) {
	m.pending = &swap{old: m.block, new: n}
	m.attempt()
}

func (m *Machine) attempt() {
	m.ops++
	m.pending.op, m.pending.retryAt = m.ops, 0
	m.emit(Arbiter{Op: m.ops, Kind: Swap, Old: m.pending.old, New: m.pending.new})
}

// read asks for the block and returns the operation.
func (m *Machine) read() uint64 {
	m.ops++
	m.readAt = m.now + m.cfg.VolumeCheck
	m.emit(Arbiter{Op: m.ops, Kind: Read})
	return m.ops
}

// retry begins anew what failed and is due.
func (m *Machine) retry() {
	if p := m.pending; p != nil && p.retryAt != 0 && m.now >= p.retryAt {
		m.attempt()
	}
	if m.role == Fencing && !m.fencing && m.now >= m.fenceAt {
		m.fence()
	}
}

func (m *Machine) arbiterDone(in ArbiterDone) {
	p := m.pending
	ours := p != nil && in.Op == p.op
	decision := m.reading != 0 && in.Op >= m.reading // asked since the question came up
	if in.Answer == Unknown {
		m.trouble = in.Err
		if ours {
			p.retryAt = m.now + m.cfg.Retry
		}
		if decision {
			m.readAt = m.now + m.cfg.Retry
		}
		return
	}
	b := in.Block
	if in.Answer == Swapped {
		if !ours {
			m.readAt = m.now // a write from before a halt: see what it made
			return
		}
		b = p.new
	}
	if b.VM != m.cfg.VM {
		m.trouble = errors.New("the arbiter block belongs to VM " + b.VM.String())
		if ours {
			p.retryAt = m.now + m.cfg.Retry
		}
		return
	}
	m.learn(b)
	if ours && m.pending == p { // the block still holds what the swap expected
		m.trouble, p.retryAt = errStrange, m.now+m.cfg.Retry
	}
	if decision && m.reading != 0 {
		m.reading = 0
		m.decide()
	}
}

// decide goes on with what waited for the block to be read.
func (m *Machine) decide() {
	switch {
	case m.role == Claiming && m.pending == nil:
		m.decideClaim()
	case m.doubt:
		m.doubt = false
		m.emit(Gate{GateOpen})
		m.event(AboutArbiter, "", "the block is still ours: %v", m.block)
	}
}

// learn takes in a block that was read. An older one than is known is a
// reply that was overtaken.
func (m *Machine) learn(b Block) {
	if b.Epoch < m.block.Epoch {
		return
	}
	if m.volumeLost() {
		m.backAt = m.now
	}
	before := m.block
	m.block, m.blockAt = b, m.now
	if p := m.pending; p != nil {
		switch b {
		case p.old:
		case p.new:
			m.pending = nil
			m.won()
		default:
			m.pending = nil
			m.beaten(b)
		}
		return
	}
	switch {
	case m.role >= Secondary && m.role <= Consuming && m.given(b):
		m.takeOver()
	case m.role.owns() && before != b:
		m.beaten(b)
	}
}

// won follows a swap that took place.
func (m *Machine) won() {
	switch m.role {
	case Starting, Claiming:
		m.enter(Fencing, "won %v", m.block)
		m.fence()
	case Pairing:
		m.enter(Primary, "protected: %v", m.block)
	case Yielding:
		m.yielded()
	case Resolving:
		m.endSeed()
		m.seedHold = m.now + m.cfg.Reseed
		m.emit(Gate{GateOpen})
		m.enter(Alone, "unprotected: won %v", m.block)
	case Stopping:
		m.halt(AboutArbiter, "the VM is off: %v", m.block)
	}
}

// beaten follows a block that somebody else wrote.
func (m *Machine) beaten(b Block) {
	if m.role == Starting {
		m.boot = false
		m.change(AboutArbiter, Standby, "", "not started here: the block says %v", b)
		return
	}
	if m.role == Claiming && m.given(b) {
		m.decideClaim()
		return
	}
	m.halt(AboutArbiter, "lost the VM: the block says %v", b)
}

// suspectBlock has the block read because it may have been given away.
func (m *Machine) suspectBlock(why string) {
	if m.doubt {
		return
	}
	switch m.role {
	case Alone, Seeding, Gating:
		m.doubt = true
		m.emit(Gate{GateClosed})
		if m.role != Alone {
			m.abandonSeed(AboutArbiter, why)
		}
		m.event(AboutArbiter, why, "%s; effects wait until the block is read", why)
		m.reading = m.read()
	default: // what leaves was acknowledged, or nothing does
		m.readAt = m.now
	}
}

// volumeLost says that the volume hasn't answered for long.
func (m *Machine) volumeLost() bool {
	return m.block.Epoch == 0 || m.now-m.blockAt > m.cfg.VolumeStale
}

func (m *Machine) checkVolume() {
	lost := m.volumeLost() && m.now-m.startedAt > m.cfg.VolumeStale
	if lost == m.lost {
		return
	}
	m.lost, m.tell = lost, true
	switch {
	case !lost:
		m.event(AboutVolume, "", "the volume answers again")
	case m.trouble != nil:
		m.event(AboutVolume, m.trouble.Error(), "the volume can't be used: %v", m.trouble)
	default:
		m.event(AboutVolume, "", "the volume can't be used: it doesn't answer")
	}
}
