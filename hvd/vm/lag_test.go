package vm

import (
	"testing"
	"time"
)

// slowSecondary plays ten seconds of a busy guest whose secondary has a share of
// the speed, millisecond by millisecond, with stops by pauseFor as throttle makes
// them. It returns the longest lag once the primary has found its speed, and the
// part of the time that the guest ran.
func slowSecondary(speed float64, limit time.Duration) (longest time.Duration, ran float64) {
	const step, end, settled = time.Millisecond, 10 * time.Second, 2 * time.Second
	var made []time.Duration // when each unexecuted millisecond of the guest was executed by the primary
	var done float64         // of the first
	var since, left time.Duration
	for now := time.Duration(0); now < end; now += step {
		var lag time.Duration
		if len(made) > 0 {
			lag = now - made[0]
		}
		switch {
		case left > 0:
			if left -= step; pauseFor(lag, limit) == 0 {
				left = 0
			}
		default:
			made = append(made, now)
			ran++
			if since += step; since >= throttleEvery {
				if left = pauseFor(lag, limit); left > 0 {
					since = 0
				}
			}
		}
		if now > settled {
			longest = max(longest, lag)
		}
		for done += speed; done >= 1 && len(made) > 0; done-- {
			made = made[1:]
		}
		if len(made) == 0 {
			done = 0
		}
	}
	return longest, ran / float64(end/step)
}

func TestSlowSecondary(t *testing.T) {
	for _, limit := range []time.Duration{100 * time.Millisecond, time.Second} {
		for speed, most := range map[float64]time.Duration{0.25: 3 * limit, 0.5: limit, 0.8: limit, 1: limit, 2: limit} {
			lag, ran := slowSecondary(speed, limit)
			if lag > most {
				t.Errorf("a secondary of %.2f times the speed lags by %v, and should by %v at most", speed, lag, most)
			}
			if want := min(speed, 1) * 0.9; ran < want {
				t.Errorf("a primary with a secondary of %.2f times the speed runs for %.2f of the time, and should for %.2f", speed, ran, want)
			}
		}
	}
}
