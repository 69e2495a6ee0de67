package lockstep

import (
	"testing"
	"time"
)

// TestPace: a guest stands still while more than the window of its work is under way, and runs in between.
func TestPace(t *testing.T) {
	p := Pace{MaxLag: 120 * time.Millisecond} // so the window is 40 ms
	p.Reset()
	begun := time.Now()
	ms := func(n int) time.Time { return begun.Add(time.Duration(n) * time.Millisecond) }
	if p.Stop(ms(0)) != 0 || p.Lag(ms(0)) != 0 {
		t.Error("stands still, or lags, before anything was sent")
	}
	p.Sent(ms(0), 10)
	p.Sent(ms(20), 20)
	if got := p.Stop(ms(40)); got != 0 {
		t.Errorf("40 ms under way: stands for %v", got)
	}
	if got := p.Stop(ms(41)); got != maxStop {
		t.Errorf("41 ms under way: stands for %v, want %v", got, maxStop)
	}
	if p.Near(ms(60)) || p.Lag(ms(60)) != 60*time.Millisecond {
		t.Error("standing still makes the secondary near")
	}
	p.Executed(ms(61), 10)
	if !p.Near(ms(61)) || p.Lag(ms(61)) != 41*time.Millisecond {
		t.Errorf("an acknowledgement doesn't; lag %v", p.Lag(ms(61)))
	}
	p.Stood(ms(61))
	p.Sent(ms(70), 30)
	if got := p.Stop(ms(75)); got != 0 { // 55 ms, of which it stood 20
		t.Errorf("35 ms under way: stands for %v", got)
	}
	if got := p.Stop(ms(90)); got != maxStop {
		t.Errorf("50 ms under way: stands for %v", got)
	}
	p.Stood(ms(92))
	if got := p.Stop(ms(96)); got != 0 {
		t.Errorf("stands still again at once, for %v", got)
	}
	for i := range uint64(2 * maxSent) {
		p.Sent(ms(100), 40+i)
	}
	if n := len(p.batches); n != maxSent {
		t.Errorf("%d batches are timed, at most %d", n, maxSent)
	}
}

// TestPaceWindow: the window follows the lag, as far as that is its work.
func TestPaceWindow(t *testing.T) {
	p := Pace{MaxLag: 120 * time.Millisecond} // so the window is 40 ms
	p.Reset()
	now, lsn := time.Now(), uint64(0)
	after := func(lag time.Duration) time.Duration {
		lsn++
		p.Sent(now, lsn)
		now = now.Add(lag)
		p.Executed(now, lsn)
		return p.window
	}
	for i, c := range []struct{ lag, want time.Duration }{
		{96 * time.Millisecond, 40 * time.Millisecond},
		{192 * time.Millisecond, 20 * time.Millisecond},
		{50 * time.Millisecond, 20 * time.Millisecond},
		{20 * time.Millisecond, 25 * time.Millisecond},
		{time.Minute, leastWindow},
	} {
		if got := after(c.lag); got != c.want {
			t.Errorf("%d: after a lag of %v: a window of %v, want %v", i, c.lag, got, c.want)
		}
	}
	for range 30 {
		after(0)
	}
	if p.window != 40*time.Millisecond {
		t.Errorf("a fast secondary's window is %v", p.window)
	}
	p.Sent(now, lsn+1)
	p.Sent(now, lsn+2)
	now = now.Add(192 * time.Millisecond)
	p.Executed(now, lsn+1)
	p.Executed(now, lsn+2) // sent before the window was shrunk
	if p.window != 20*time.Millisecond {
		t.Errorf("after one lag, seen twice, the window is %v", p.window)
	}
}

// TestLaggard: a secondary is dropped when it was too late for a second, and
// not for one late look.
func TestLaggard(t *testing.T) {
	const limit, tick = 5 * time.Second, 12 * time.Millisecond
	l := Laggard{Limit: limit}
	begun := time.Now()
	for i, c := range []struct {
		at, lag time.Duration
		want    bool
	}{
		{0, limit, false},
		{tick, limit + 1, false},
		{2 * tick, 0, false}, // the acknowledgement came
		{time.Minute, limit + 1, false},
		{time.Minute + stuckFor - 1, time.Minute, false},
		{time.Minute + stuckFor, time.Minute, true},
		{time.Minute + stuckFor + tick, time.Minute, false},
		{time.Minute + 2*stuckFor + tick, time.Minute, true},
	} {
		if got := l.Stuck(begun.Add(c.at), c.lag); got != c.want {
			t.Errorf("look %d, %v behind: %t, want %t", i, c.lag, got, c.want)
		}
	}
}
