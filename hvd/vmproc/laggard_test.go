package vmproc

import (
	"testing"
	"time"
)

// TestLaggard: a secondary is dropped when it was too late for a second, and
// not for one late look.
func TestLaggard(t *testing.T) {
	l := laggard{limit: maxStall}
	begun := time.Now()
	for i, c := range []struct {
		at, lag time.Duration
		want    bool
	}{
		{0, maxStall, false},
		{tick, maxStall + 1, false},
		{2 * tick, 0, false}, // the acknowledgement came
		{time.Minute, maxStall + 1, false},
		{time.Minute + stallFor - 1, time.Minute, false},
		{time.Minute + stallFor, time.Minute, true},
		{time.Minute + stallFor + tick, time.Minute, false},
		{time.Minute + 2*stallFor + tick, time.Minute, true},
	} {
		if got := l.stuck(begun.Add(c.at), c.lag); got != c.want {
			t.Errorf("look %d, %v behind: %t, want %t", i, c.lag, got, c.want)
		}
	}
}
