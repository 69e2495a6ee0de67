package journal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/api"
	"golang.org/x/sys/unix"
)

// failing makes a report that fails the test.
func failing(t *testing.T) func(error) {
	return func(err error) { t.Errorf("told: %v", err) }
}

// content is what the records of some bytes say.
func content(t *testing.T, b []byte) string {
	t.Helper()
	var list []api.Event
	if err := read(bytes.NewReader(b), func(e api.Event) { list = append(list, e) }); err != nil {
		t.Fatal(err)
	}
	return whats(list)
}

func onDisk(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRestart opens the file of a journal that is gone.
func TestRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.log")
	j := Open(path, failing(t))
	j.Add(at(2, "", "two"), at(1, "", "one"))
	full := api.Event{
		At: epoch.Add(3 * time.Second), Host: "a", VM: "db", Kind: "divergence", From: "secondary", Role: "diverged", Epoch: 7,
		Position: 1 << 40, Cause: "why", What: "three", Divergence: &api.Divergence{Kind: "exit", Position: 9, Detail: "d", Here: "h"},
	}
	j.Add(full)
	j.Close()
	j = Open(path, failing(t))
	defer j.Close()
	list := j.List()
	if got, want := whats(list), "one two three"; got != want {
		t.Fatalf("events %q, want %q", got, want)
	}
	if d := list[2].Divergence; d == nil || *d != *full.Divergence {
		t.Errorf("the divergence became %+v", d)
	}
	list[2].Divergence, full.Divergence = nil, nil
	if list[2] != full {
		t.Errorf("%+v became %+v", full, list[2])
	}
}

// TestTornTail cuts a file at every byte, and damages each: no more is lost than the records that were hit, and what comes later is
// kept behind what is left.
func TestTornTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.log")
	var b []byte
	var ends []int // of the records
	for i, what := range []string{"one", "two", "three"} {
		b = append(b, encode(at(i, "", what))...)
		ends = append(ends, len(b))
	}
	words := []string{"one", "two", "three"}
	for cut := range len(b) + 1 {
		whole := 0
		for whole < len(ends) && cut >= ends[whole]-1 { // a line feed that is missing costs nothing
			whole++
		}
		want := strings.Join(words[:whole], " ")
		if got := content(t, b[:cut]); got != want {
			t.Fatalf("cut at %d of %d: %q, want %q", cut, len(b), got, want)
		}
		if cut%7 != 0 {
			continue
		}
		if err := os.WriteFile(path, b[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		j := Open(path, failing(t))
		j.Add(at(9, "", "later"))
		j.Close()
		if got := content(t, onDisk(t, path)); got != strings.TrimSpace(want+" later") {
			t.Fatalf("cut at %d, and continued: %q, want %q and later", cut, got, want)
		}
	}
	for at := range b {
		hurt := bytes.Clone(b)
		hurt[at] ^= 0x55
		lost := 0
		for ends[lost] <= at {
			lost++
		}
		left := append(append([]string{}, words[:lost]...), words[lost+1:]...)
		if at == ends[lost]-1 && lost < len(words)-1 { // its line feed: two records are one line
			left = append(append([]string{}, words[:lost]...), words[lost+2:]...)
		}
		if got := content(t, hurt); got != strings.Join(left, " ") {
			t.Fatalf("byte %d of %d damaged: %q, want %q", at, len(b), got, left)
		}
	}
}

// TestFileIsBounded adds more than the file may hold.
func TestFileIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.log")
	j := Open(path, failing(t))
	largest, n := int64(0), 2*Capacity
	for i := range n {
		j.Add(at(i, "x", fmt.Sprint(i, strings.Repeat("w", 900))))
		if info, err := os.Stat(path); err == nil {
			largest = max(largest, info.Size())
		}
	}
	j.Close()
	b := onDisk(t, path)
	if largest = max(largest, int64(len(b))); largest > maxFile {
		t.Errorf("the file grew to %d bytes", largest)
	}
	last := j.List()
	again := Open(path, failing(t))
	defer again.Close()
	if got := again.List(); len(got) == 0 || len(got) > Capacity || whats(got) != whats(last) || !strings.HasPrefix(got[len(got)-1].What, fmt.Sprint(n-1)) {
		t.Errorf("the file holds %d events, the journal %d", len(got), len(last))
	}
}

// disk is a store that can be full, in which case it takes a part of what comes, or stuck.
type disk struct {
	mu    sync.Mutex
	b     []byte
	full  bool
	stuck chan struct{} // nil: it isn't
	calls chan error    // what each call answered
}

func (d *disk) replace(b []byte) error {
	return d.do(func() error {
		if d.full {
			return unix.ENOSPC
		}
		d.b = bytes.Clone(b)
		return nil
	})
}

func (d *disk) add(b []byte) error {
	return d.do(func() error {
		if d.full {
			d.b = append(d.b, b[:len(b)/2]...)
			return unix.ENOSPC
		}
		d.b = append(d.b, b...)
		return nil
	})
}

func (d *disk) do(call func() error) error {
	d.mu.Lock()
	stuck := d.stuck
	d.mu.Unlock()
	if stuck != nil {
		<-stuck
	}
	d.mu.Lock()
	err := call()
	d.mu.Unlock()
	d.calls <- err
	return err
}

func (d *disk) close() {}

func (d *disk) fill(full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = full
}

func (d *disk) text(t *testing.T) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return content(t, d.b)
}

// TestFullDisk fills the disk and makes room again: nothing waits, no event that is known is lost, and people are told once each
// time.
func TestFullDisk(t *testing.T) {
	d := &disk{calls: make(chan error, 100)}
	told := make(chan error, 100)
	j := begin(d, nil, func(err error) { told <- err })
	<-d.calls
	add := func(n int, full bool) {
		t.Helper()
		j.Add(at(n, "", fmt.Sprint(n)))
		if err := <-d.calls; errors.Is(err, unix.ENOSPC) != full {
			t.Fatalf("event %d: %v", n, err)
		}
	}
	add(1, false)
	d.fill(true)
	add(2, true)
	add(3, true)
	if got := d.text(t); got != "1" {
		t.Errorf("the full disk has %q, want event 1 and half of a record", got)
	}
	if got := whats(j.List()); got != "1 2 3" {
		t.Errorf("in memory: %q", got)
	}
	d.fill(false)
	add(4, false)
	add(5, false)
	if got := d.text(t); got != "1 2 3 4 5" {
		t.Errorf("the disk with room has %q", got)
	}
	j.Close()
	if first, second := <-told, <-told; !errors.Is(first, unix.ENOSPC) || second != nil || len(told) != 0 {
		t.Errorf("told %v, then %v, and %d more", first, second, len(told))
	}
}

// TestStuckDisk: a disk that never answers holds nobody up.
func TestStuckDisk(t *testing.T) {
	d := &disk{calls: make(chan error, 100), stuck: make(chan struct{})}
	j := begin(d, nil, failing(t))
	for i := range 3 * Capacity {
		j.Add(at(i, "", fmt.Sprint(i, strings.Repeat("w", 500))))
	}
	n := len(j.List())
	j.mu.Lock()
	waiting := len(j.pending)
	j.mu.Unlock()
	if n == 0 || n > Capacity || waiting > maxHeld {
		t.Errorf("%d events in memory, %d bytes wait", n, waiting)
	}
	j.Close() // returns, after a moment
	close(d.stuck)
	<-j.ended
	// It may have older ones than the memory, too: what was written before is dropped with the next replacement.
	if got := d.text(t); !strings.HasSuffix(got, whats(j.List())) {
		t.Errorf("a disk that answers again lacks events: %d bytes, in memory %d", len(got), len(whats(j.List())))
	}
}

// TestWithoutDirectory: a machine without /perm keeps its events in memory.
func TestWithoutDirectory(t *testing.T) {
	told := make(chan error, 10)
	j := Open("/nonexistent/events.log", func(err error) { told <- err })
	j.Add(at(1, "", "one"))
	if err := <-told; err == nil {
		t.Error("told that it works")
	}
	j.Close()
	if got := whats(j.List()); got != "one" {
		t.Errorf("events %q", got)
	}
}
