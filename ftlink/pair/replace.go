package pair

import "fmt"

// names says that a PAIR block is about that host.
func (b Block) names(h HostID) bool { return b.Owner == h || b.Secondary == h }

// Replace gives a machine another peer: the host was paired anew, or with nobody (then peer is the number of a host that
// never answers). It is for a copy that is Alone and has nothing under way with the old peer: the block says SOLO with this
// host, so neither of the others can win. Copies that aren't live begin anew instead, with another Config.Peer. The link to
// the old peer is closed before.
func (m *Machine) Replace(peer HostID) error {
	switch {
	case peer == 0 || peer == m.cfg.Self:
		return fmt.Errorf("pair: hosts %v and %v: need two different ones", m.cfg.Self, peer)
	case m.role != Alone || m.doubt || m.pending != nil:
		return fmt.Errorf("the VM's copy here is %v, with host %v", m.role, m.cfg.Peer)
	}
	m.cfg.Peer = peer
	m.peer = peerView{}
	m.link, m.linkInc, m.seedPeer = false, 0, 0
	m.former, m.reannounce = Seed{}, false
	return nil
}
