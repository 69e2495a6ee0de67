package journal

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/api"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(s int, vm, what string) api.Event {
	return api.Event{At: epoch.Add(time.Duration(s) * time.Second), VM: vm, What: what}
}

func whats(list []api.Event) string {
	var s []string
	for _, e := range list {
		s = append(s, e.What)
	}
	return strings.Join(s, " ")
}

func TestMergedByTime(t *testing.T) {
	j := Memory()
	j.Add(at(1, "", "one"), at(4, "", "four"))
	vm := []api.Event{at(2, "x", "two"), at(3, "x", "three"), at(5, "x", "five")}
	j.Add(vm...)
	j.Add(vm...) // a VM's process lists what it listed before
	if got, want := whats(j.List()), "one two three four five"; got != want {
		t.Errorf("events %q, want %q", got, want)
	}
}

func TestBounded(t *testing.T) {
	j := Memory()
	var all []api.Event
	for i := range Capacity + 50 {
		all = append(all, at(i, "x", fmt.Sprint(i)))
	}
	j.Add(all...)
	j.Add(all[:100]...) // what was dropped doesn't come back
	list := j.List()
	if len(list) != Capacity || list[0].What != "50" || list[Capacity-1].What != fmt.Sprint(Capacity+49) {
		t.Errorf("%d events, from %q to %q", len(list), list[0].What, list[len(list)-1].What)
	}
	if len(j.known) != Capacity {
		t.Errorf("%d identities for %d events", len(j.known), Capacity)
	}
	j.Add(api.Event{At: epoch.Add(time.Hour), VM: strings.Repeat("v", 1000), What: strings.Repeat("w", 1<<20) + "\n"})
	list = j.List()
	if e := list[len(list)-1]; len(e.What) > 2000 || len(e.VM) > maxText {
		t.Errorf("an event with %d and %d bytes of text", len(e.What), len(e.VM))
	}
}

func TestFileContinues(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	j, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	j.Add(at(2, "", "two"), at(1, "", "one"))
	j.Close()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(f, "rubbish\n%s\n{\"what\":\"cut off", strings.Repeat("y", 3*maxEvent))
	f.Close()
	if j, err = Open(path); err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if got, want := whats(j.List()), "one two"; got != want {
		t.Errorf("events %q, want %q", got, want)
	}
}

func TestFileIsRotated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	j, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	largest := int64(0)
	for i := range 4 * maxFile / 900 {
		if err := j.Add(at(i, "x", fmt.Sprint(i, strings.Repeat("w", 800)))); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		largest = max(largest, info.Size())
	}
	if largest > maxFile || largest < maxFile/2 {
		t.Errorf("the file grew up to %d bytes", largest)
	}
	last := j.List()
	again, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got := again.List(); len(got) != Capacity || whats(got) != whats(last) {
		t.Errorf("the file holds %d of the last %d events", len(got), Capacity)
	}
}

func TestWithoutFile(t *testing.T) {
	j, err := Open("/nonexistent/events.jsonl")
	if err == nil || j == nil {
		t.Fatalf("Open in a missing directory: %v, %v", j, err)
	}
	j.Add(at(1, "", "one"))
	if got := whats(j.List()); got != "one" {
		t.Errorf("events %q", got)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(`{"at":"2026-01-02T03:04:05Z","what":"a"}` + "\n"))
	f.Add([]byte("\n\n{}\n[1]\n\"\x00"))
	f.Add([]byte(`{"at":"9999-12-31T23:59:59-24:00","what":"a"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		j := Memory()
		if err := j.load(bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		var again bytes.Buffer
		for i, e := range j.events {
			if i > 0 && e.At.Before(j.events[i-1].At) {
				t.Fatal("events aren't in the order of their times")
			}
			again.Write(encode(e))
		}
		k := Memory()
		if err := k.load(&again); err != nil {
			t.Fatal(err)
		}
		if len(k.events) != len(j.events) {
			t.Fatalf("%d events are written, %d are read", len(j.events), len(k.events))
		}
	})
}
