package partner

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/duet-ft/duet/ftlink/pairing"
	"github.com/duet-ft/duet/hvd/hostkey"
)

// testHost is a Host on an address of the loopback, where there are no beacons.
type testHost struct {
	*Host
	address netip.Addr

	mu       sync.Mutex
	peer     pairing.Side
	nic      string
	settings []byte
	calls    int
	forbid   error
	full     error // of /perm
	lines    []string
}

func newTestHost(t *testing.T, name, address string, port int, named ...string) *testHost {
	h := &testHost{}
	if address != "" {
		h.address = netip.MustParseAddr(address)
	}
	var err error
	h.Host, err = New(Config{
		Name: name, Key: hostkey.New(), Port: port,
		NICs:      func() []NIC { return nics(address, named) },
		HasPeer:   func() bool { h.mu.Lock(); defer h.mu.Unlock(); return h.peer.Name != "" },
		Forbidden: func() error { h.mu.Lock(); defer h.mu.Unlock(); return h.forbid },
		Settings:  func() []byte { return []byte("of " + name) },
		Pin: func(peer pairing.Side, nic string, settings []byte) error {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.calls++
			if h.full != nil {
				return h.full
			}
			h.peer, h.nic, h.settings = peer, nic, settings
			return nil
		},
		Log: func(line string) { h.mu.Lock(); defer h.mu.Unlock(); h.lines = append(h.lines, line) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { h.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return h
}

// meet lets h hear other, as if by a beacon.
func (h *testHost) meet(other *testHost) {
	_, _, err := other.window.Code(time.Now())
	h.hear(pairing.Beacon{Side: other.self(), Address: other.address, Shows: err == nil}, "")
}

func (h *testHost) partner() (string, string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.peer.Name, string(h.settings)
}

// freePort is a port where nobody listens on the addresses of two hosts.
func freePort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func pairOfHosts(t *testing.T) (a, b *testHost, ctx context.Context) {
	port := freePort(t)
	a, b = newTestHost(t, "a", "127.0.0.1", port), newTestHost(t, "b", "127.0.0.2", port)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	for _, h := range []*testHost{a, b} {
		address := netip.AddrPortFrom(h.address, uint16(port)).String()
		eventually(t, "host "+h.cfg.Name+" listens", func() bool {
			c, err := net.Dial("tcp", address)
			if err == nil {
				c.Close()
			}
			return err == nil
		})
	}
	return a, b, ctx
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func TestPair(t *testing.T) {
	a, b, ctx := pairOfHosts(t)
	if _, err := b.Join(ctx, "00000000"); err == nil || !strings.HasPrefix(err.Error(), "no other host is heard on") {
		t.Errorf("without a neighbour: %v", err)
	}
	b.meet(a)
	code := a.State().Code
	peer, err := b.Join(ctx, code)
	if err != nil || peer.Name != "a" || !peer.Key.Equal(a.self().Key) {
		t.Fatalf("partner %+v: %v", peer, err)
	}
	if name, settings := b.partner(); name != "a" || settings != "of a" {
		t.Errorf("b has the partner %q with settings %q", name, settings)
	}
	eventually(t, "a has b's settings", func() bool {
		name, settings := a.partner()
		return name == "b" && settings == "of b"
	})
	for _, h := range []*testHost{a, b} {
		if s := h.State(); s.Code != "" || s.Why != "" {
			t.Errorf("host %s still shows %s %s", h.cfg.Name, s.Code, s.Why)
		}
	}
	b.meet(a)
	if _, err := b.Join(ctx, code); err == nil || !strings.Contains(err.Error(), "host a on  shows no pairing code") {
		t.Errorf("the same code again: %v", err)
	}
}

func TestWrongCode(t *testing.T) {
	a, b, ctx := pairOfHosts(t)
	for i := range pairing.MaxGuesses {
		b.meet(a)
		code := a.State().Code
		other := pairing.Code(fmt.Sprintf("%08d", i))
		if _, err := b.Join(ctx, other); err == nil || !strings.Contains(err.Error(), "the pairing code is wrong") {
			t.Fatalf("guess %d: %v", i+1, err)
		}
		eventually(t, "the code is burnt", func() bool { return a.State().Code != code })
	}
	if s := a.State(); s.Code != "" || s.Why != pairing.ErrGuesses.Error() {
		t.Errorf("after %d guesses: %+v", pairing.MaxGuesses, s)
	}
	if a.calls+b.calls > 0 {
		t.Errorf("a host was paired by a wrong code")
	}
	a.Open()
	b.meet(a)
	if _, err := b.Join(ctx, a.State().Code); err != nil {
		t.Errorf("after the window was opened again: %v", err)
	}
}

func TestRefused(t *testing.T) {
	a, b, ctx := pairOfHosts(t)
	set := func(h *testHost, forbid, full error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.forbid, h.full = forbid, full
	}
	alive := errors.New("its partner c is alive")
	for _, c := range []struct {
		name         string
		aNo, bNo     error
		aFull, bFull error
		line         string
	}{
		{"the joiner's partner is alive", nil, alive, nil, nil, "its partner c is alive"},
		{"the shower's partner is alive", alive, nil, nil, nil, `the other host refuses: "its partner c is alive"`},
		{"the shower can't keep it", nil, nil, errors.New("/perm is full"), nil, `the other host refuses: "/perm is full"`},
	} {
		set(a, c.aNo, c.aFull)
		set(b, c.bNo, c.bFull)
		a.Open()
		b.meet(a)
		_, err := b.Join(ctx, a.State().Code)
		if err == nil || !strings.Contains(err.Error(), c.line) {
			t.Errorf("%s: %v", c.name, err)
		}
		eventually(t, "the run is over", func() bool { return len(a.runs) == 0 })
	}
	if name, _ := a.partner(); name != "" {
		t.Errorf("a has the partner %q", name)
	}
	if name, _ := b.partner(); name != "" {
		t.Errorf("b has the partner %q", name)
	}
}

// TestEarlyJoin dials a host that was heard and doesn't listen yet.
func TestEarlyJoin(t *testing.T) {
	port := freePort(t)
	a, b := newTestHost(t, "a", "127.0.0.1", port), newTestHost(t, "b", "127.0.0.2", port)
	b.address = netip.MustParseAddr("127.0.0.3") // where a listens later
	late := &testHost{Host: a.Host, address: b.address}
	b.meet(late)
	done := make(chan error, 1)
	go func() {
		_, err := b.Join(t.Context(), a.State().Code)
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("before it listens: %v", err)
	case <-time.After(3 * dialAgain):
	}
	go a.accept(t.Context(), NIC{Listen: b.address})
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestSilentStranger opens connections and says nothing: others are served all the same once these are gone.
func TestSilentStranger(t *testing.T) {
	a, b, ctx := pairOfHosts(t)
	address := netip.AddrPortFrom(a.address, uint16(a.cfg.Port)).String()
	var open []net.Conn
	for range maxRuns + 2 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	eventually(t, "all runs are taken", func() bool { return len(a.runs) == maxRuns })
	for _, c := range open {
		c.Close()
	}
	eventually(t, "the runs are over", func() bool { return len(a.runs) == 0 })
	b.meet(a)
	if _, err := b.Join(ctx, a.State().Code); err != nil {
		t.Error(err)
	}
}
