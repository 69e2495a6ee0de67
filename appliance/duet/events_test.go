package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/api"
)

func happened(host string, s int, what string) api.Event {
	return api.Event{At: time.Unix(int64(s), 0), Host: host, VM: "db", Role: "solo", What: what}
}

// lastWords are the last words of each line.
func lastWords(text string) string {
	var words []string
	for _, line := range strings.Split(strings.TrimSpace(text), "\n") {
		f := strings.Fields(line)
		words = append(words, f[max(0, len(f)-1):]...)
	}
	return strings.Join(words, " ")
}

// TestEventsOfBothHosts merges them by time, and makes do with one host.
func TestEventsOfBothHosts(t *testing.T) {
	a := serve(t, &host{events: []api.Event{happened("a", 1, "one"), happened("a", 4, "four")}})
	b := serve(t, &host{events: []api.Event{happened("b", 2, "two"), happened("b", 3, "three"), happened("b", 5, "five")}})
	dead := []string{"--host", "127.0.0.1:1", "--token", "tok"}
	for _, c := range []struct {
		flags []string
		want  string
		note  bool
	}{
		{append(a.flags(), "--peer", b.address, "--peer-fingerprint", b.fingerprint), "one two three four five", false},
		{append(dead, "--peer", b.address, "--peer-fingerprint", b.fingerprint), "two three five", true},
		{append(a.flags(), "--peer", "127.0.0.1:1"), "one four", true},
	} {
		var out, notes bytes.Buffer
		if err := run(context.Background(), append(c.flags, "events"), nil, &out, &notes); err != nil {
			t.Errorf("%v: %v", c.flags, err)
		}
		if got := lastWords(out.String()); got != c.want || strings.Contains(notes.String(), "missing: host 127.0.0.1:1") != c.note {
			t.Errorf("%v: %q, want %q; notes %q", c.flags, got, c.want, notes.String())
		}
	}
	if err := run(context.Background(), append(dead, "--peer", "127.0.0.1:2", "events"), nil, io.Discard, io.Discard); err == nil {
		t.Error("no error although both hosts are dead")
	}
}

// screen is an output that tells of each write.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
	news chan struct{}
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.news <- struct{}{} }()
	return s.text.Write(p)
}

// TestEventsAreFollowed shows each event once, as it becomes known, until it is interrupted.
func TestEventsAreFollowed(t *testing.T) {
	h := &host{events: []api.Event{happened("a", 100, "one")}}
	s := serve(t, h)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out := &screen{news: make(chan struct{}, 100)}
	done := make(chan error, 1)
	go func() { done <- run(ctx, append(s.flags(), "events", "--follow"), nil, out, io.Discard) }()
	see := func(want string) {
		t.Helper()
		for got := ""; got != want; { // a table is written in pieces
			select {
			case <-out.news:
			case <-ctx.Done():
				t.Fatalf("%q, want %q", got, want)
			}
			out.mu.Lock()
			got = lastWords(out.text.String())
			out.mu.Unlock()
		}
	}
	see("one")
	for i, what := range []string{"three", "two", "four"} { // the second is late
		h.mu.Lock()
		h.events = append(h.events, happened("a", 102-i, what))
		h.mu.Unlock()
		see([]string{"one three", "one three two", "one three two four"}[i])
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("interrupted: %v", err)
	}
}

func TestParseSince(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600))
	for text, want := range map[string]string{
		"90m": "2026-01-02T01:34:05+01:00", "0s": "2026-01-02T03:04:05+01:00", "2026-01-01": "2026-01-01T00:00:00+01:00",
		"2026-01-01 12:13:14": "2026-01-01T12:13:14+01:00", "2026-01-01T12:13:14Z": "2026-01-01T12:13:14Z", "-1h": "", "": "", "noon": "",
	} {
		got, err := parseSince(text, now)
		if s := fmt.Sprint(got.Format(time.RFC3339)); (err == nil) != (want != "") || err == nil && s != want {
			t.Errorf("%q: %s, %v; want %q", text, s, err, want)
		}
	}
}
