package session

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
)

// TestDatagramGolden pins the bytes of a datagram.
func TestDatagramGolden(t *testing.T) {
	mac := bytes.Repeat([]byte{7}, 32)
	b := seal([]byte("before"), datagram{
		kind: kindHeartbeat, path: Management, slot: 5, incarnation: 0x0102, counter: 3, payload: []byte("hi"),
	}, mac)
	body := "64756574" + "01" + "01" + "02" + "05" + "0201000000000000" + "0300000000000000" + "6869"
	h := hmac.New(sha256.New, mac)
	raw, err := hex.DecodeString(body)
	if err != nil {
		t.Fatal(err)
	}
	h.Write(raw)
	if got, want := hex.EncodeToString(b), hex.EncodeToString([]byte("before"))+body+hex.EncodeToString(h.Sum(nil)[:16]); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	address := netip.MustParseAddr("fe80::1")
	beacon := beacon{address, [8]byte{9, 8}, "beta"}.append(nil)
	if got, want := hex.EncodeToString(beacon), "fe800000000000000000000000000001"+"0908000000000000"+"62657461"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func FuzzDatagram(f *testing.F) {
	mac := bytes.Repeat([]byte{7}, 32)
	seed := datagram{kind: kindHeartbeat, path: Direct, slot: 5, incarnation: 1, counter: 3, payload: []byte("hi")}
	f.Add(seal(nil, seed, mac))
	seed.kind, seed.slot = kindBeacon, hostSlotByte
	seed.payload = beacon{netip.MustParseAddr("fe80::1"), [8]byte{1}, "alpha"}.append(nil)
	f.Add(seal(nil, seed, mac))
	f.Add([]byte("duet"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := parseDatagram(b)
		if err != nil {
			return
		}
		if len(d.payload) > MaxHeartbeat {
			t.Fatalf("payload of %d bytes", len(d.payload))
		}
		again := seal(nil, d, mac)
		if n := len(b) - macSize; !bytes.Equal(again[:n], b[:n]) {
			t.Fatal("encoding it again gives other bytes")
		}
		if authentic(b, mac) != bytes.Equal(again, b) {
			t.Fatal("the tag's check and the tag don't fit")
		}
		if bc, err := parseBeacon(d.payload); err == nil {
			if !bytes.Equal(bc.append(nil), d.payload) {
				t.Fatal("encoding the beacon again gives other bytes")
			}
		}
	})
}

// judge is a path of beta's that judges datagrams without a socket.
func judge(t *testing.T) *path {
	t.Helper()
	_, b, _, _ := configs()
	b.Direct = PathConfig{Interface: "none"}
	l, err := New(b)
	if err != nil {
		t.Fatal(err)
	}
	return l.paths[0]
}

// sealed makes a datagram as a host would that knows the receiver's key.
func sealed(t *testing.T, d datagram, from, to, vm string) []byte {
	t.Helper()
	keys, err := newMACKeys(key(from), public(to), vm)
	if err != nil {
		t.Fatal(err)
	}
	return seal(nil, d, keys.out)
}

func TestAccept(t *testing.T) {
	good := datagram{kind: kindHeartbeat, path: Direct, slot: 5, incarnation: 10, counter: 100, payload: []byte("beat")}
	with := func(f func(*datagram)) []byte {
		d := good
		f(&d)
		return sealed(t, d, "alpha", "beta", "vm-1")
	}
	bitflip := with(func(*datagram) {})
	bitflip[datagramHeader] ^= 1
	beaconOf := func(addr, name string) []byte {
		return with(func(d *datagram) {
			d.kind = kindBeacon
			d.payload = beacon{netip.MustParseAddr(addr), [8]byte{1}, name}.append(nil)
		})
	}
	for _, c := range []struct {
		name string
		in   []byte
		want PathStats
	}{
		{"good", with(func(*datagram) {}), PathStats{Received: 1}},
		{"other path", with(func(d *datagram) { d.path = Management }), PathStats{Malformed: 1}},
		{"other slot", with(func(d *datagram) { d.slot = 6 }), PathStats{Malformed: 1}},
		{"unknown kind", with(func(d *datagram) { d.kind = kindAnswer + 1 }), PathStats{Malformed: 1}},
		{"an echo of another size", with(func(d *datagram) { d.kind = kindEcho }), PathStats{Malformed: 1}},
		{"too long", with(func(d *datagram) { d.payload = make([]byte, MaxHeartbeat+1) }), PathStats{Malformed: 1}},
		{"too short", bitflip[:datagramMin-1], PathStats{Malformed: 1}},
		{"bit flipped", bitflip, PathStats{Unverified: 1}},
		{"other VM", sealed(t, good, "alpha", "beta", "vm-2"), PathStats{Unverified: 1}},
		{"other key", sealed(t, good, "mallory", "beta", "vm-1"), PathStats{Unverified: 1}},
		{"sent back", sealed(t, good, "beta", "alpha", "vm-1"), PathStats{Unverified: 1}},
		{"for another host", sealed(t, good, "alpha", "gamma", "vm-1"), PathStats{Unverified: 1}},
		{"older process", with(func(d *datagram) { d.incarnation = 4; d.counter = 900 }), PathStats{Stale: 1}},
		{"older counter", with(func(d *datagram) { d.incarnation = 5; d.counter = 50 }), PathStats{Stale: 1}},
		{"newer counter", with(func(d *datagram) { d.incarnation = 5; d.counter = 51 }), PathStats{Received: 1}},
		{
			"beacon", beaconOf("fe80::a", "alpha"),
			PathStats{Received: 1, Peer: netip.MustParseAddrPort("[fe80::a%eth1]:7105")},
		},
		{"repeated beacon", beaconOf("fe80::b", "alpha"), PathStats{Malformed: 1}},
		{"beacon of a global address", beaconOf("2001:db8::1", "alpha"), PathStats{Malformed: 1}},
		{"beacon without a name", beaconOf("fe80::a", ""), PathStats{Malformed: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := judge(t)
			p.guard.accept(5, 50)
			got, ok := p.accept(c.in, netip.MustParseAddrPort("[fe80::a%eth1]:7105"))
			beat := c.want.Received == 1 && !strings.Contains(c.name, "beacon")
			if ok != beat || (ok && string(got.payload) != "beat") {
				t.Errorf("payload %q, %v", got.payload, ok)
			}
			if d := cmp.Diff(c.want, p.snapshot(), cmpopts.EquateComparable(netip.AddrPort{})); d != "" {
				t.Error(d)
			}
			if c.want.Received == 0 {
				return
			}
			// The same again is stale, beacon or not, while a stream is up.
			p.pin(p.guard.incarnation)
			if _, ok := p.accept(c.in, netip.MustParseAddrPort("[fe80::a%eth1]:7105")); ok || p.snapshot().Stale != 1 {
				t.Errorf("a second time: %v, %+v", ok, p.snapshot())
			}
		})
	}
}

func TestStranger(t *testing.T) {
	p := judge(t)
	d := datagram{kind: kindBeacon, path: Direct, slot: 5, incarnation: 1, counter: 1}
	d.payload = beacon{netip.MustParseAddr("fe80::a"), fingerprint(public("mallory")), "al\npha"}.append(nil)
	p.accept(sealed(t, d, "mallory", "beta", "vm-1"), netip.MustParseAddrPort("[fe80::a%eth1]:7105"))
	if s, want := p.snapshot(), `"al\npha" `+Fingerprint(public("mallory")); s.Stranger != want || s.Peer.IsValid() {
		t.Errorf("stranger %q, want %q; peer %v", s.Stranger, want, s.Peer)
	}
}

func TestGuard(t *testing.T) {
	var g guard
	step := func(incarnation, counter uint64, want bool) {
		t.Helper()
		if got := g.fresh(incarnation, counter); got != want {
			t.Errorf("(%d, %d) after %+v: fresh %v", incarnation, counter, g, got)
		}
		if want {
			g.accept(incarnation, counter)
		}
	}
	step(3, 1, true)
	step(3, 1, false)
	step(3, 5, true)
	step(3, 4, false)
	step(2, 9, false)
	step(4, 1, true)
	step(3, 6, false)
	g.pin(2) // a stream with a process whose clock went back
	step(4, 2, false)
	step(2, 1, true)
	step(5, 1, false)
	g.pin(2) // the same process again
	step(2, 1, false)
	step(2, 2, true)
	g.unpin()
	step(1, 9, false)
	step(5, 1, true)
}

func TestBucket(t *testing.T) {
	b := bucket{rate: 2, burst: 3}
	at := func(ms int) time.Time { return time.Unix(100, int64(ms)*1e6) }
	for i, c := range []struct {
		ms   int
		want bool
	}{{0, true}, {0, true}, {0, true}, {0, false}, {400, false}, {500, true}, {500, false}, {100, false}, {9000, true}, {9000, true}, {9000, true}, {9000, false}} {
		if got := b.allow(at(c.ms)); got != c.want {
			t.Errorf("step %d at %d ms: %v", i, c.ms, got)
		}
	}
}

// Heartbeats must not wait behind a state transfer in the NIC's queue.
func TestDatagramsAreUrgent(t *testing.T) {
	cfg, _, _, _ := configs()
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range l.paths {
		s, err := p.listenUDP(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		raw, err := s.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		err = control(raw, func(fd int) error {
			n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY)
			if n != urgent {
				t.Errorf("%v path: priority %d, want %d", p.kind, n, urgent)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}
