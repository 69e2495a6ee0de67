package pair

import (
	"fmt"
	"time"
)

// peerView is what a machine knows of the other host's copy.
type peerView struct {
	known bool
	msg   Message       // the newest
	heard time.Duration // when it came

	pathSeq   [paths]uint64        // newest message that came over each path
	pathHeard [paths]time.Duration // when it came
}

// receive takes a message in. Foreign, late and repeated ones are dropped;
// the other path carries a copy of each. Incarnations have no order, so a new
// one is believed when the old one has fallen silent, or when the log stream
// says so: else a message that was long on its way could pass for a restart.
func (m *Machine) receive(in Received) {
	msg := in.Msg
	if msg.VM != m.cfg.VM || msg.From != m.cfg.Peer || msg.Role == 0 || msg.Role >= roles || in.Path >= paths {
		return
	}
	p := &m.peer
	if p.known && msg.Incarnation == p.msg.Incarnation {
		p.hear(in.Path, msg.Seq, m.now)
	}
	switch {
	case p.known && msg.Incarnation == p.msg.Incarnation && msg.Seq <= p.msg.Seq:
		return
	case p.known && msg.Incarnation != p.msg.Incarnation:
		if m.now-p.heard <= 2*m.cfg.Heartbeat {
			return
		}
		p.pathSeq = [paths]uint64{}
	}
	p.hear(in.Path, msg.Seq, m.now)
	p.known, p.msg, p.heard = true, msg, m.now
	if msg.Seed == m.seed {
		m.former = Seed{} // it knows of the switchover that began this seeding
	}
	if m.seedPeer == msg.Incarnation && m.seed == msg.Seed && m.role.Live() {
		m.progress.Received = max(m.progress.Received, msg.Received)
		m.progress.Verified = max(m.progress.Verified, msg.Verified)
	}
	if m.role.owns() && msg.Role.owns() && msg.Epoch > m.block.Epoch {
		m.suspectBlock(fmt.Sprintf("host %v says that it owns epoch %d", m.cfg.Peer, msg.Epoch))
	}
}

// hear notes that a path works.
func (p *peerView) hear(path Path, seq uint64, now time.Duration) {
	if seq > p.pathSeq[path] {
		p.pathSeq[path], p.pathHeard[path] = seq, now
	}
}

// directSilent says that nothing came over the direct link for as long as d,
// in the present role. The log stream may not notice by itself.
func (m *Machine) directSilent(d time.Duration) bool {
	return m.now-max(m.peer.pathHeard[Direct], m.since) > d
}

// heard says that the peer isn't suspected.
func (m *Machine) heard() bool {
	return m.peer.known && m.now-m.peer.heard <= time.Duration(m.cfg.SuspectAfter)*m.cfg.Heartbeat
}

// beat sends a heartbeat on both paths.
func (m *Machine) beat() {
	m.tell, m.beatAt = false, m.now+m.cfg.Heartbeat
	m.sequence++
	msg := Message{
		VM: m.cfg.VM, From: m.cfg.Self, Incarnation: m.incarnation, Seq: m.sequence, Role: m.role,
		VolumeLost: m.volumeLost(), Drained: m.drained, Epoch: m.block.Epoch, Seed: m.seed,
	}
	if !m.role.Live() {
		msg.Received, msg.Verified = m.progress.Received, m.progress.Verified
		msg.Ready, msg.Successor = m.ready, m.successor
	}
	for p := range paths {
		m.emit(Send{Path: p, Msg: msg})
	}
}
