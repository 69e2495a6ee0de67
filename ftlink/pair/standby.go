package pair

// advanceStandby boots the VM from its disk when that is safe: nobody holds a
// better state, or nobody can be asked.
func (m *Machine) advanceStandby() bool {
	b := m.block
	if b.Epoch == 0 || m.blockAt < m.since || m.pending != nil || m.now < m.hold {
		return false // not read since the role was entered
	}
	if m.heard() && m.peer.msg.Role.holds() || m.heard() && m.peer.msg.Role == Starting {
		return false
	}
	// A peer that is heard holds nothing; one that isn't may need a moment to
	// go live, and may only be hard to hear. A diverged one may have to win
	// before it counts as nothing.
	quiet := m.now - max(m.since, m.peer.heard)
	alone := m.heard() && m.peer.msg.Role != Diverged || quiet >= m.cfg.Grace
	if m.drained {
		m.stayIdle(b)
		return false
	}
	switch {
	case b.Kind == Free && m.wantStart:
		m.startFromDisk("starts")
	case b.Kind == Solo && b.Owner == m.cfg.Self:
		m.startFromDisk("restarts: this host ran the VM alone")
	case b.Kind == Pair && alone && b.names(m.cfg.Self):
		m.startFromDisk("restarts: no copy with state is heard")
	default:
		return false
	}
	return true
}

func (m *Machine) startFromDisk(why string) {
	m.wantStart, m.boot = false, true
	m.change(AboutRole, Starting, why, "%s; the block says %v", why, m.block)
	m.swapTo(m.next(m.block, Solo, m.cfg.Self))
}

// fence shuts the other host out. It comes before anything of the guest's.
func (m *Machine) fence() {
	m.fencing = true
	m.emit(Fence{m.cfg.Peer})
}

func (m *Machine) fenceDone(err error) {
	if m.role != Fencing || !m.fencing {
		return
	}
	m.fencing = false
	if err != nil {
		m.fenceAt = m.now + m.cfg.Retry
		m.event(AboutFence, err.Error(), "could not fence host %v, tries again: %v", m.cfg.Peer, err)
		return
	}
	if m.boot {
		m.boot = false
		m.emit(Gate{GateOpen})
		m.emit(Boot{m.block.Epoch})
	} else {
		m.emit(Reissue{})
		m.emit(Gate{GateOpen})
		m.emit(GoLive{m.block.Epoch})
	}
	m.emit(Announce{})
	m.reannounce = true
	m.seedHold = 0
	m.enter(Alone, "host %v is fenced; live", m.cfg.Peer)
}

func (m *Machine) command(v Verb) {
	switch v {
	case Start:
		m.commandStart()
	case ForceStart:
		m.forceStart()
	case Switchover:
		m.switchover("a user asks")
	case TestFailover:
		m.testFailover()
	case Drain, Undrain:
		m.drain(v == Drain)
	case Unprotect, Protect:
		m.unprotect(v == Unprotect)
	case Stop:
		switch {
		case m.role == Yielding:
			m.event(AboutCommand, "", "refused to stop: the VM is on its way to host %v; ask that host", m.cfg.Peer)
		case m.role.Live(), m.role == Starting, m.role == Fencing:
			m.wantStop = "a user stops the VM"
		case m.role == Standby && m.wantStart:
			m.wantStart = false
			m.event(AboutCommand, "", "the start is taken back")
		default:
			m.event(AboutCommand, "", "refused to stop: the VM doesn't run here; ask host %v", m.cfg.Peer)
		}
	}
}

func (m *Machine) commandStart() {
	switch {
	case m.drained:
		m.event(AboutCommand, "", "refused to start: this host is drained; undrain it, or start the VM on host %v", m.cfg.Peer)
	case m.role != Standby:
		m.event(AboutCommand, "", "refused to start: this copy is already in use (%v)", m.role)
	case m.block.Epoch != 0 && m.block.Kind != Free:
		m.event(AboutCommand, "", "refused to start: the block says %v; the VM starts there by itself, or by a forced start here", m.block)
	default:
		m.wantStart = true
	}
}

func (m *Machine) forceStart() {
	switch {
	case m.drained:
		m.event(AboutCommand, "", "refused a forced start: this host is drained; undrain it first")
	case m.role != Standby:
		m.event(AboutCommand, "", "refused a forced start: this copy is already in use (%v)", m.role)
	case m.block.Epoch == 0 || m.blockAt < m.since:
		m.event(AboutCommand, "", "refused a forced start: the volume hasn't been read")
	case m.heard() && m.peer.msg.Role.holds():
		m.event(AboutCommand, "", "refused a forced start: host %v is alive and its copy is %v", m.cfg.Peer, m.peer.msg.Role)
	default:
		m.startFromDisk("a user forces the start")
	}
}
