package session

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// keepAlive finds out that an idle peer is gone.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 3}

const dialTime = 2 * time.Second

// bindTo makes a socket's option setter: it sees only the traffic of one NIC.
// Binding to the device and not to an address works before the NIC's
// link-local address does, and survives its change.
func bindTo(device string) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		if device == "" {
			return nil
		}
		return control(c, func(fd int) error {
			if err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, device); err != nil {
				return fmt.Errorf("use NIC %q: %w", device, err)
			}
			return nil
		})
	}
}

// control runs f on a socket's file descriptor.
func control(c syscall.RawConn, f func(fd int) error) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil {
		return e
	}
	return err
}

// notSent is how many bytes the kernel takes on a connection beyond what it has
// sent: what waits, waits in Conn's queue, where Pending sees it and where
// pages are held back for the log.
const notSent = 256 << 10

// tune makes a TCP connection end when its peer has acknowledged nothing for
// stall, or takes no data for so long, and keeps the kernel's queue short.
func tune(c net.Conn, stall time.Duration) error {
	tc, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tc.SyscallConn()
	if err != nil {
		return err
	}
	return control(raw, func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSent); err != nil {
			return err
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(stall.Milliseconds()))
	})
}

// urgent is the priority of datagrams in the NIC's queue (TC_PRIO_INTERACTIVE):
// Linux's default queue sends them ahead of the streams' bytes, of which
// thousands of packets may wait there while memory is on its way.
const urgent = 6

// roundTrip is the shortest round trip that the kernel has seen on a TCP
// connection in the last minutes (tcp(7): TCP_INFO): the wire and both kernels,
// without the programs and without acknowledgements that wait for company. 0
// means that it isn't known.
func roundTrip(c net.Conn) time.Duration {
	tc, ok := c.(*net.TCPConn)
	if !ok {
		return 0
	}
	raw, err := tc.SyscallConn()
	if err != nil {
		return 0
	}
	var least uint32
	err = control(raw, func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			least = info.Min_rtt
		}
		return err
	})
	if err != nil || least == noRoundTrip {
		return 0
	}
	return time.Duration(least) * time.Microsecond
}

// noRoundTrip is what Min_rtt holds before the first acknowledgement.
const noRoundTrip = ^uint32(0)

// any is the address to bind to.
func (p *path) any() netip.Addr {
	if p.cfg.Local.IsValid() {
		return p.cfg.Local
	}
	return netip.IPv6Unspecified()
}

func (p *path) listenTCP(ctx context.Context) (net.Listener, error) {
	lc := net.ListenConfig{Control: bindTo(p.cfg.Interface), KeepAliveConfig: keepAlive}
	lc.SetMultipathTCP(false)
	return lc.Listen(ctx, "tcp", netip.AddrPortFrom(p.any(), p.link.cfg.port()).String())
}

func (p *path) dialTCP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTime, Control: bindTo(p.cfg.Interface), KeepAliveConfig: keepAlive}
	if p.cfg.Local.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.cfg.Local, 0))
	}
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	if err := tune(c, p.link.cfg.Stall); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// sender sends datagrams on a socket without waiting: not for room in the NIC's
// queue, and not, as net.UDPConn does, for another thread that sends on it.
type sender struct {
	conn syscall.RawConn
	v6   bool
}

func newSender(c *net.UDPConn) (*sender, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &sender{conn: raw}
	return s, control(raw, func(fd int) error {
		domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		s.v6 = domain == unix.AF_INET6
		return err
	})
}

// send sends one datagram. An address needs no zone: a socket that is bound to a
// NIC uses that.
func (s *sender) send(b []byte, to netip.AddrPort) error {
	var sa unix.Sockaddr
	switch addr := to.Addr().Unmap(); {
	case s.v6:
		sa = &unix.SockaddrInet6{Port: int(to.Port()), Addr: addr.As16()}
	case addr.Is4():
		sa = &unix.SockaddrInet4{Port: int(to.Port()), Addr: addr.As4()}
	default:
		return fmt.Errorf("send to %v by an IPv4 socket", to)
	}
	return control(s.conn, func(fd int) error { return unix.Sendto(fd, b, unix.MSG_DONTWAIT, sa) })
}

func (p *path) listenUDP(ctx context.Context) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: bindTo(p.cfg.Interface)}
	pc, err := lc.ListenPacket(ctx, "udp", netip.AddrPortFrom(p.any(), p.link.cfg.port()).String())
	if err != nil {
		return nil, err
	}
	c, ok := pc.(*net.UDPConn)
	if !ok {
		_ = pc.Close()
		return nil, fmt.Errorf("no UDP socket but a %T", pc)
	}
	raw, err := c.SyscallConn()
	if err == nil {
		err = control(raw, func(fd int) error {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, urgent); err != nil {
				return err
			}
			if p.cfg.Interface == "" || !p.any().Is6() {
				return nil
			}
			// This host doesn't need its own beacons.
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 0)
		})
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}
