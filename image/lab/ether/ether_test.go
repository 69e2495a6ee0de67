package ether

import (
	"bytes"
	"encoding/binary"
	"net"
	"path/filepath"
	"testing"
	"time"
)

func mac(n byte) MAC { return MAC{2, 0, 0, 0, 0, n} }

func frame(dst, src MAC, payload string) []byte {
	f := append(append(append([]byte{}, dst[:]...), src[:]...), 0x88, 0xb5)
	return append(f, payload...)
}

// station is the machine's end of a port.
type station struct {
	t    *testing.T
	conn net.Conn
	got  chan []byte
}

func newStation(t *testing.T, p *Port, conn net.Conn) *station {
	t.Helper()
	s := &station{t: t, conn: conn, got: make(chan []byte, 100)}
	go func() {
		defer close(s.got)
		for {
			f, err := ReadFrame(conn)
			if err != nil {
				return
			}
			s.got <- f
		}
	}()
	t.Cleanup(func() { conn.Close(); p.Close() })
	return s
}

func plug(t *testing.T) (*Port, *station) {
	t.Helper()
	p, conn := NewPipe(t.Name())
	return p, newStation(t, p, conn)
}

func (s *station) send(f []byte) {
	s.t.Helper()
	if _, err := s.conn.Write(AppendFrame(nil, f)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *station) expect(want []byte) {
	s.t.Helper()
	select {
	case f := <-s.got:
		if !bytes.Equal(f, want) {
			s.t.Fatalf("got %q, want %q", f, want)
		}
	case <-time.After(10 * time.Second):
		s.t.Fatalf("no frame within 10 s, want %q", want)
	}
}

func TestHubLearnsAndMoves(t *testing.T) {
	hub := NewHub()
	pa, a := plug(t)
	pb, b := plug(t)
	pc, c := plug(t)
	for _, p := range []*Port{pa, pb, pc} {
		hub.Attach(p)
	}
	// Unknown destination: flooded, but not back.
	f := frame(mac(2), mac(1), "flood")
	a.send(f)
	b.expect(f)
	c.expect(f)
	// Now mac(1) is known: only a gets the answer.
	f = frame(mac(1), mac(2), "answer")
	b.send(f)
	a.expect(f)
	// mac(1) announces itself from c (gratuitous ARP): all others hear it, and then traffic goes there.
	f = frame(Broadcast, mac(1), "moved")
	c.send(f)
	a.expect(f)
	b.expect(f)
	f = frame(mac(1), mac(2), "at c")
	b.send(f)
	c.expect(f)
	if hub.Location(mac(1)) != pc {
		t.Error("the address is not where it was last heard")
	}
	if len(a.got) != 0 || len(b.got) != 0 {
		t.Error("a frame went to a port that it was not for")
	}
}

func TestHubFixedAddress(t *testing.T) {
	hub := NewHub()
	pg, g := plug(t)
	pa, a := plug(t)
	pb, b := plug(t)
	hub.AttachFixed(pg, mac(9))
	hub.Attach(pa)
	hub.Attach(pb)
	multicast := frame(MAC{0x33, 0x33, 0, 0, 0, 1}, mac(1), "group")
	a.send(multicast)
	b.expect(multicast)
	// A thief of the gateway's address does not get its traffic.
	f := frame(Broadcast, mac(9), "thief")
	b.send(f)
	a.expect(f)
	g.expect(f) // and the group frame before it never came
	f = frame(mac(9), mac(1), "for the gateway")
	a.send(f)
	g.expect(f)
}

func TestHubForgetsUnplugged(t *testing.T) {
	hub := NewHub()
	pa, a := plug(t)
	pb, b := plug(t)
	hub.Attach(pa)
	hub.Attach(pb)
	f := frame(mac(2), mac(1), "x")
	a.send(f)
	b.expect(f)
	a.conn.Close()
	eventually(t, "the address is forgotten", func() bool { return hub.Location(mac(1)) == nil && !pa.Connected() })
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func TestCutAndDelay(t *testing.T) {
	pa, a := plug(t)
	pb, b := plug(t)
	Join(pa, pb)
	pa.Cut(FromMachine, true)
	a.send(frame(mac(2), mac(1), "lost"))
	eventually(t, "the frame is dropped", func() bool { return pa.Counters(FromMachine).Dropped == 1 })
	back := frame(mac(1), mac(2), "other way")
	b.send(back)
	a.expect(back)

	pa.Cut(FromMachine, false)
	const delay = 60 * time.Millisecond
	pb.SetDelay(ToMachine, delay)
	start := time.Now()
	f1, f2 := frame(mac(2), mac(1), "first"), frame(mac(2), mac(1), "second")
	a.send(f1)
	a.send(f2)
	b.expect(f1)
	if d := time.Since(start); d < delay {
		t.Errorf("the frame came after %v, want at least %v", d, delay)
	}
	b.expect(f2)
	eventually(t, "both frames are counted", func() bool {
		c := pb.Counters(ToMachine)
		return c.Frames == 2 && c.Bytes == uint64(len(f1)+len(f2)) && c.Dropped == 0
	})
}

func TestLoss(t *testing.T) {
	pa, a := plug(t)
	pb, b := plug(t)
	Join(pa, pb)
	const frames, perMille = 1000, 300
	pa.SetLoss(FromMachine, perMille)
	for range frames {
		a.send(frame(mac(2), mac(1), "perhaps"))
	}
	pa.SetLoss(FromMachine, 0)
	last := frame(mac(2), mac(1), "last")
	a.send(last)
	var came int
	for f := range b.got {
		if bytes.Equal(f, last) {
			break
		}
		came++
	}
	// Fifteen standard deviations of a binomial distribution on either side.
	if lost := frames - came; lost < 100 || lost > 500 {
		t.Errorf("%d of %d frames were lost, and should be some %d", lost, frames, perMille)
	}
}

func TestOnly(t *testing.T) {
	here := [4]byte{192, 0, 2, 1}
	packet := func(etherType uint16, source, target [4]byte) []byte {
		f := frame(mac(2), mac(1), string(make([]byte, 20)))
		binary.BigEndian.PutUint16(f[12:], etherType)
		copy(f[minFrame+12:], source[:])
		copy(f[minFrame+16:], target[:])
		return f
	}
	pa, a := plug(t)
	pb, b := plug(t)
	Join(pa, pb)
	pa.Only(FromMachine, func(f []byte) bool { return Concerns(f, here) })
	other := [4]byte{192, 0, 2, 9}
	a.send(packet(0x0800, other, other))
	a.send(packet(0x86dd, here, here))
	a.send(frame(mac(2), mac(1), "short"))
	for _, f := range [][]byte{packet(0x0800, here, other), packet(0x0800, other, here), packet(0x0806, other, other)} {
		a.send(f)
		b.expect(f)
	}
	if n := pa.Counters(FromMachine).Dropped; n != 3 {
		t.Errorf("%d frames were dropped, want 3", n)
	}
	pa.Only(FromMachine, nil)
	f := frame(mac(2), mac(1), "anything")
	a.send(f)
	b.expect(f)
}

func TestStoppedMachineHoldsUpNobody(t *testing.T) {
	hub := NewHub()
	pa, a := plug(t)
	stuck, conn := NewPipe("stuck") // nobody reads from conn
	defer stuck.Close()
	defer conn.Close()
	pb, b := plug(t)
	for _, p := range []*Port{pa, stuck, pb} {
		hub.Attach(p)
	}
	f := frame(Broadcast, mac(1), "x")
	for range 3 * laneDepth {
		a.send(f)
		b.expect(f)
	}
	if stuck.Counters(ToMachine).Dropped == 0 {
		t.Error("nothing was dropped for the machine that takes no frames")
	}
}

func TestPortReconnects(t *testing.T) {
	path := filepath.Join(t.TempDir(), "port")
	p, err := NewPort(path)
	if err != nil {
		t.Fatal(err)
	}
	peer, b := plug(t)
	Join(p, peer)
	for range 3 {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		a := newStation(t, p, conn)
		f := frame(mac(2), mac(1), "hello")
		a.send(f)
		b.expect(f)
		f = frame(mac(1), mac(2), "you too")
		b.send(f)
		a.expect(f)
		conn.Close()
		eventually(t, "the port is free", func() bool { return !p.Connected() })
	}
}

func tcpSegment(v6 bool, flags byte) []byte {
	tcp := make([]byte, 20)
	tcp[13] = flags
	f := frame(mac(1), mac(2), "")
	if v6 {
		ip := make([]byte, 40)
		ip[0], ip[6] = 0x60, 6
		binary.BigEndian.PutUint16(f[12:], 0x86dd)
		return append(append(f, ip...), tcp...)
	}
	ip := make([]byte, 24)
	ip[0], ip[9] = 0x46, 6
	binary.BigEndian.PutUint16(f[12:], 0x0800)
	return append(append(f, ip...), tcp...)
}

func TestIsReset(t *testing.T) {
	fragment := tcpSegment(false, 0x04)
	fragment[minFrame+7] = 1
	for _, c := range []struct {
		name string
		f    []byte
		want bool
	}{
		{"RST", tcpSegment(false, 0x04), true},
		{"RST ACK", tcpSegment(false, 0x14), true},
		{"SYN ACK", tcpSegment(false, 0x12), false},
		{"IPv6 RST", tcpSegment(true, 0x04), true},
		{"IPv6 FIN", tcpSegment(true, 0x01), false},
		{"later fragment", fragment, false},
		{"other protocol", frame(mac(1), mac(2), "not IP at all, but long enough to be parsed as such"), false},
		{"short", tcpSegment(false, 0x04)[:40], false},
	} {
		if got := IsReset(c.f); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add(AppendFrame(nil, tcpSegment(false, 4)))
	f.Add(AppendFrame(AppendFrame(nil, tcpSegment(true, 4)), []byte("short")))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		for {
			fr, err := ReadFrame(r)
			if err != nil {
				return
			}
			if len(fr) < minFrame || len(fr) > MaxFrame {
				t.Fatalf("a frame of %d bytes", len(fr))
			}
			IsReset(fr)
			Concerns(fr, [4]byte{})
			addresses(fr)
		}
	})
}
