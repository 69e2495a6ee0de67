package session

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/duet-ft/duet/ftlink/wire"
)

// patient is how long a test waits for what must happen.
const patient = 10 * time.Second

// key makes the key of a host from its name.
func key(name string) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, name)
	return ed25519.NewKeyFromSeed(seed)
}

func public(name string) ed25519.PublicKey { return key(name).Public().(ed25519.PublicKey) }

// event is one call of a handler.
type event struct {
	what    string // up, down, frame, heartbeat, trouble
	conn    *Conn
	err     error
	typ     wire.Type
	path    Path
	payload string
}

// recorder is a Handler that queues what it is told.
type recorder struct {
	events chan event
	// frame, when set, takes the frames instead.
	frame func(*Conn, wire.Frame)
}

func newRecorder() *recorder { return &recorder{events: make(chan event, 1000)} }

func (r *recorder) Up(c *Conn)              { r.events <- event{what: "up", conn: c} }
func (r *recorder) Down(c *Conn, err error) { r.events <- event{what: "down", conn: c, err: err} }
func (r *recorder) Trouble(err error)       { r.events <- event{what: "trouble", err: err} }

func (r *recorder) Heartbeat(p Path, b []byte) {
	r.events <- event{what: "heartbeat", path: p, payload: string(b)}
}

func (r *recorder) Frame(c *Conn, f wire.Frame) {
	if r.frame != nil {
		r.frame(c, f)
		return
	}
	r.events <- event{what: "frame", conn: c, typ: f.Type, payload: string(f.Payload)}
}

// want waits for an event of a kind and drops those before it.
func (r *recorder) want(t *testing.T, what string) event {
	t.Helper()
	limit := time.After(patient)
	for {
		select {
		case e := <-r.events:
			if e.what == what {
				return e
			}
		case <-limit:
			t.Fatalf("no %q came", what)
		}
	}
}

var lastAddress atomic.Uint32

// loopback returns an address of this machine that no other test uses.
func loopback() netip.Addr {
	n := uint32(os.Getpid())<<8 + lastAddress.Add(1)
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 127<<24|1<<23|n&0x7fffff)
	return netip.AddrFrom4(b)
}

// configs returns the two sides of a link over loopback: "alpha", which
// dials, and "beta".
func configs() (alpha, beta Config, ha, hb *recorder) {
	ha, hb = newRecorder(), newRecorder()
	a := Config{
		Self: Identity{"alpha", key("alpha")}, Peer: Peer{"beta", public("beta")}, Slot: 5, VM: "vm-1", Handler: ha,
	}
	b := Config{
		Self: Identity{"beta", key("beta")}, Peer: Peer{"alpha", public("alpha")}, Slot: 5, VM: "vm-1", Handler: hb,
	}
	a.Direct, b.Direct = across()
	a.Management, b.Management = across()
	return a, b, ha, hb
}

func across() (a, b PathConfig) {
	a.Local, b.Local = loopback(), loopback()
	a.Peer, b.Peer = netip.AddrPortFrom(b.Local, 0), netip.AddrPortFrom(a.Local, 0)
	return a, b
}

// start runs a link until stop is called, or the test ends.
func start(t testing.TB, cfg Config) (l *Link, stop func()) {
	t.Helper()
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		l.Run(ctx)
		close(ended)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(patient):
			t.Error("Run doesn't return")
		}
	})
	t.Cleanup(stop)
	return l, stop
}

// until waits for a condition.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(patient)
	for !cond() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("%s: not within %v", what, patient)
		}
	}
}

func control1(text string) wire.Frame {
	return wire.Frame{Type: wire.TypeControl, Payload: []byte(text)}
}

func TestTalk(t *testing.T) {
	a, b, ha, hb := configs()
	a.Incarnation, b.Incarnation = 7, 8
	a.Role = func() string { return "primary" }
	la, stopA := start(t, a)
	_, stopB := start(t, b)
	ca, cb := ha.want(t, "up").conn, hb.want(t, "up").conn
	if h := cb.Peer(); h.Host != "alpha" || h.VM != "vm-1" || h.Incarnation != 7 || h.Role != "primary" {
		t.Errorf("beta hears %+v", h)
	}
	if h := ca.Peer(); h.Host != "beta" || h.Incarnation != 8 {
		t.Errorf("alpha hears %+v", h)
	}

	if err := ca.SendLog(40, []byte("entry")); err != nil {
		t.Fatal(err)
	}
	if err := ca.Send(control1("{}")); err != nil {
		t.Fatal(err)
	}
	e := hb.want(t, "frame")
	lsn, log, err := wire.ParseLog(wire.Frame{Type: e.typ, Payload: []byte(e.payload)}, nil)
	if err != nil || lsn != 40 || string(log) != "entry" {
		t.Errorf("log %d %q %v", lsn, log, err)
	}
	if e := hb.want(t, "frame"); e.typ != wire.TypeControl || e.payload != "{}" {
		t.Errorf("frame %+v", e)
	}
	if err := cb.SendAck(45, 41); err != nil {
		t.Fatal(err)
	}
	if e := ha.want(t, "frame"); e.typ != wire.TypeAck {
		t.Errorf("frame %+v", e)
	}
	if err := ca.Send(wire.Frame{Type: 77}); err == nil {
		t.Error("a frame of no type was sent")
	}
	if err := ca.Flush(); err != nil || ca.Pending() != 0 {
		t.Errorf("flush: %v, %d bytes pending", err, ca.Pending())
	}
	if s := la.Stats(); !s.Up || s.Streams != 1 || s.FramesIn != 1 || s.FramesOut != 2 || s.BytesOut < 100 {
		t.Errorf("stats %+v", s)
	}

	// One side stops: the other hears why, and doesn't call it a loss.
	stopA()
	if e := hb.want(t, "down"); !strings.Contains(e.err.Error(), "being stopped") {
		t.Errorf("beta's down: %v", e.err)
	}
	if e := ha.want(t, "down"); e.err != ErrClosed {
		t.Errorf("alpha's down: %v", e.err)
	}
	if err := ca.Send(control1("late")); err != ErrClosed {
		t.Errorf("send after the end: %v", err)
	}
	stopB()
}

// TestRoundTrip: the kernel knows how long the way is once something was acknowledged.
func TestRoundTrip(t *testing.T) {
	a, b, ha, hb := configs()
	start(t, a)
	start(t, b)
	c := ha.want(t, "up").conn
	hb.want(t, "up")
	if d := c.RoundTrip(); d <= 0 || d > time.Second {
		t.Errorf("a round trip over loopback takes %v", d)
	}
	if d := roundTrip(&pipe{}); d != 0 {
		t.Errorf("what isn't TCP has a round trip of %v", d)
	}
}

func TestReconnect(t *testing.T) {
	a, b, ha, hb := configs()
	la, _ := start(t, a)
	_, stopB := start(t, b)
	for i := range 3 {
		ca, cb := ha.want(t, "up").conn, hb.want(t, "up").conn
		if err := ca.Send(control1(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
		if e := hb.want(t, "frame"); e.payload != fmt.Sprint(i) || e.conn != cb {
			t.Fatalf("frame %+v", e)
		}
		// Cut without a word, by either side.
		cut := fmt.Errorf("cut %d", i)
		if i%2 == 0 {
			ca.Abort(cut)
		} else {
			cb.Abort(cut)
		}
		da, db := ha.want(t, "down"), hb.want(t, "down")
		if i%2 != 0 {
			da, db = db, da
		}
		if da.err != cut || !strings.Contains(db.err.Error(), ErrLost.Error()) {
			t.Fatalf("down: %v, %v", da.err, db.err)
		}
	}
	// The peer's process is replaced by another, whose clock went back.
	ha.want(t, "up")
	hb.want(t, "up")
	stopB()
	ha.want(t, "down")
	b.Incarnation = 3
	hb = newRecorder()
	b.Handler = hb
	lb, _ := start(t, b)
	if c := ha.want(t, "up").conn; c.Peer().Incarnation != 3 {
		t.Errorf("incarnation %d", c.Peer().Incarnation)
	}
	hb.want(t, "up")
	if err := lb.SendHeartbeat([]byte("new")); err != nil {
		t.Fatal(err)
	}
	if e := ha.want(t, "heartbeat"); e.payload != "new" {
		t.Errorf("heartbeat %+v", e)
	}
	if s := la.Stats(); s.Streams != 5 {
		t.Errorf("%d streams, want 5", s.Streams)
	}
}

// Other threads judge a datagram that came and send one, and have to wait for the
// processor: a heartbeat doesn't wait for them.
func TestHeartbeatWaitsForNobody(t *testing.T) {
	a, b, ha, hb := configs()
	la, _ := start(t, a)
	lb, _ := start(t, b)
	ha.want(t, "up")
	hb.want(t, "up")
	until(t, "sockets", func() bool {
		return !slices.ContainsFunc(slices.Concat(la.paths, lb.paths), func(p *path) bool { return p.sender.Load() == nil })
	})
	release := make(chan struct{})
	defer close(release)
	for _, p := range la.paths {
		p.mu.Lock()
		defer p.mu.Unlock()
		sends := make(chan struct{})
		go func() {
			_ = p.sender.Load().conn.Write(func(uintptr) bool {
				close(sends)
				<-release
				return true
			})
		}()
		<-sends
	}
	go func() { _ = la.SendHeartbeat([]byte("beat")) }()
	for range la.paths {
		hb.want(t, "heartbeat")
	}
}

func TestHeartbeats(t *testing.T) {
	a, b, _, hb := configs()
	la, _ := start(t, a)
	lb, _ := start(t, b)
	// Until both sockets are open, heartbeats are lost or refused.
	got := map[Path]bool{}
	until(t, "heartbeats on both paths", func() bool {
		if err := la.SendHeartbeat([]byte("beat")); err != nil {
			t.Fatal(err)
		}
		select {
		case e := <-hb.events:
			if e.what == "heartbeat" {
				if e.payload != "beat" {
					t.Fatalf("heartbeat %+v", e)
				}
				got[e.path] = true
			}
		default:
		}
		return got[Direct] && got[Management]
	})
	if err := la.SendHeartbeat(make([]byte, MaxHeartbeat+1)); err == nil {
		t.Error("an oversized heartbeat was sent")
	}
	if s := lb.Stats(); s.Direct.Received == 0 || s.Management.Received == 0 || s.Direct.Unverified+s.Direct.Stale != 0 {
		t.Errorf("stats %+v", s)
	}

	// A stranger's garbage is counted and goes no further.
	c, err := net.Dial("udp", netip.AddrPortFrom(b.Direct.Local, BasePort+5).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(make([]byte, 2000)); err != nil {
		t.Fatal(err)
	}
	until(t, "garbage is counted", func() bool { return lb.Stats().Direct.Malformed == 1 })
}

func TestNewRefuses(t *testing.T) {
	good, _, _, _ := configs()
	for name, spoil := range map[string]func(*Config){
		"no key":      func(c *Config) { c.Self.Key = nil },
		"no peer key": func(c *Config) { c.Peer.Key = c.Peer.Key[:5] },
		"own key":     func(c *Config) { c.Peer.Key = public("alpha") },
		"own name":    func(c *Config) { c.Peer.Name = "alpha" },
		"no name":     func(c *Config) { c.Self.Name = "" },
		"long name":   func(c *Config) { c.Self.Name = strings.Repeat("a", 129) },
		"long VM":     func(c *Config) { c.VM = strings.Repeat("a", 129) },
		"slot 64":     func(c *Config) { c.Slot = 64 },
		"slot -2":     func(c *Config) { c.Slot = -2 },
		"no path":     func(c *Config) { c.Direct = PathConfig{} },
		"no handler":  func(c *Config) { c.Handler = nil },
	} {
		c := good
		spoil(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := New(good); err != nil {
		t.Error(err)
	}
}
