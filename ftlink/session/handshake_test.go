package session

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/ftlink/wire"
)

// TestWrongKey: neither side talks to a host with another key, and both say so.
func TestWrongKey(t *testing.T) {
	t.Run("of the dialler", func(t *testing.T) {
		a, b, ha, hb := configs()
		a.Self.Key = key("mallory")
		start(t, a)
		start(t, b)
		if e := hb.want(t, "trouble"); !errors.Is(e.err, ErrPeerKey) ||
			!strings.Contains(e.err.Error(), Fingerprint(public("mallory"))+" instead of "+Fingerprint(public("alpha"))) {
			t.Errorf("beta says %v", e.err)
		}
		for e := ha.want(t, "trouble"); !errors.Is(e.err, ErrRefused); e = ha.want(t, "trouble") {
			if !strings.Contains(e.err.Error(), "refused") { // beta wasn't listening yet
				t.Fatalf("alpha says %v", e.err)
			}
		}
	})
	t.Run("of the acceptor", func(t *testing.T) {
		a, b, ha, hb := configs()
		b.Self.Key = key("mallory")
		lb, _ := start(t, b)
		until(t, "beta listens", func() bool { return listens(b) })
		start(t, a)
		e := ha.want(t, "trouble")
		if !errors.Is(e.err, ErrPeerKey) || !strings.Contains(e.err.Error(), b.Direct.Local.String()) {
			t.Errorf("alpha says %v", e.err)
		}
		for e := hb.want(t, "trouble"); !errors.Is(e.err, ErrRefused); {
			e = hb.want(t, "trouble") // from the probe of listens
		}
		if lb.Stats().Refused == 0 {
			t.Error("refused connections aren't counted")
		}
	})
}

// listens tells whether the acceptor of a configuration takes connections.
func listens(c Config) bool {
	conn, err := net.Dial("tcp", netip.AddrPortFrom(c.Direct.Local, c.port()).String())
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// TestMismatch: the right key isn't enough, and both sides learn why.
func TestMismatch(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(*Config)
		want  string
	}{
		{"another VM", func(c *Config) { c.VM = "vm-2" }, `has VM "vm-2" in slot 5`},
		{"another name", func(c *Config) { c.Self.Name = "aleph" }, `calls itself host "aleph"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b, ha, hb := configs()
			c.spoil(&a)
			start(t, b)
			until(t, "beta listens", func() bool { return listens(b) })
			start(t, a)
			if e := ha.want(t, "trouble"); !errors.Is(e.err, ErrRefused) || !strings.Contains(e.err.Error(), "fit") {
				t.Errorf("alpha says %v", e.err)
			}
			e := hb.want(t, "trouble")
			for !errors.Is(e.err, ErrMismatch) {
				e = hb.want(t, "trouble") // from the probe of listens
			}
			if !strings.Contains(e.err.Error(), c.want) {
				t.Errorf("beta says %v", e.err)
			}
		})
	}
	l := Link{cfg: Config{Self: Identity{Name: "alpha"}, Peer: Peer{Name: "beta"}}}
	if err := l.fits(wire.Hello{Version: wire.Version + 1, Host: "beta"}); !errors.Is(err, ErrMismatch) {
		t.Errorf("another version: %v", err)
	}
}

// TestStrangersDontLockOut: silent connections and noise take no one's place.
func TestStrangersDontLockOut(t *testing.T) {
	a, b, ha, hb := configs()
	_, stop := start(t, b)
	until(t, "beta listens", func() bool { return listens(b) })
	begin := time.Now()
	var oldest net.Conn
	for range 3 * maxHandshakes {
		c, err := net.Dial("tcp", netip.AddrPortFrom(b.Direct.Local, b.port()).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if oldest == nil {
			oldest = c
		}
	}
	// Those beyond the limit are closed long before their time is over.
	if _, err := oldest.Read(make([]byte, 1)); err == nil || time.Since(begin) >= handshakeTime {
		t.Errorf("the oldest connection: %v after %v", err, time.Since(begin))
	}
	start(t, a)
	ha.want(t, "up")
	hb.want(t, "up")
	if d := time.Since(begin); d >= handshakeTime {
		t.Errorf("the peer had to wait for %v", d)
	}
	stop() // doesn't wait for the silent ones either: start's limit says so
}

// TestOldTLS: a client without our certificate, or with TLS 1.2, gets nowhere.
func TestOldTLS(t *testing.T) {
	_, b, _, hb := configs()
	start(t, b)
	until(t, "beta listens", func() bool { return listens(b) })
	to := netip.AddrPortFrom(b.Direct.Local, b.port()).String()
	for name, cfg := range map[string]*tls.Config{
		"TLS 1.2":        {InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, NextProtos: []string{protocol}},
		"no certificate": {InsecureSkipVerify: true, NextProtos: []string{protocol}},
		"other protocol": {InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patient)
		c, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", to)
		if err == nil {
			// TLS 1.3: the refusal comes with the first read.
			if _, err = c.Read(make([]byte, 1)); !alerted(err) {
				t.Errorf("%s: %v, want an alert", name, err)
			}
			_ = c.Close()
		}
		cancel()
		hb.want(t, "trouble")
	}
	select {
	case e := <-hb.events:
		if e.what == "up" {
			t.Error("a stranger got in")
		}
	default:
	}
}

// TestReplaced: a second stream by the peer ends the first one.
func TestReplaced(t *testing.T) {
	a, b, ha, hb := configs()
	start(t, b)
	la, _ := start(t, a)
	ha.want(t, "up")
	first := hb.want(t, "up").conn
	// As a process of alpha that was started anew would do.
	c, err := la.connect(t.Context(), la.paths[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.drop(ErrClosed)
	if e := hb.want(t, "down"); e.conn != first || e.err != ErrReplaced {
		t.Errorf("down %+v", e)
	}
	if e := hb.want(t, "up"); e.conn == first {
		t.Error("the first stream is up again")
	}
	ha.want(t, "down")
}
