package pair

import "fmt"

func (m *Machine) seedBegin(s Seed) {
	if m.role != Standby || m.pending != nil || s == (Seed{}) || m.drained {
		m.emit(EndSeed{s})
		m.dropLink()
		why := fmt.Sprintf("this copy is %v%s", m.role, map[bool]string{true: ", and this host is drained"}[m.drained])
		m.event(AboutSeed, why, "refused seeding %v: %s", s, why)
		return
	}
	m.seed, m.former, m.progress, m.torn = s, Seed{}, Progress{}, !m.link
	m.offerSuccessor()
	m.enter(Receiving, "is being seeded (%v)", s)
}

func (m *Machine) seeded(s Seed) {
	if m.role == Receiving && s == m.seed {
		m.enter(Secondary, "holds the full state of seeding %v", s)
	}
}

// advanceSecondary watches the primary.
func (m *Machine) advanceSecondary() bool {
	if why := m.dropped(); why != "" {
		m.halt(AboutRole, "%s", why)
		return true
	}
	gone, final := m.primaryGone()
	switch m.role {
	case Receiving:
		if gone != "" || m.torn {
			m.halt(AboutSeed, "seeding %v broke off: %s", m.seed, or(gone, "the link is down"))
			return true
		}
	case Secondary:
		if gone != "" {
			m.final = final
			m.enter(Consuming, "%s", gone)
			m.emit(Consume{})
			return true
		}
		m.attend()
	case Diverged:
		if gone == "" {
			return false
		}
		if m.cfg.Level == LevelReceived {
			m.halt(AboutSuspicion, "%s, and this copy can't follow its log", gone)
			return true
		}
		// Nothing left the pair that this copy hasn't verified.
		m.final = true
		m.enter(Consuming, "%s", gone)
		m.claim("executes no further")
		return true
	case Consuming:
		m.final = m.final || final
		if gone == "" && !m.final {
			m.enter(Secondary, "the primary is heard again")
			return true
		}
	}
	return false
}

// primaryGone says why the primary counts as gone, "" if it doesn't; final
// that it can't come back.
func (m *Machine) primaryGone() (why string, final bool) {
	msg := m.peer.msg
	switch {
	case m.link && m.linkInc != m.seed.Incarnation:
		return "the primary was restarted", true
	case !m.peer.known:
		return "", false // the first heartbeat is still on its way
	case msg.Incarnation != m.seed.Incarnation:
		return "the primary was restarted", true
	case m.heard() && msg.Role == Standby && m.heldBy(msg):
		return "the primary has halted its copy", true
	case !m.heard():
		return "the primary is silent", false
	case m.role == Receiving:
		return "", false
	case m.former != Seed{} && msg.Seed != m.seed && m.now-m.since > m.cfg.LinkPatience:
		return "the host that the VM was given to doesn't take it", true
	case m.torn && m.now-m.tornAt > m.cfg.LinkPatience:
		return "the log stream is down", true
	case m.directSilent(2 * m.cfg.LinkPatience):
		return "the direct link is silent", true
	case msg.VolumeLost && msg.Role == Primary && m.onlyWeReach():
		return "the primary has lost the volume", true
	}
	return "", false
}

// heldBy says that the primary's last seeding is the present one, or was the one
// before it while that copy was the secondary.
func (m *Machine) heldBy(msg Message) bool {
	return msg.Seed == m.seed || m.former != Seed{} && msg.Seed == m.former
}

// onlyWeReach says that the volume answers here, and has for so long that the
// primary would know if it answered there.
func (m *Machine) onlyWeReach() bool {
	return m.now-m.blockAt < 2*m.cfg.VolumeCheck && m.now-m.backAt > 2*m.cfg.VolumeCheck
}

// dropped says why the primary goes on without this copy, "" if it doesn't.
func (m *Machine) dropped() string {
	msg := m.peer.msg
	switch {
	case !m.peer.known || msg.Incarnation != m.seed.Incarnation:
		return ""
	case msg.Seed.N > m.seed.N && msg.Seed.Incarnation == m.seed.Incarnation:
		return "the primary began another seeding"
	case msg.Role == Alone && m.heldBy(msg):
		return "the primary goes on alone"
	}
	return ""
}

// claim asks for the block. Everything that was received is executed, and
// from here on nothing is.
func (m *Machine) claim(why string) {
	m.change(AboutRole, Claiming, why, "%s; asks for the block", why)
	m.emit(Seal{})
	m.dropLink()
	m.reading = m.read()
}

// decideClaim swaps only from the very seeding that this copy holds, or from the
// one that a switchover to this copy began.
func (m *Machine) decideClaim() {
	b := m.block
	if !m.given(b) && (b.Kind != Pair || b.Secondary != m.cfg.Self || b.Seed != m.seed) {
		m.halt(AboutArbiter, "may not go live: the block says %v, this copy holds seeding %v", b, m.seed)
		return
	}
	m.swapTo(m.next(b, Solo, m.cfg.Self))
}
