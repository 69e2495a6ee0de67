package session

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/duet-ft/duet/ftlink/nic"
)

const (
	// maxBeacons is for how many link-local addresses of a NIC beacons go out.
	maxBeacons = 4
	retryUDP   = time.Second
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

	// What sending takes is under no lock: a heartbeat must not wait until
	// another thread, which holds it, has its turn on the processor.
	sender       atomic.Pointer[sender] // nil while there is no socket
	peer         atomic.Pointer[netip.AddrPort]
	counter      atomic.Uint64
	sent, unsent atomic.Uint64

	mu    sync.Mutex
	guard guard
	stats PathStats // but for what was sent, and Peer
}

func newPath(l *Link, kind Path, cfg PathConfig) *path {
	p := &path{link: l, kind: kind, cfg: cfg, heard: make(chan struct{}, 1)}
	if peer := cfg.Peer; peer.IsValid() {
		if peer.Port() == 0 {
			peer = netip.AddrPortFrom(peer.Addr(), l.cfg.port())
		}
		p.peer.Store(&peer)
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
	defer socket.Close()
	s, err := newSender(socket)
	if err != nil {
		return err
	}
	p.sender.Store(s)
	defer p.sender.Store(nil)
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
	if p.cfg.Peer.IsValid() || (p.peerAddr() == from && !renewed) {
		return
	}
	p.peer.Store(&from)
	select {
	case p.heard <- struct{}{}:
	default:
	}
}

// peerAddr is where the peer is; not valid while that isn't known.
func (p *path) peerAddr() netip.AddrPort {
	if peer := p.peer.Load(); peer != nil {
		return *peer
	}
	return netip.AddrPort{}
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
	s.Peer, s.Sent, s.Unsent = p.peerAddr(), p.sent.Load(), p.unsent.Load()
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
	addresses := nic.LinkLocals(p.cfg.Interface)
	for _, b.address = range addresses[:min(len(addresses), maxBeacons)] {
		p.send(kindBeacon, to, b.append(nil))
	}
}

// send makes a datagram and sends it. One that another overtakes on its way out is
// stale to the peer, as if it were lost.
func (p *path) send(kind datagramKind, to netip.AddrPort, payload []byte) {
	cfg := &p.link.cfg
	d := datagram{
		kind: kind, path: p.kind, slot: cfg.slotByte(),
		incarnation: cfg.Incarnation, counter: p.counter.Add(1), payload: payload,
	}
	if s := p.sender.Load(); s != nil && to.IsValid() && s.send(seal(make([]byte, 0, MaxDatagram), d, p.link.keys.out), to) == nil {
		p.sent.Add(1)
	} else {
		p.unsent.Add(1)
	}
}
