package proxy

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/iscsi"
	"github.com/duet-ft/duet/image/target"
)

// start makes a target, a proxy before it, and a session through the proxy.
func start(t *testing.T, digests bool) (*Proxy, *iscsi.Session) {
	t.Helper()
	tg, err := target.Start(t.Context(), target.Config{Dir: t.TempDir(), Size: 8 << 20, User: "duet", Secret: "123456789012"})
	if errors.Is(err, target.ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tg.Kill)
	p, err := New(tg.Portal())
	if err != nil {
		t.Fatal(err)
	}
	s, err := iscsi.Dial(t.Context(), iscsi.Config{
		Portal: p.ln.Addr().String(), Target: tg.IQN(), Initiator: "iqn.2026-01.example:test", User: "duet", Secret: "123456789012",
		HeaderDigest: digests, DataDigest: digests,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p, s
}

// long is what makes R2Ts: more than a first burst.
var long = bytes.Repeat([]byte("0123456789abcdef"), 512<<10/16)

func TestPasses(t *testing.T) {
	for _, digests := range []bool{false, true} {
		p, s := start(t, digests)
		if err := s.Write(t.Context(), 8, long); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(long))
		if err := s.Read(t.Context(), 8, got); err != nil || !bytes.Equal(got, long) {
			t.Fatalf("read back: %v", err)
		}
		if c := p.Counts(); c.Written == 0 || c.Refused != 0 {
			t.Errorf("counted %+v", c)
		}
	}
}

// TestRefuses looks at what was written behind the proxy's back, once it passes commands on again.
func TestRefuses(t *testing.T) {
	for _, digests := range []bool{false, true} {
		p, s := start(t, digests)
		for _, c := range []struct {
			refuse     Refusal
			data       []byte
			says       string
			readsFails bool
		}{
			{Broken, long[:4096], "write error", true},
			{Broken, long, "write error", true},
			{Full, long[:4096], "", false},
			{Full, long, "", false},
		} {
			before := p.Counts()
			p.Set(Mode{Refuse: c.refuse})
			err := s.Write(t.Context(), 8, c.data)
			if err == nil || errors.Is(err, iscsi.ErrOffline) {
				t.Fatalf("%v: %d bytes: %v", c.refuse, len(c.data), err)
			}
			t.Logf("%v: %v", c.refuse, err)
			got := make([]byte, 512)
			if err := s.Read(t.Context(), 8, got); (err != nil) != c.readsFails {
				t.Errorf("%v: a read ends with %v", c.refuse, err)
			}
			p.Set(Mode{})
			if err := s.Read(t.Context(), 8, got); err != nil || !bytes.Equal(got, make([]byte, 512)) {
				t.Errorf("%v: the write was done all the same: %v", c.refuse, err)
			}
			after := p.Counts()
			if after.Written != before.Written || after.Refused == before.Refused {
				t.Errorf("counted %+v, then %+v", before, after)
			}
		}
	}
}

func TestBusyForAWhile(t *testing.T) {
	p, s := start(t, false)
	p.Set(Mode{Refuse: Busy})
	done := make(chan error, 1)
	go func() { done <- s.Write(t.Context(), 8, long[:4096]) }()
	eventually(t, "the write to be refused", func() bool { return p.Counts().Refused > 0 })
	p.Set(Mode{})
	if err := <-done; err != nil {
		t.Errorf("a write to a target that was busy: %v", err)
	}
}

func TestStallsAndCuts(t *testing.T) {
	p, s := start(t, false)
	p.Set(Mode{Stall: true})
	done := make(chan error, 1)
	go func() { done <- s.Write(t.Context(), 8, long[:4096]) }()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Read(ctx, 8, make([]byte, 512)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a read while nothing is let through: %v", err)
	}
	if c := p.Counts(); c != (Counts{}) {
		t.Errorf("counted %+v", c)
	}
	p.Set(Mode{})
	if err := <-done; err != nil {
		t.Errorf("what was held up: %v", err)
	}

	p.Set(Mode{Cut: true})
	eventually(t, "the session to notice", func() bool { return s.Err() != nil })
	go func() { done <- s.Write(t.Context(), 16, long[:4096]) }()
	p.Set(Mode{})
	if err := <-done; err != nil {
		t.Errorf("a write that waited for the target: %v", err)
	}
}

func TestDelay(t *testing.T) {
	p, s := start(t, false)
	const delay = 60 * time.Millisecond
	p.Set(Mode{Delay: delay})
	begin := time.Now()
	if err := s.Read(t.Context(), 8, make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < delay {
		t.Errorf("a read took %v, less than the delay", took)
	}
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited 20 s for %s", what)
		}
	}
}

func FuzzRead(f *testing.F) {
	command := make([]byte, headerLen)
	command[0] = opCommand
	f.Add(command, false, false)
	f.Add((&pdu{data: []byte("HeaderDigest=CRC32C\x00DataDigest=None\x00")}).append(nil, digests{true, true}), true, true)
	f.Add([]byte(strings.Repeat("\xff", 60)), true, false)
	f.Fuzz(func(t *testing.T, b []byte, header, data bool) {
		d := digests{header, data}
		p, err := read(bytes.NewReader(b), d)
		if err != nil {
			return
		}
		var got digests
		p.loggedIn(&got)
		again, err := read(bytes.NewReader(p.append(nil, d)), d)
		if err != nil || !bytes.Equal(again.data, p.data) || !bytes.Equal(again.ahs, p.ahs) || again.head != p.head {
			t.Fatalf("%+v became %+v, %v", p, again, err)
		}
	})
}
