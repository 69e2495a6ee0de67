package partner

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/duet-ft/duet/ftlink/nic"
	"github.com/duet-ft/duet/ftlink/pairing"
	"golang.org/x/sys/unix"
)

// allNodes is the group of all nodes of a link (RFC 4291, section 2.7.1).
var allNodes = netip.MustParseAddr("ff02::1")

// retry is the pause before a socket that failed is opened again: the NIC may be down still.
const retry = time.Second

// How long and how often a neighbour that was heard is dialled.
const (
	dialPatience = 6 * time.Second
	dialAgain    = 100 * time.Millisecond
)

// maxAddresses bounds for how many addresses of a NIC beacons go out.
const maxAddresses = 4

// bind makes a socket see the traffic of one NIC only.
func bind(nic string) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		if nic == "" {
			return nil
		}
		var err error
		if e := c.Control(func(fd uintptr) {
			err = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, nic)
		}); e != nil {
			return e
		}
		return err
	}
}

func (n NIC) listen() netip.Addr {
	if n.Listen.IsValid() {
		return n.Listen
	}
	return netip.IPv6Unspecified()
}

// dial connects to a neighbour. Right after a host's start that takes a moment: its beacon may be heard before this host's own
// address is known to be its only (RFC 4862, section 5.4: connecting fails with EADDRNOTAVAIL), or before it listens.
func (h *Host) dial(ctx context.Context, n pairing.Neighbour) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	for {
		c, err := h.dialOnce(ctx, n)
		if err == nil || !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ECONNREFUSED) {
			return c, err
		}
		if pause(ctx, dialAgain); ctx.Err() != nil {
			return nil, err
		}
	}
}

func (h *Host) dialOnce(ctx context.Context, n pairing.Neighbour) (net.Conn, error) {
	d := net.Dialer{Control: bind(n.NIC)}
	address := n.Address
	if n.NIC != "" {
		address = address.WithZone(n.NIC)
	}
	return d.DialContext(ctx, "tcp", netip.AddrPortFrom(address, uint16(h.cfg.Port)).String())
}

// accept serves the runs that other hosts begin on a NIC, until ctx ends.
func (h *Host) accept(ctx context.Context, nic NIC) {
	for ctx.Err() == nil {
		lc := net.ListenConfig{Control: bind(nic.Name)}
		l, err := lc.Listen(ctx, "tcp", netip.AddrPortFrom(nic.listen(), uint16(h.cfg.Port)).String())
		if err == nil {
			stop := context.AfterFunc(ctx, func() { l.Close() })
			h.acceptFrom(ctx, l, nic.Name)
			stop()
			l.Close()
		}
		pause(ctx, retry)
	}
}

func (h *Host) acceptFrom(ctx context.Context, l net.Listener, nic string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		select {
		case h.runs <- struct{}{}:
			go func() {
				defer func() { <-h.runs }()
				h.serve(ctx, c, nic)
			}()
		default:
			c.Close()
		}
	}
}

// beacons sends and receives beacons on a NIC until ctx ends.
func (h *Host) beacons(ctx context.Context, nic NIC) {
	for ctx.Err() == nil {
		lc := net.ListenConfig{Control: bind(nic.Name)}
		p, err := lc.ListenPacket(ctx, "udp6", fmt.Sprintf("[::]:%d", h.cfg.Port))
		if err != nil {
			pause(ctx, retry)
			continue
		}
		ear, cancel := context.WithCancel(ctx)
		stop := context.AfterFunc(ear, func() { p.Close() })
		go h.send(ear, p, nic.Name)
		h.receive(p, nic.Name)
		cancel()
		stop()
		p.Close()
		pause(ctx, retry)
	}
}

// send sends a beacon each second, from each address that the NIC has.
func (h *Host) send(ctx context.Context, p net.PacketConn, name string) {
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(allNodes.WithZone(name), uint16(h.cfg.Port)))
	for ctx.Err() == nil {
		list := nic.LinkLocals(name)
		for _, a := range list[:min(len(list), maxAddresses)] {
			// What isn't heard this time is next time.
			_, _ = p.WriteTo(h.beacon(a), to)
		}
		pause(ctx, pairing.BeaconEvery)
	}
}

// receive notes beacons until the socket is closed.
func (h *Host) receive(p net.PacketConn, nic string) {
	b := make([]byte, pairing.MaxBeacon+1)
	for {
		n, from, err := p.ReadFrom(b)
		if err != nil {
			return
		}
		u, ok := from.(*net.UDPAddr)
		if !ok {
			continue
		}
		if beacon, ok := pairing.ParseBeacon(b[:n], u.AddrPort().Addr()); ok {
			h.hear(beacon, nic)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
