package vm

import (
	"math"
	"testing"
	"time"
)

// TestKickerLooks: what comes from outside waits a fixed time for a kick, a timer
// as long as the last kick was dear, and both count from the last exit.
func TestKickerLooks(t *testing.T) {
	cfg := Config{StopAfter: 2 * time.Millisecond, KickAfter: 5 * time.Millisecond}
	const ms, none = int64(time.Millisecond), int64(math.MaxInt64)
	for _, c := range []struct {
		took               time.Duration // to answer the last kick
		entered, due, came int64         // ms ago; none: not at all
		stop, kick         bool
	}{
		{0, 1, 1, none, false, false},
		{0, 3, 3, none, true, false},
		{0, 6, 6, none, true, true},
		{0, 1, 6, 6, false, false},
		{0, 9, -50, none, false, false},
		{0, 9, -50, 6, true, true},
		{200 * time.Microsecond, 9, 9, none, true, false},
		{200 * time.Microsecond, 10, 10, none, true, true},
		{200 * time.Microsecond, 9, 9, 6, true, true},
		{time.Second, 99, 99, none, true, false},
		{time.Second, 100, 100, none, true, true},
	} {
		var k kicker
		now := time.Now().UnixNano()
		ago := func(n int64) int64 {
			if n == none {
				return none
			}
			return now - n*ms
		}
		k.cost(c.took)
		k.entered.Store(ago(c.entered))
		k.due.Store(ago(c.due))
		if stop, kick := k.look(now, ago(c.came), &cfg); stop != c.stop || kick != c.kick {
			t.Errorf("%+v: stop %t, kick %t", c, stop, kick)
		}
	}
}
