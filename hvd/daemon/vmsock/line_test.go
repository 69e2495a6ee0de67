package vmsock

import (
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/api"
)

func TestEventLine(t *testing.T) {
	e := api.Event{At: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), VM: "db", Kind: api.EventFence, Epoch: 3, From: "fencing", Role: "solo", Position: 7, What: "line\nfeed"}
	line := EventLine(e)
	if strings.Contains(line, "\n") {
		t.Fatalf("the line %q has another one in it", line)
	}
	got, text := ParseLine(line)
	if got == nil || *got != e || text != "solo: line\nfeed" {
		t.Errorf("%q is %+v, %q", line, got, text)
	}
	e.What = strings.Repeat("w", maxEventLine)
	if got, text = ParseLine(EventLine(e)); got != nil || text != "solo: "+e.What {
		t.Errorf("a long event is %+v, %.20q", got, text)
	}
}

func FuzzParseLine(f *testing.F) {
	f.Add("solo: live")
	f.Add(`event {"at":"2026-01-02T03:04:05Z","what":"a","role":"solo"}`)
	f.Add(`event {"at":17}`)
	f.Fuzz(func(t *testing.T, line string) {
		e, text := ParseLine(line)
		if e == nil && text != line {
			t.Fatalf("%q says %q", line, text)
		}
	})
}
