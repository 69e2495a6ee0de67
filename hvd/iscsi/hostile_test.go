package iscsi

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestMalformedPDUs: whatever a target sends, the connection ends, and the read
// is answered rightly on the next one.
func TestMalformedPDUs(t *testing.T) {
	dataIn := func(itt, offset uint32, flags byte) (h header) {
		h[0], h[1] = byte(opDataIn), flags
		h.put32(16, itt)
		h.put32(40, offset)
		return h
	}
	for _, c := range []struct {
		name string
		do   func(c *fakeConn, h *header)
	}{
		{"data for a tag that isn't open", func(c *fakeConn, h *header) { c.send(dataIn(h.itt()+99, 0, flagFinal), make([]byte, 512), false) }},
		{"data beyond the buffer", func(c *fakeConn, h *header) { c.send(dataIn(h.itt(), 0, flagFinal), make([]byte, 4096), false) }},
		{"data at a wrong offset", func(c *fakeConn, h *header) { c.send(dataIn(h.itt(), 512, flagFinal), make([]byte, 512), false) }},
		{"data at a huge offset", func(c *fakeConn, h *header) { c.send(dataIn(h.itt(), 0xfffffe00, flagFinal), make([]byte, 512), false) }},
		{"too little data", func(c *fakeConn, h *header) {
			c.send(dataIn(h.itt(), 0, flagFinal|flagStatus), make([]byte, 100), true)
		}},
		{"good status without data", func(c *fakeConn, h *header) { c.status(h.itt(), statusGood, nil) }},
		{"status for a tag that isn't open", func(c *fakeConn, h *header) { c.status(h.itt()+5, statusGood, nil) }},
		{"R2T for a read", func(c *fakeConn, h *header) {
			var r header
			r[0] = byte(opR2T)
			r.put32(16, h.itt())
			r.put32(44, 512)
			c.send(r, nil, false)
		}},
		{"a request instead of a response", func(c *fakeConn, h *header) { c.send(header{0: byte(opSCSICommand)}, nil, false) }},
		{"an unknown PDU", func(c *fakeConn, h *header) { c.send(header{0: 0x3c}, nil, false) }},
		{"a data segment of 16 MiB", func(c *fakeConn, h *header) {
			c.nc.Write(append([]byte{byte(opNopIn), 0x80, 0, 0, 0, 255, 255, 255}, make([]byte, 40)...))
		}},
		{"reject", func(c *fakeConn, h *header) { c.send(header{0: byte(opReject), 2: 4}, h[:], true) }},
		{"asynchronous logout", func(c *fakeConn, h *header) { c.send(header{0: byte(opAsync), 36: 1}, nil, true) }},
		{"half a PDU", func(c *fakeConn, h *header) { c.nc.Write(make([]byte, 20)); c.nc.Close() }},
		{"target failure", func(c *fakeConn, h *header) {
			var r header
			r[0], r[1], r[2] = byte(opSCSIResponse), flagFinal, 1
			r.put32(16, h.itt())
			c.send(r, nil, true)
		}},
		{"end of a session without an answer", func(c *fakeConn, h *header) { c.send(header{0: byte(opAsync), 36: 2}, nil, true) }},
		{"task answer that nobody asked for", func(c *fakeConn, h *header) { c.send(header{0: byte(opTaskResponse)}, nil, true) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			fillRandom(f.disk[:512], 9)
			want := bytes.Clone(f.disk[:512])
			s := dialTest(t, f.config())
			onFirst(f, scsiRead16, c.do)
			got := make([]byte, 512)
			if err := s.Read(t.Context(), 0, got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) || s.Logins() != 2 || f.counted(scsiRead16) != 2 {
				t.Errorf("%d logins, %d READs; data right: %v", s.Logins(), f.counted(scsiRead16), bytes.Equal(got, want))
			}
		})
	}
}

// TestBadEndOfWrite: a target that says that a write is done without having taken
// all of it isn't believed.
func TestBadEndOfWrite(t *testing.T) {
	for name, do := range map[string]func(c *fakeConn, h *header){
		"without asking for data": func(c *fakeConn, h *header) { c.status(h.itt(), statusGood, nil) },
		"with bytes left over": func(c *fakeConn, h *header) {
			r := header{0: byte(opSCSIResponse), 1: flagFinal | flagUnderflow}
			r.put32(16, h.itt())
			r.put32(44, 512)
			c.send(r, nil, true)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.immediate, f.maxBurst = 1024, 4096
			s := dialTest(t, f.config())
			onFirst(f, scsiWrite16, do)
			want := make([]byte, 8192)
			fillRandom(want, 5)
			if err := s.Write(t.Context(), 0, want); err != nil || !bytes.Equal(f.disk[:8192], want) {
				t.Errorf("%v; data right: %v", err, bytes.Equal(f.disk[:8192], want))
			}
			if s.Logins() != 2 {
				t.Errorf("%d logins", s.Logins())
			}
		})
	}
}

// TestHarmlessPDUs: what a target may send at any time doesn't disturb.
func TestHarmlessPDUs(t *testing.T) {
	f := newFake(t)
	f.digests = true
	s := dialTest(t, f.config())
	var pong atomic.Bool
	onFirst(f, scsiRead16, func(c *fakeConn, h *header) {
		c.send(header{0: byte(opAsync), 36: 0}, append([]byte{0, 18}, fixedSense(6, 0x29, 0)...), true)
		ping := header{0: byte(opNopIn), 1: flagFinal}
		ping.put32(16, noTag)
		ping.put32(20, 1234)
		c.send(ping, []byte("hello"), false)
		c.command(h, nil)
		c.f.mu.Lock()
		defer c.f.mu.Unlock()
		c.f.intercept = func(c *fakeConn, h *header, data []byte) bool {
			if h.op() == opNopOut && h.itt() == noTag && h.transferTag() == 1234 && string(data) == "hello" {
				pong.Store(true)
			}
			return false
		}
	})
	if err := s.Read(t.Context(), 3, make([]byte, 1024)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, pong.Load)
	if s.Logins() != 1 {
		t.Errorf("%d logins", s.Logins())
	}
}

// TestDigestDamage: a flipped bit on the way costs a connection, not the data.
func TestDigestDamage(t *testing.T) {
	f := newFake(t)
	f.digests = true
	s := dialTest(t, f.config())
	fillRandom(f.disk[:4096], 1)
	onFirst(f, scsiRead16, func(c *fakeConn, h *header) {
		r := header{0: byte(opDataIn), 1: flagFinal | flagStatus}
		r.put32(16, h.itt())
		p := encodePDU(c.f.t, c.framing, r, c.f.disk[:4096])
		p[1000] ^= 1
		c.nc.Write(p)
	})
	got := make([]byte, 4096)
	if err := s.Read(t.Context(), 0, got); err != nil || !bytes.Equal(got, f.disk[:4096]) {
		t.Fatalf("%v; data right: %v", err, bytes.Equal(got, f.disk[:4096]))
	}
}

// TestUnknownOutcome: a COMPARE AND WRITE whose answer is lost is never issued
// again; one that surely wasn't executed is.
func TestUnknownOutcome(t *testing.T) {
	for _, c := range []struct {
		name    string
		do      func(c *fakeConn, h *header)
		unknown bool
		issued  int
	}{
		{"connection lost", func(c *fakeConn, h *header) { c.nc.Close() }, true, 1},
		{"unit attention", func(c *fakeConn, h *header) {
			c.status(h.itt(), statusCheckCondition, fixedSense(6, 0x2a, 3))
		}, false, 2},
		{"busy", func(c *fakeConn, h *header) { c.status(h.itt(), statusBusy, nil) }, false, 2},
		{"queue full", func(c *fakeConn, h *header) { c.status(h.itt(), statusTaskSetFull, nil) }, false, 2},
		{"aborted", func(c *fakeConn, h *header) { c.status(h.itt(), statusTaskAborted, nil) }, true, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t)
			s := dialTest(t, f.config())
			onFirst(f, scsiCompareAndWrite, c.do)
			swapped, err := s.CompareAndWrite(t.Context(), 1, make([]byte, 512), bytes.Repeat([]byte{1}, 512))
			if errors.Is(err, ErrUnknownOutcome) != c.unknown || swapped == c.unknown {
				t.Errorf("swapped %v, error %v", swapped, err)
			}
			if n := f.counted(scsiCompareAndWrite); n != c.issued {
				t.Errorf("issued %d times", n)
			}
			// the session goes on
			if err := s.Sync(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestReadyToTransfer writes to a target that takes no immediate data, and
// others only in small pieces.
func TestReadyToTransfer(t *testing.T) {
	for _, immediate := range []int{0, 1024} {
		f := newFake(t)
		f.immediate, f.maxRecv, f.maxBurst, f.window = immediate, 1500, 4096, 3
		s := dialTest(t, f.config())
		var wg sync.WaitGroup
		want := make([]byte, 20*10240)
		fillRandom(want, 4)
		for i := range 20 {
			wg.Go(func() {
				if err := s.Write(t.Context(), uint64(i*20), want[i*10240:][:10240]); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		got := make([]byte, len(want))
		if err := s.Read(t.Context(), 0, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("immediate %d: %v; data right: %v", immediate, err, bytes.Equal(got, want))
		}
	}
}

// TestSilentTarget: a target that stops answering is noticed by the ping.
func TestSilentTarget(t *testing.T) {
	f := newFake(t)
	cfg := f.config()
	cfg.Timeout = 300 * time.Millisecond
	events := make(chan string, 10)
	cfg.Notify = func(e string) { events <- e }
	s := dialTest(t, cfg)
	var silent atomic.Bool
	silent.Store(true)
	f.mu.Lock()
	f.intercept = func(c *fakeConn, _ *header, _ []byte) bool { return c.n == 1 && silent.Load() }
	f.mu.Unlock()
	start := time.Now()
	if err := s.Read(t.Context(), 0, make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 300*time.Millisecond || s.Logins() != 2 {
		t.Errorf("after %v, %d logins", took, s.Logins())
	}
	if e := <-events; !strings.Contains(e, "silent for 300ms") {
		t.Errorf("event %q", e)
	}
	if e := <-events; !strings.Contains(e, "back after") {
		t.Errorf("event %q", e)
	}
}

// TestStuckTarget: a target that answers pings but not a command, or whose answer
// comes byte by byte without an end, is left in a time that has a bound.
func TestStuckTarget(t *testing.T) {
	for name, do := range map[string]func(c *fakeConn, h *header){
		"command without an answer": func(*fakeConn, *header) {},
		"trickle": func(c *fakeConn, h *header) {
			r := header{0: byte(opDataIn), 1: flagFinal}
			r.setDataLen(512)
			r.put32(16, h.itt())
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for _, b := range append(r[:], make([]byte, 400)...) {
				<-tick.C
				if _, err := c.nc.Write([]byte{b}); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			cfg := f.config()
			cfg.Timeout = 300 * time.Millisecond
			s := dialTest(t, cfg)
			onFirst(f, scsiRead16, do)
			start := time.Now()
			mustDo(t, "read", s.Read(t.Context(), 0, make([]byte, 512)))
			if took := time.Since(start); s.Logins() != 2 || took > 10*cfg.Timeout {
				t.Errorf("%d logins, %v", s.Logins(), took)
			}
		})
	}
}

// TestFencedOnReconnect: when OnReconnect finds that the host was fenced, no
// write is issued again, and the session is over.
func TestFencedOnReconnect(t *testing.T) {
	f := newFake(t)
	cfg := f.config()
	var tries atomic.Int32
	cfg.OnReconnect = func(ctx context.Context, s *Session) error {
		if _, _, err := s.Keys(ctx); err != nil {
			return err
		}
		if tries.Add(1) == 1 {
			return errors.New("can't tell yet")
		}
		return ErrFenced
	}
	s := dialTest(t, cfg)
	onFirst(f, scsiWrite16, func(c *fakeConn, _ *header) { c.nc.Close() })
	err := s.Write(t.Context(), 0, bytes.Repeat([]byte{7}, 512))
	if !errors.Is(err, ErrFenced) || tries.Load() != 2 || f.counted(scsiWrite16) != 1 {
		t.Errorf("%v after %d tries, %d WRITEs", err, tries.Load(), f.counted(scsiWrite16))
	}
	if err := s.Read(t.Context(), 0, make([]byte, 512)); !errors.Is(err, ErrFenced) || !errors.Is(s.Err(), ErrFenced) {
		t.Errorf("read after that: %v", err)
	}
}

func TestAnotherUnit(t *testing.T) {
	f := newFake(t)
	s := dialTest(t, f.config())
	f.mu.Lock()
	f.serial = "two"
	f.mu.Unlock()
	f.dropAll()
	if err := s.Write(t.Context(), 0, make([]byte, 512)); err == nil || !strings.Contains(err.Error(), "another logical unit") {
		t.Errorf("got %v", err)
	}
	if f.counted(scsiWrite16) > 1 {
		t.Error("the other unit was written to")
	}
}

func TestOffline(t *testing.T) {
	f := newFake(t)
	cfg := f.config()
	cfg.MaxOffline = 200 * time.Millisecond
	s := dialTest(t, cfg)
	f.ln.Close()
	f.dropAll()
	if err := s.Read(t.Context(), 0, make([]byte, 512)); !errors.Is(err, ErrOffline) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Read(ctx, 0, make([]byte, 512)); err == nil {
		t.Error("read of an unreachable volume")
	}
	s.Close()
	if err := s.Read(t.Context(), 0, make([]byte, 512)); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestCancel: a command that the target sits on is given up without harm to
// the others.
func TestCancel(t *testing.T) {
	f := newFake(t)
	s := dialTest(t, f.config())
	arrived := make(chan struct{})
	onFirst(f, scsiWrite16, func(*fakeConn, *header) { close(arrived) })
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	if err := s.Write(ctx, 0, make([]byte, 512)); !errors.Is(err, context.Canceled) || !errors.Is(err, ErrUnknownOutcome) {
		t.Errorf("got %v", err)
	}
	if err := s.Write(t.Context(), 0, make([]byte, 512)); err != nil || s.Logins() != 1 {
		t.Errorf("next write: %v, %d logins", err, s.Logins())
	}
}

func TestUnsupported(t *testing.T) {
	f := newFake(t)
	s := dialTest(t, f.config())
	if err := s.Register(t.Context(), 1); !errors.Is(err, ErrUnsupported) {
		t.Errorf("got %v", err)
	}
}

func TestRedirect(t *testing.T) {
	f := newFake(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		h := header{0: byte(opLoginResponse), 36: 1, 37: 1}
		nc.Write(encodePDU(t, framing{}, h, keyList{{"TargetAddress", f.ln.Addr().String() + ",1"}}.encode()))
	}()
	cfg := f.config()
	cfg.Portal = ln.Addr().String()
	if err := dialTest(t, cfg).Sync(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestNoTarget: other servers are told from a target in one line.
func TestNoTarget(t *testing.T) {
	for answer, want := range map[string]string{
		"HTTP/1.1 400 Bad Request\r\nServer: something or other\r\n\r\n": "no iSCSI target there",
		"": "closed by the target",
		string(append([]byte{byte(opReject), 0, 4}, make([]byte, 45)...)): "rejects the login",
	} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if nc, err := ln.Accept(); err == nil {
				nc.Write([]byte(answer))
				nc.(*net.TCPConn).CloseWrite()
			}
		}()
		cfg := Config{Portal: ln.Addr().String(), Target: "iqn.a", Initiator: "iqn.b", Timeout: time.Second}
		if _, err := Dial(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v, want %q", err, want)
		}
		ln.Close()
	}
}

// scripted is a connection on which a target says what is in r, whatever it's
// asked.
type scripted struct {
	r *bytes.Reader
	net.Conn
}

func (s scripted) Read(p []byte) (int, error)       { return s.r.Read(p) }
func (s scripted) Write(p []byte) (int, error)      { return len(p), nil }
func (s scripted) Close() error                     { return nil }
func (s scripted) SetWriteDeadline(time.Time) error { return nil }

// FuzzTarget lets a target say anything after a good login.
func FuzzTarget(f *testing.F) {
	login := func(flags byte, keys keyList) []byte {
		h := header{0: byte(opLoginResponse), 1: flags}
		h.put32(28, 1)
		h.put32(32, 100)
		return encodePDU(f, framing{}, h, keys.encode())
	}
	hello := append(login(flagTransit|stageOperational, keyList{{"AuthMethod", "None"}}), login(flagTransit|stageOperational<<2|stageFull, nil)...)
	status := header{0: byte(opSCSIResponse), 1: flagFinal, 19: 1, 35: 100}
	data := header{0: byte(opDataIn), 1: flagFinal | flagStatus, 19: 2}
	f.Add(append(encodePDU(f, framing{}, status, nil), encodePDU(f, framing{}, data, make([]byte, 36))...))
	for op := range byte(0x40) {
		f.Add(encodePDU(f, framing{}, header{0: op, 19: 1, 23: 1, 47: 1}, []byte{0, 1, 2}))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		cfg := Config{
			Portal: "fake:1", Target: "iqn.a", Initiator: "iqn.b", Timeout: time.Second,
			Dial: func(context.Context, string, string) (net.Conn, error) {
				return scripted{r: bytes.NewReader(append(bytes.Clone(hello), p...))}, nil
			},
		}
		if s, err := Dial(t.Context(), cfg); err == nil {
			s.Close()
		}
	})
}
