package journal

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/google/go-cmp/cmp"
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

// FuzzRead: whatever a file holds, it is read, and what was read is written so that it is read again.
func FuzzRead(f *testing.F) {
	whole := encode(at(1, "db", "a"))
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Add(append(whole[:len(whole)/2:len(whole)/2], whole...))
	f.Add([]byte("\n\n00000000 \n00000000 {}\n"))
	f.Add(append(append(sum([]byte(`{"at":"9999-12-31T23:59:59-24:00","what":"a"}`)), ' '), `{"at":"9999-12-31T23:59:59-24:00","what":"a"}`...))
	f.Add(bytes.Repeat([]byte("y"), 3*maxRecord))
	f.Fuzz(func(t *testing.T, b []byte) {
		j := Memory()
		fill := func(e api.Event) { j.insert(e) }
		if err := read(bytes.NewReader(b), fill); err != nil {
			t.Fatal(err)
		}
		var again bytes.Buffer
		for i, r := range j.held {
			if i > 0 && r.e.At.Before(j.held[i-1].e.At) {
				t.Fatal("events aren't in the order of their times")
			}
			again.Write(r.line)
		}
		k := Memory()
		if err := read(&again, func(e api.Event) { k.insert(e) }); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(j.List(), k.List()); d != "" {
			t.Fatalf("written and read (-written +read):\n%s", d)
		}
	})
}
