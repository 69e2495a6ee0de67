package sim

import (
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
)

// heartbeat is ftlink/pair's.
const heartbeat = 50 * time.Millisecond

// TestFailoverTime: from a host's death until the VM is live on the other one, 99 of 100 take no more than 5 heartbeats.
func TestFailoverTime(t *testing.T) {
	const histories = 400
	var took []time.Duration
	for seed := uint64(1); seed <= histories; seed++ {
		w, err := run(seed, Options{OneAtATime: true, Deaths: true})
		if err != nil {
			t.Fatal(err)
		}
		took = append(took, w.failovers...)
	}
	median, p99, longest := quantile(took, 0.5), quantile(took, 0.99), quantile(took, 1)
	t.Logf("%d failovers: median %v, 99 %% in %v, longest %v", len(took), median, p99, longest)
	if len(took) < 2*histories || p99 > 5*heartbeat || median < 2*heartbeat {
		t.Errorf("%d failovers, the median takes %v and 99 %% of them %v, want up to %v", len(took), median, p99, 5*heartbeat)
	}
}

// TestOutputDelay: an effect leaves when one message has gone each way since it was made, at either level.
func TestOutputDelay(t *testing.T) {
	const link = 10 * time.Millisecond
	seen := map[string]bool{}
	for seed := uint64(1); seed <= 10; seed++ {
		w, err := run(seed, Options{Link: link, Keep: []Step{}})
		if err != nil {
			t.Fatal(err)
		}
		level := []string{"verified", "received"}[w.level]
		median, p99 := quantile(w.delays, 0.5), quantile(w.delays, 0.99)
		if !seen[level] {
			t.Logf("level %s, %d effects: median %v, 99 %% in %v; a round trip takes %v", level, len(w.delays), median, p99, 2*link)
		}
		seen[level] = true
		// Effects leave in their order, so one that needn't wait may have to for one that must.
		if len(w.delays) < 100 || median != 2*link || p99 > 4*link {
			t.Errorf("level %s, %d effects: median %v, 99 %% in %v; want a round trip, %v, and two at most", level, len(w.delays), median, p99, 2*link)
		}
	}
	if len(seen) != 2 {
		t.Errorf("only %v were seen", seen)
	}
}

// TestLagControl: a secondary with half its primary's speed is kept close behind by slowing that down.
func TestLagControl(t *testing.T) {
	for _, speed := range []float64{0.25, 0.5, 0.9, 2} {
		w, err := run(1, Options{Speed: speed, Keep: []Step{}})
		if err != nil {
			t.Fatalf("speed %v: %v", speed, err)
		}
		live, _ := w.protected()
		l := &live.load
		worked := float64(l.quanta) * quantum.Seconds() / w.now.Seconds()
		t.Logf("a secondary with %v times the speed: lag up to %v, 99 %% below %v; the guest stood still %d times and worked %.0f %% of the time",
			speed, quantile(l.lags, 1), quantile(l.lags, 0.99), l.stops, 100*worked)
		begun := 0
		if speed < 0.5 {
			begun = 200 // until it is known how slow the secondary is
		}
		if most := quantile(l.lags[begun:], 1); most >= maxLag || w.count.Seedings != 1 || len(l.lags) < 1000 {
			t.Errorf("speed %v: lag up to %v in %d quanta, %d seedings; want less than %v in one", speed, most, len(l.lags), w.count.Seedings, maxLag)
		}
		if slow := speed < 1; slow != (l.stops > 0) || worked < 0.8*min(1, speed) {
			t.Errorf("speed %v: the guest stood still %d times, and worked %.2f of the time", speed, l.stops, worked)
		}
	}
}

// TestLaggardIsDropped: a secondary that can't be waited for is dropped, which an event says, and seeded again.
func TestLaggardIsDropped(t *testing.T) {
	var told []pair.Event
	const slow = 3 * time.Second
	w := newWorld(1, Options{Speed: 2, Keep: []Step{}, Tell: func(_ int, e pair.Event) { told = append(told, e) }})
	w.at(slow, func() { w.speed = 0.01 })
	w.at(faultTime, func() { w.speed = 2 }) // what slowed it down is over
	w.play(faultTime + repairTime)
	if err := w.outcome(1); err != nil {
		t.Fatal(err)
	}
	var dropped, again []time.Duration
	for _, e := range told {
		switch {
		case e.From == pair.Primary && e.Role == pair.Resolving && e.Cause == pair.Lagging.String() && e.Kind == pair.AboutSeed &&
			strings.Contains(e.What, "too far behind"):
			dropped = append(dropped, e.At)
		case e.Role == pair.Primary && e.From == pair.Pairing:
			again = append(again, e.At)
		}
	}
	if len(dropped) == 0 || len(again) < 2 || again[0] > slow || again[len(again)-1] < dropped[len(dropped)-1] || dropped[0]-slow < maxStall {
		t.Errorf("dropped at %v, protected at %v", dropped, again)
	}
	t.Logf("dropped at %v, protected at %v", dropped, again)
}
