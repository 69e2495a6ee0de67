package session

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

const (
	// maxBeacons is for how many link-local addresses of a NIC beacons go out.
	maxBeacons = 4
	// sendTime bounds how long a datagram waits for the NIC.
	sendTime = 10 * time.Millisecond
	retryUDP = time.Second
)

// allNodes is the group of all nodes of a link (RFC 4291, section 2.7.1):
// switches pass it on without asking, and it needs no joining.
var allNodes = netip.MustParseAddr("ff02::1")

// path is the datagrams of one path.
type path struct {
	link  *Link
	kind  Path
	cfg   PathConfig
	heard chan struct{} // signalled when the peer's address or process is new

	sending sync.Mutex // so that datagrams leave in the order of their counters

	mu      sync.Mutex
	socket  *net.UDPConn // nil while there is none
	peer    netip.AddrPort
	counter uint64
	guard   guard
	stats   PathStats
}

func newPath(l *Link, kind Path, cfg PathConfig) *path {
	p := &path{link: l, kind: kind, cfg: cfg, heard: make(chan struct{}, 1)}
	if cfg.Peer.IsValid() {
		p.peer = cfg.Peer
		if p.peer.Port() == 0 {
			p.peer = netip.AddrPortFrom(p.peer.Addr(), l.cfg.port())
		}
	}
	return p
}

// run receives datagrams until ctx ends. A socket that can't be opened, or
// fails, is tried again: the NIC may appear later.
func (p *path) run(ctx context.Context) {
	for ctx.Err() == nil {
		socket, err := p.listenUDP(ctx)
		if err == nil {
			err = p.receive(ctx, socket)
		}
		if ctx.Err() == nil {
			p.link.complain(fmt.Errorf("%v path: %w", p.kind, err))
			pause(ctx, nil, retryUDP)
		}
	}
}

// receive reads one socket until it fails or ctx ends.
func (p *path) receive(ctx context.Context, socket *net.UDPConn) error {
	stop := context.AfterFunc(ctx, func() { _ = socket.Close() })
	defer stop()
	p.setSocket(socket)
	defer func() {
		p.setSocket(nil)
		_ = socket.Close()
	}()
	buf := make([]byte, MaxDatagram+1)
	for {
		n, from, err := socket.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		d, ok := p.accept(buf[:n], from)
		switch {
		case !ok:
		case d.kind == kindHeartbeat:
			p.link.cfg.Handler.Heartbeat(p.kind, d.payload)
		case d.kind == kindEcho:
			p.send(kindAnswer, from, d.payload)
		case d.kind == kindAnswer:
			p.link.trips.answered(d.payload, time.Now())
		}
	}
}

func (p *path) setSocket(s *net.UDPConn) {
	p.mu.Lock()
	p.socket = s
	p.mu.Unlock()
}

// accept judges a datagram, and reports whether it counts; a beacon that counts it
// keeps to itself.
func (p *path) accept(b []byte, from netip.AddrPort) (datagram, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d, err := parseDatagram(b)
	if err != nil || d.path != p.kind || d.slot != p.link.cfg.slotByte() {
		p.stats.Malformed++
		return datagram{}, false
	}
	var hint beacon
	if d.kind == kindBeacon {
		if hint, err = parseBeacon(d.payload); err != nil || hint.address != from.Addr().WithZone("") {
			p.stats.Malformed++
			return datagram{}, false
		}
	}
	fresh := p.guard.fresh(d.incarnation, d.counter)
	// A beacon is only a hint, and TLS proves whether it leads to the peer. So
	// without a stream even one of an earlier incarnation is good: it may be
	// all there is when the peer's clock went back.
	if !fresh && (d.kind != kindBeacon || p.guard.pinned) {
		p.stats.Stale++
		return datagram{}, false
	}
	if !authentic(b, p.link.keys.in) {
		p.stats.Unverified++
		if d.kind == kindBeacon {
			p.stats.Stranger = fmt.Sprintf("%s %x", strconv.QuoteToASCII(hint.name), hint.fingerprint)
		}
		return datagram{}, false
	}
	renewed := fresh && d.incarnation != p.guard.incarnation
	if fresh {
		p.guard.accept(d.incarnation, d.counter)
	}
	p.stats.Received++
	if d.kind == kindBeacon {
		p.learn(from, renewed)
		return datagram{}, false
	}
	return d, true
}

// learn notes where the peer is. A new address, or a process that has just
// begun, is worth another attempt at once.
func (p *path) learn(from netip.AddrPort, renewed bool) {
	if p.cfg.Peer.IsValid() || (p.peer == from && !renewed) {
		return
	}
	p.peer = from
	select {
	case p.heard <- struct{}{}:
	default:
	}
}

func (p *path) peerAddr() netip.AddrPort {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.peer
}

func (p *path) pin(incarnation uint64) {
	p.mu.Lock()
	p.guard.pin(incarnation)
	p.mu.Unlock()
}

func (p *path) unpin() {
	p.mu.Lock()
	p.guard.unpin()
	p.mu.Unlock()
}

func (p *path) snapshot() PathStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stats
	s.Peer = p.peer
	return s
}

// heartbeat sends a heartbeat to the peer.
func (p *path) heartbeat(payload []byte) { p.send(kindHeartbeat, p.peerAddr(), payload) }

// beacon tells the other nodes of the link where this host is.
func (p *path) beacon() {
	if p.cfg.Interface == "" || p.cfg.Peer.IsValid() {
		return
	}
	self := p.link.cfg.Self
	b := beacon{fingerprint: fingerprint(publicHalf(self.Key)), name: self.Name}
	to := netip.AddrPortFrom(allNodes.WithZone(p.cfg.Interface), p.link.cfg.port())
	// The kernel chooses which of them is the source; the beacon that names it
	// counts.
	addresses := linkLocals(p.cfg.Interface)
	for _, b.address = range addresses[:min(len(addresses), maxBeacons)] {
		p.send(kindBeacon, to, b.append(nil))
	}
}

// send makes a datagram and sends it.
func (p *path) send(kind datagramKind, to netip.AddrPort, payload []byte) {
	cfg := &p.link.cfg
	p.sending.Lock()
	defer p.sending.Unlock()
	p.mu.Lock()
	socket := p.socket
	p.counter++
	d := datagram{
		kind: kind, path: p.kind, slot: cfg.slotByte(),
		incarnation: cfg.Incarnation, counter: p.counter, payload: payload,
	}
	p.mu.Unlock()
	sent := false
	if socket != nil && to.IsValid() {
		b := seal(make([]byte, 0, MaxDatagram), d, p.link.keys.out)
		if socket.SetWriteDeadline(time.Now().Add(sendTime)) == nil {
			_, err := socket.WriteToUDPAddrPort(b, to)
			sent = err == nil
		}
	}
	p.mu.Lock()
	if sent {
		p.stats.Sent++
	} else {
		p.stats.Unsent++
	}
	p.mu.Unlock()
}
