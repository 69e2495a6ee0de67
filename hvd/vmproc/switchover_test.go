package vmproc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/ftlink/wire"
	"github.com/duet-ft/duet/hvd/vm"
)

// logFrame is a Log frame as a stream hands it over.
func logFrame(t *testing.T, lsn uint64, log []byte) wire.Frame {
	t.Helper()
	f, err := wire.NewReader(bytes.NewReader(wire.AppendLog(nil, lsn, log))).Next()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Log of the copy that takes over is kept from the moment on at which it can come,
// up to a bound, and at no other time.
func TestEarlyLog(t *testing.T) {
	p := &Process{}
	piece := bytes.Repeat([]byte{7}, 1<<20)
	early := func() int { return len(p.moving.early) }
	if err := p.keepEarly(nil, logFrame(t, 0, piece)); err != nil || early() != 0 {
		t.Fatalf("log that nobody expects: %v, %d kept", err, early())
	}
	p.expectLog(true)
	for n := range maxEarly >> 20 {
		if err := p.keepEarly(nil, logFrame(t, uint64(n)<<20, piece)); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.keepEarly(nil, logFrame(t, maxEarly, piece)); !errors.Is(err, vm.ErrBehind) {
		t.Errorf("more than %d bytes: %v", maxEarly, err)
	}
	if early() != maxEarly>>20 || p.moving.early[3].lsn != 3<<20 || !bytes.Equal(p.moving.early[3].bytes, piece) {
		t.Errorf("%d pieces are kept", early())
	}
	p.expectLog(false)
	if err := p.keepEarly(nil, logFrame(t, 0, piece)); err != nil || early() != 0 {
		t.Errorf("after the switchover was given up: %v, %d kept", err, early())
	}
}

// How long the guest stood still is counted from the first that is heard of it.
func TestWatchPause(t *testing.T) {
	p := &Process{}
	hear := func(r pair.Role) time.Time {
		p.watchPause(pair.Message{Role: r})
		return p.moving.begun
	}
	if !hear(pair.Primary).IsZero() || !hear(pair.Yielding).IsZero() {
		t.Error("it stands still although nobody said so")
	}
	first := hear(pair.Pausing)
	if first.IsZero() || hear(pair.Pausing) != first || hear(pair.Yielding) != first || hear(pair.Secondary) != first {
		t.Error("it isn't the first that counts")
	}
	if !hear(pair.Primary).IsZero() {
		t.Error("a switchover that was given up counts on")
	}
}

// Who asked for a switchover learns how it ended.
func TestSettle(t *testing.T) {
	event := func(what string) []pair.Output {
		return []pair.Output{pair.Event{What: "first"}, pair.Event{What: what}}
	}
	for _, c := range []struct {
		name string
		verb pair.Verb
		end  pair.Role
		want string
	}{
		{"done", pair.Switchover, pair.Secondary, ""},
		{"given up", pair.Switchover, pair.Primary, `VM "db" has not changed hosts: the switchover is given up`},
		{"lost to a failover", pair.Switchover, pair.Standby, `VM "db" has not changed hosts: the switchover is given up`},
		{"tested", pair.TestFailover, pair.Standby, ""},
	} {
		p := &Process{}
		p.def.Name = "db"
		decided := make(chan error, 1)
		p.moving.decided, p.moving.verb = decided, c.verb
		p.settle(pair.Pausing, event("stands still"))
		p.settle(pair.Yielding, event("asks for the block"))
		if len(decided) != 0 {
			t.Errorf("%s: decided too early", c.name)
		}
		p.settle(c.end, event("the switchover is given up"))
		p.settle(pair.Alone, event("something else")) // which isn't told to anybody
		err := <-decided
		if c.want == "" && err != nil || c.want != "" && (err == nil || err.Error() != c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// TestServeMove asks a copy that doesn't run the VM to give it away.
func TestServeMove(t *testing.T) {
	p := &Process{later: make(chan func(context.Context), 1)}
	p.def.Name = "db"
	var err error
	if p.pair, err = pair.New(pair.Config{Self: 1, Peer: 2, VM: pair.UUID{1}}, 1); err != nil {
		t.Fatal(err)
	}
	go func() { (<-p.later)(context.Background()) }()
	w := httptest.NewRecorder()
	p.serveMove(pair.Switchover)(w, httptest.NewRequest(http.MethodPost, "/v1/vm/switchover", nil))
	var body struct{ Error string }
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
		t.Fatal(err)
	}
	if w.Code != http.StatusConflict || !strings.HasPrefix(body.Error, `VM "db" can't change hosts: it doesn't run here`) {
		t.Errorf("status %d, %q", w.Code, body.Error)
	}
}

// A VM's own broadcasts aren't sent after it.
func TestSentBy(t *testing.T) {
	frame := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0xd0, 0xe7, 1, 8, 6}
	for mac, want := range map[string]bool{"52:54:00:d0:e7:01": true, "52:54:00:D0:E7:01": true, "52:54:00:d0:e7:02": false, "": false} {
		if got := sentBy(frame, mac); got != want {
			t.Errorf("%q: %t", mac, got)
		}
	}
	if sentBy(frame[:11], "52:54:00:d0:e7:01") {
		t.Error("a frame that is too short has a source")
	}
}
