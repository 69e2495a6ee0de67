package pair

// advanceLive watches the secondary, or looks for one.
func (m *Machine) advanceLive() bool {
	if m.wantStop != "" && m.pending == nil && m.role != Stopping {
		m.stop()
		return true
	}
	if m.reannounce && m.role != Stopping && m.heard() && m.peer.msg.Role == Standby {
		// A former primary that was slow may have let go what was acknowledged
		// long ago, and the network have learnt the wrong way from it. It holds
		// nothing any more.
		m.reannounce = false
		m.emit(Announce{})
	}
	switch m.role {
	case Alone:
		return m.beginSeed()
	case Seeding:
		return m.advanceSeeding()
	case Gating:
		return m.advanceGating()
	case Primary:
		if k, why := m.secondaryLost(); why != "" {
			m.resolve(k, why)
			return true
		}
		return m.leave()
	case Pausing:
		return m.advancePausing()
	}
	return false
}

// beginSeed seeds the peer when it is there, empty and of use.
func (m *Machine) beginSeed() bool {
	msg := m.peer.msg
	if m.unprotected || m.doubt || !m.link || !m.heard() || m.linkInc != msg.Incarnation || msg.Role != Standby ||
		msg.VolumeLost || msg.Drained || m.volumeLost() || m.now < m.seedHold {
		return false
	}
	m.seeds++
	m.seed = Seed{Incarnation: m.incarnation, N: m.seeds}
	m.former = Seed{}
	m.seedPeer, m.progress, m.gated, m.torn = msg.Incarnation, Progress{}, false, false
	m.enter(Seeding, "seeds host %v (%v)", m.cfg.Peer, m.seed)
	m.emit(StartSeed{m.seed})
	return true
}

func (m *Machine) advanceSeeding() bool {
	if k, why := m.secondaryLost(); why != "" {
		m.abandonSeed(k, why)
		return true
	}
	if msg := m.peer.msg; msg.Role != Secondary || msg.Seed != m.seed {
		return false
	}
	m.enter(Gating, "host %v holds the full state; effects wait for it", m.cfg.Peer)
	m.emit(Gate{GateAcked})
	return true
}

// advanceGating writes the PAIR block once the secondary can explain
// everything that left while the gate was open.
func (m *Machine) advanceGating() bool {
	if k, why := m.secondaryLost(); why != "" {
		m.abandonSeed(k, why)
		return true
	}
	reached := m.progress.Verified
	if m.cfg.Level == LevelReceived {
		reached = m.progress.Received
	}
	if !m.gated || reached < m.gatedAt || m.pending != nil {
		return false
	}
	n := m.next(m.block, Pair, m.cfg.Self)
	n.Secondary, n.Seed = m.cfg.Peer, m.seed
	m.enter(Pairing, "the secondary is at LSN %d of %d", reached, m.gatedAt)
	m.swapTo(n)
	return true
}

// secondaryLost says why the seeding or the lockstep is over, "" if it isn't, and
// what that is about.
func (m *Machine) secondaryLost() (Kind, string) {
	why := m.lostBy()
	switch why {
	case Diverge.String():
		return AboutDivergence, why
	case peerDrained, notWanted:
		return AboutCommand, why
	}
	return AboutSuspicion, why
}

const peerDrained = "the other host is drained"

func (m *Machine) lostBy() string {
	msg := m.peer.msg
	ours := msg.Seed == m.seed
	switch {
	case msg.Incarnation != m.seedPeer:
		return "the secondary was restarted"
	case !m.heard():
		return "the secondary is silent"
	case m.torn:
		return "the log stream is down"
	case m.directSilent(m.cfg.LinkPatience):
		return "the direct link is silent"
	case ours && msg.Role == Diverged:
		return Diverge.String()
	case ours && msg.Drained:
		return peerDrained
	case m.unwanted():
		return notWanted
	case m.role == Seeding:
		return ""
	case m.former != Seed{} && msg.Seed == m.former && (msg.Role == Primary || msg.Role == Pausing || msg.Role == Yielding):
		// What it said since, or will say, is still on its way.
		if m.now-m.since > m.cfg.LinkPatience {
			return "the former primary doesn't know that it is the secondary"
		}
		return ""
	case !ours || msg.Role != Secondary && msg.Role != Consuming:
		return "the secondary is " + msg.Role.String()
	}
	return ""
}

// abandonSeed gives up a seeding whose PAIR block was never asked for, so that
// nobody else can run the VM.
func (m *Machine) abandonSeed(k Kind, why string) {
	m.endSeed()
	m.seedHold = m.now + m.cfg.Reseed
	if !m.doubt {
		m.emit(Gate{GateOpen})
	}
	m.change(k, Alone, "", "%s", why)
}

// resolve asks for the block after the secondary is lost. Until it is won,
// effects wait: the secondary may win instead.
func (m *Machine) resolve(k Kind, why string) {
	m.change(k, Resolving, why, "%s; effects wait until the block is won", why)
	m.swapTo(m.next(m.block, Solo, m.cfg.Self))
}

// stop writes the FREE block.
func (m *Machine) stop() {
	m.emit(Gate{GateClosed})
	m.endSeed()
	m.enter(Stopping, "%s", m.wantStop)
	m.wantStop = ""
	m.swapTo(m.next(m.block, Free, 0))
}

// fault takes a fault of the local copy in.
func (m *Machine) fault(f Fault) {
	switch f {
	case Crashed:
		if m.role == Standby || m.role == Starting {
			return
		}
		m.hold = m.now + m.cfg.Grace
		m.halt(AboutRole, "%v", f)
	case Diverge:
		m.diverged()
	case Shutdown, Unbootable:
		if m.role.Live() && m.role != Stopping && m.role != Yielding {
			m.wantStop = f.String()
		}
	case SeedFailed:
		switch m.role {
		case Seeding, Gating:
			m.abandonSeed(AboutSeed, f.String())
		case Primary:
			m.resolve(AboutSeed, f.String())
		case Pausing:
			m.emit(Resume{})
			m.resolve(AboutSeed, f.String())
		case Receiving:
			m.halt(AboutSeed, "%v", f)
		}
	case Lagging:
		switch m.role {
		case Seeding, Gating:
			m.abandonSeed(AboutSeed, f.String())
		case Primary:
			m.resolve(AboutSeed, f.String())
		case Pausing:
			m.emit(Resume{})
			m.resolve(AboutSeed, f.String())
		}
	case Refused:
		if m.role.Live() {
			m.suspectBlock(f.String())
		}
	}
}

func (m *Machine) diverged() {
	switch {
	case m.role == Receiving: // it followed the log before it said so
		m.halt(AboutDivergence, "%v", Diverge)
	case m.role == Secondary:
		m.enter(Diverged, "%v; waits for the primary to drop this copy", Diverge)
	case m.role == Consuming && m.cfg.Level == LevelVerified:
		m.event(AboutDivergence, Diverge.String(), "%v while executing the rest of the log; goes on from there", Diverge)
		m.claim("executes no further")
	case m.role == Consuming:
		m.halt(AboutDivergence, "%v, and effects may have left that this copy can't make", Diverge)
	}
}
