package session

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/duet-ft/duet/ftlink/wire"
)

const (
	// handshakeTime bounds TLS handshake and hellos.
	handshakeTime = 5 * time.Second
	// drainTime and drainBytes bound how long and how much a refused peer is
	// listened to, so that it gets to read why: closing a socket that holds
	// unread bytes resets the connection.
	drainTime  = 250 * time.Millisecond
	drainBytes = 64 << 10
)

// handshake makes a stream of a TCP connection, as the dialler or the
// acceptor. It closes the connection if it fails, or ctx ends.
func (l *Link) handshake(ctx context.Context, raw net.Conn, dialler bool) (_ *Conn, err error) {
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer func() {
		if !stop() && err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			_ = raw.Close()
		}
	}()
	remote := addrPort(raw.RemoteAddr())
	if err := raw.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return nil, err
	}
	b := newBatched(raw, &l.traffic)
	var t *tls.Conn
	if dialler {
		t = tls.Client(b, l.secure.client)
	} else {
		t = tls.Server(b, l.secure.server)
	}
	r := wire.NewReader(t)
	peer, err := l.introduce(ctx, t, r, dialler)
	if err != nil {
		if !errors.Is(err, ErrRefused) {
			drain(raw)
		}
		if dialler {
			return nil, fmt.Errorf("peer %q at %v: %w", l.cfg.Peer.Name, remote.Addr(), err)
		}
		return nil, fmt.Errorf("connection from %v: %w", remote.Addr(), err)
	}
	if err := raw.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	b.setStall(l.cfg.Stall)
	return newConn(b, t, r, peer, remote), nil
}

// introduce runs the TLS handshake and exchanges hellos.
func (l *Link) introduce(ctx context.Context, t *tls.Conn, r *wire.Reader, dialler bool) (wire.Hello, error) {
	if err := t.HandshakeContext(ctx); err != nil {
		return wire.Hello{}, refused(err)
	}
	if dialler {
		if err := l.sayHello(t); err != nil {
			return wire.Hello{}, refused(err)
		}
	}
	peer, err := l.hearHello(t, r)
	if err != nil {
		return wire.Hello{}, err
	}
	if !dialler {
		if err := l.sayHello(t); err != nil {
			return wire.Hello{}, refused(err)
		}
	}
	return peer, nil
}

// refused puts the error of a handshake into words. With TLS 1.3 a dialler
// learns only after its own handshake that its key wasn't accepted.
func refused(err error) error {
	if alerted(err) {
		return fmt.Errorf("%w: its key isn't the one that the peer was paired with (%v)", ErrRefused, err)
	}
	return err
}

func (l *Link) sayHello(t *tls.Conn) error {
	h := wire.Hello{Version: wire.Version, Host: l.cfg.Self.Name, VM: l.cfg.VM, Incarnation: l.cfg.Incarnation}
	if l.cfg.Role != nil {
		h.Role = l.cfg.Role()
	}
	b, err := wire.AppendHello(nil, h)
	if err != nil {
		return err
	}
	_, err = t.Write(b)
	return err
}

// hearHello reads the peer's hello. If it doesn't fit, the peer is told.
func (l *Link) hearHello(t *tls.Conn, r *wire.Reader) (wire.Hello, error) {
	f, err := r.Next()
	if err != nil {
		return wire.Hello{}, refused(err)
	}
	if f.Type == wire.TypeBye {
		return wire.Hello{}, fmt.Errorf("%w: %q", ErrRefused, f.Payload)
	}
	h, err := wire.ParseHello(f)
	if err == nil {
		err = l.fits(h)
	}
	if err != nil {
		// The error in hand is the one to report.
		_, _ = t.Write(wire.Append(nil, byeFrame(err.Error())))
		return wire.Hello{}, err
	}
	return h, nil
}

// fits says why a peer with the right key isn't the right one all the same.
func (l *Link) fits(h wire.Hello) error {
	switch {
	case h.Version != wire.Version:
		return fmt.Errorf("%w: host %q speaks version %d of the link, host %q version %d: update both to one version",
			ErrMismatch, h.Host, h.Version, l.cfg.Self.Name, wire.Version)
	case h.Host != l.cfg.Peer.Name:
		return fmt.Errorf("%w: it calls itself host %q, but was paired with as %q", ErrMismatch, h.Host, l.cfg.Peer.Name)
	case h.VM != l.cfg.VM:
		return fmt.Errorf("%w: host %q has VM %q in slot %d, host %q has VM %q",
			ErrMismatch, h.Host, h.VM, l.cfg.Slot, l.cfg.Self.Name, l.cfg.VM)
	}
	return nil
}

// drain reads and drops what a refused peer has sent.
func drain(c net.Conn) {
	if c.SetReadDeadline(time.Now().Add(drainTime)) == nil {
		_, _ = io.CopyN(io.Discard, c, drainBytes)
	}
}

// addrPort is a socket's address, or the zero value if it has none.
func addrPort(a net.Addr) netip.AddrPort {
	if ap, ok := a.(interface{ AddrPort() netip.AddrPort }); ok {
		p := ap.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}
