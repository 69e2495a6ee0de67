package partner

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/duet-ft/duet/ftlink/pairing"
)

// protocol names pairing in TLS, so that a connection of another kind never meets it.
const protocol = "duet-pair"

func tlsConfig(cert tls.Certificate) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{cert},
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{protocol},
		ClientAuth:   tls.RequireAnyClientCert,
		// Who the other side is, the code decides. TLS proves that it holds the key that it shows.
		InsecureSkipVerify:     true,
		SessionTicketsDisabled: true,
	}
}

// secure ends the handshake and returns the other side's key and the connection's exporter value (RFC 9266).
func secure(ctx context.Context, c *tls.Conn) (key ed25519.PublicKey, binding []byte, err error) {
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, nil, err
	}
	s := c.ConnectionState()
	if s.NegotiatedProtocol != protocol || len(s.PeerCertificates) == 0 {
		return nil, nil, pairing.ErrFrame
	}
	key, ok := s.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, nil, fmt.Errorf("%w: its key isn't an Ed25519 key", pairing.ErrFrame)
	}
	binding, err = s.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	return key, binding, err
}

// Join pairs with the host that shows code. It returns once both have each other's key.
func (h *Host) Join(ctx context.Context, code pairing.Code) (pairing.Side, error) {
	if err := h.cfg.Forbidden(); err != nil {
		return pairing.Side{}, err
	}
	n, err := h.candidate()
	if err != nil {
		return pairing.Side{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	raw, err := h.dial(ctx, n)
	if err != nil {
		return pairing.Side{}, fmt.Errorf("host %s on %s: %w", n.Name, n.NIC, err)
	}
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	peer, err := h.join(ctx, tls.Client(raw, h.tls), n.NIC, code)
	if err != nil {
		return peer, fmt.Errorf("pairing with host %s on %s: %w", n.Name, n.NIC, plain(err))
	}
	h.Close()
	return peer, nil
}

// plain says what a stranger's silence means.
func plain(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("it ended the connection")
	}
	return err
}

func (h *Host) join(ctx context.Context, c *tls.Conn, nic string, code pairing.Code) (pairing.Side, error) {
	key, binding, err := secure(ctx, c)
	if err != nil {
		return pairing.Side{}, err
	}
	run, first, err := pairing.Join(pairing.Config{
		Self: h.self(), PeerKey: key, Binding: binding, Code: code, Secret: random48(), Settings: h.cfg.Settings(),
	})
	if err != nil {
		return pairing.Side{}, err
	}
	if _, err := c.Write(first.Append(nil)); err != nil {
		return pairing.Side{}, err
	}
	for {
		f, err := pairing.ReadFrame(c)
		if err != nil {
			return pairing.Side{}, err
		}
		out, err := run.Step(f)
		if err != nil {
			refuse(c, err)
			return pairing.Side{}, err
		}
		if settings, whole := run.Settings(); whole {
			peer, _ := run.Partner()
			if err := h.cfg.Pin(peer, nic, settings); err != nil {
				refuse(c, err)
				return peer, err
			}
			// The partner has pinned this host already; what it misses now, it doesn't need.
			_ = send(c, out)
			return peer, nil
		}
		if err := send(c, out); err != nil {
			return pairing.Side{}, err
		}
	}
}

func send(c net.Conn, frames []pairing.Frame) error {
	var b []byte
	for _, f := range frames {
		b = f.Append(b)
	}
	_, err := c.Write(b)
	return err
}

// refuse tells the other side why this one ends the run, if it still listens. What it said itself it needn't hear.
func refuse(c net.Conn, err error) {
	if !errors.Is(err, pairing.ErrRefused) {
		_ = send(c, []pairing.Frame{pairing.Refusal(err.Error())})
	}
}

// serve is a run of the side that shows the code.
func (h *Host) serve(ctx context.Context, raw net.Conn, nic string) {
	defer raw.Close()
	ctx, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	c := tls.Server(raw, h.tls)
	key, binding, err := secure(ctx, c)
	if err != nil {
		return // a port scan, for instance
	}
	if err := h.cfg.Forbidden(); err != nil {
		refuse(c, err)
		return
	}
	h.mu.Lock()
	code, err := h.window.Take(time.Now())
	h.mu.Unlock()
	if err != nil {
		refuse(c, err)
		return
	}
	run, err := pairing.Show(pairing.Config{
		Self: h.self(), PeerKey: key, Binding: binding, Code: code, Secret: random48(), Settings: h.cfg.Settings(),
	})
	outcome := pairing.Untested
	if err == nil {
		err = h.show(c, run, nic)
		outcome = run.Outcome()
	}
	h.mu.Lock()
	h.window.Returned(code, outcome)
	h.window.Tick(time.Now(), random8())
	h.mu.Unlock()
	switch {
	case outcome == pairing.Wrong:
		h.cfg.Log(fmt.Sprintf("a host on %s tried to be paired with a wrong code, so that one counts no more", nic))
	case err != nil && outcome == pairing.Right:
		h.cfg.Log(fmt.Sprintf("pairing on %s wasn't finished (%v); if no session to the peer comes up, pair again", nic, plain(err)))
	}
}

// show carries frames between the connection and the run. The partner is kept before it learns that it was accepted.
func (h *Host) show(c net.Conn, run *pairing.Run, nic string) error {
	pinned := false
	for {
		f, err := pairing.ReadFrame(c)
		if err != nil {
			return err
		}
		out, err := run.Step(f)
		if err != nil {
			refuse(c, err)
			return err
		}
		peer, proven := run.Partner()
		settings, whole := run.Settings()
		if proven && (!pinned || whole) {
			if err := h.cfg.Pin(peer, nic, settings); err != nil {
				refuse(c, err)
				return err
			}
			pinned = true
		}
		if whole {
			return nil
		}
		if err := send(c, out); err != nil {
			return err
		}
	}
}
