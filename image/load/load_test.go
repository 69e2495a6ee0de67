package load

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"
)

func TestNothingLost(t *testing.T) {
	f := newFakeRedis(t)
	l := start(t, f)
	serve(t, l)
	r := check(t, l)
	if !r.Clean() || r.Connections != 3 || r.Acknowledged < 12 {
		t.Errorf("a server without faults: %+v", r)
	}
	serve(t, l) // they go on
	if again := check(t, l); !again.Clean() || again.Acknowledged <= r.Acknowledged {
		t.Errorf("after going on: %+v", again)
	}
}

func TestLostWrites(t *testing.T) {
	for name, harm := range map[string]func(data map[string]string){
		"a value vanished":     func(d map[string]string) { delete(d, "duet:1:0") },
		"an older value":       func(d map[string]string) { d["duet:1:0"] = "1-0" },
		"a counter vanished":   func(d map[string]string) { delete(d, "duet:2:count") },
		"a counter went back":  func(d map[string]string) { d["duet:2:count"] = "1" },
		"a counter is no more": func(d map[string]string) { d["duet:2:count"] = "x" },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeRedis(t)
			l := start(t, f)
			serve(t, l)
			resume, err := l.Pause(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			f.change(harm)
			// Read back while no client can overwrite the damage.
			replies, err := l.clients[1].read(l.clients[1].ledger.keys())
			if err != nil {
				t.Fatal(err)
			}
			found := l.clients[1].ledger.check(replies)
			if replies, err = l.clients[2].read(l.clients[2].ledger.keys()); err != nil {
				t.Fatal(err)
			}
			found.add(l.clients[2].ledger.check(replies))
			resume()
			if found.Lost == 0 || len(found.Details) == 0 {
				t.Errorf("not found: %+v", found)
			}
		})
	}
}

// TestServerWentBack restores the server's data of some time ago, as a restart from an old disk would.
func TestServerWentBack(t *testing.T) {
	f := newFakeRedis(t)
	l := start(t, f)
	serve(t, l)
	old := map[string]string{}
	f.change(func(d map[string]string) {
		for k, v := range d {
			old[k] = v
		}
	})
	serve(t, l)
	f.change(func(d map[string]string) {
		clear(d)
		for k, v := range old {
			d[k] = v
		}
	})
	serve(t, l)
	r := check(t, l)
	if r.Backwards < 3 || r.Lost < 3 || r.Clean() {
		t.Errorf("counters of all three clients went back: %+v", r)
	}
}

func TestExecutedTwice(t *testing.T) {
	f := newFakeRedis(t)
	f.harm(func(f *fakeRedis, _ net.Conn, args []string) {
		if args[1] == "duet:0:count" && f.data[args[1]] == "3" {
			f.execute(args)
		}
	})
	l := start(t, f)
	for range 12 {
		if err := l.Answered(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if r := check(t, l); r.Doubled != 1 || r.Lost != 0 {
		t.Errorf("one INCR was executed twice: %+v", r)
	}
}

func TestReset(t *testing.T) {
	f := newFakeRedis(t)
	l := start(t, f)
	serve(t, l)
	f.harm(func(f *fakeRedis, conn net.Conn, args []string) {
		if strings.HasPrefix(args[1], "duet:1:") {
			_ = conn.(*net.TCPConn).SetLinger(0)
			conn.Close()
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		if err := l.Answered(ctx); err != nil {
			if ctx.Err() != nil {
				t.Fatal("the reset wasn't noticed")
			}
			break
		}
	}
	f.harm(nil)
	r := check(t, l)
	if r.Resets != 1 || r.Broken == nil || r.Clean() {
		t.Errorf("one connection was reset: %+v", r)
	}
	if !r.OK() {
		t.Errorf("nothing acknowledged was lost, and the broken client's request may or may not count: %+v", r.Findings)
	}
	f.change(func(d map[string]string) { delete(d, "duet:1:count") })
	if r := check(t, l); r.Lost == 0 {
		t.Errorf("the broken client's counter vanished: %+v", r)
	}
}

func TestAllReset(t *testing.T) {
	f := newFakeRedis(t)
	l := start(t, f)
	serve(t, l)
	f.harm(func(_ *fakeRedis, conn net.Conn, _ []string) { conn.Close() })
	for l.Answered(t.Context()) == nil {
	}
	var r Result
	for r = check(t, l); r.Resets < 3; r = check(t, l) {
	}
	if r.Unread == 0 || r.Clean() {
		t.Errorf("nothing can be read back: %+v", r)
	}
}

func TestErrorReply(t *testing.T) {
	c := newLedger("0", 1)
	c.next()
	if err := c.acknowledge(reply{kind: '-', text: "LOADING"}); err == nil || !strings.Contains(err.Error(), "LOADING") {
		t.Errorf("an error was taken for an acknowledgement: %v", err)
	}
}

func TestNoServer(t *testing.T) {
	gone := errors.New("nobody there")
	_, err := Start(t.Context(), Config{Dial: func(context.Context) (net.Conn, error) { return nil, gone }})
	if !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
}

func TestPauseEnds(t *testing.T) {
	f := newFakeRedis(t)
	hold := make(chan struct{})
	l := start(t, f)
	serve(t, l)
	f.harm(func(*fakeRedis, net.Conn, []string) { <-hold })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for {
		resume, err := l.Pause(ctx)
		if err != nil {
			break // a request hangs
		}
		resume()
	}
	close(hold)
	f.harm(nil)
	serve(t, l) // and nobody was left paused
}

func TestWindow(t *testing.T) {
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	var r recorder
	r.begin(at(0), 2)
	r.answer(0, at(0), at(10))
	r.answer(1, at(5), at(20))
	r.answer(0, at(20), at(500)) // an outage; connection 1 waits longer
	r.answer(1, at(30), at(700))
	r.answer(1, at(705), at(710))
	w := r.end(at(800))
	want := Window{
		From: at(0), To: at(800), Requests: 5, Median: 15 * time.Millisecond, P99: 670 * time.Millisecond,
		Longest: 670 * time.Millisecond, Gap: 680 * time.Millisecond, Silence: 480 * time.Millisecond,
	}
	if w != want {
		t.Errorf("got  %+v\nwant %+v", w, want)
	}
	if w.Rate() != 6.25 {
		t.Errorf("rate %v", w.Rate())
	}
	r.begin(at(1000), 2)
	r.answer(0, at(1000), at(1001))
	if w := r.end(at(3000)); w.Gap != 2*time.Second || w.Silence != 1999*time.Millisecond {
		t.Errorf("a connection that still waits: %+v", w)
	}
}

// TestSharedKeys has a server forget acknowledged writes, as a copy that is behind would.
func TestSharedKeys(t *testing.T) {
	f := newFakeRedis(t)
	l, err := Start(t.Context(), Config{Dial: f.dial, Clients: 3, Slots: 4, Shared: 2, Pause: time.Microsecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	for range 10 {
		serve(t, l)
	}
	if r := check(t, l); !r.Clean() {
		t.Fatalf("a server without faults: %+v", r)
	}
	f.change(func(d map[string]string) {
		for k := range 2 {
			d[sharedKey(k)] = "0-0" // what was there long ago
		}
	})
	for range 10 {
		serve(t, l)
	}
	if r := check(t, l); r.Unexplained != 1 {
		t.Errorf("values came back, and: %+v", r.Findings)
	}
	for range 10 {
		serve(t, l)
	}
	if r := check(t, l); r.Unexplained != 1 {
		t.Errorf("what was found counts on, and nothing is new: %+v", r.Findings)
	}
}
