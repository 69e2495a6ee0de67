package sim

import (
	"flag"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	seedFlag   = flag.Uint64("sim.seed", 0, "play this one seed, with a trace")
	singleFlag = flag.Bool("sim.single", false, "with -sim.seed: one fault at a time")
	varyFlag   = flag.Uint64("sim.vary", 0, "with -sim.seed: another draw of all that isn't a step")
	keepFlag   = flag.String("sim.keep", "", "with -sim.seed: the only steps that take place, as in f3,u1,w0")
	fromFlag   = flag.Uint64("sim.from", 1, "play seeds from this one on")
	seedsFlag  = flag.Uint64("sim.seeds", 10000, "play so many seeds")
)

// TestSeed plays one seed and writes down what happens: go test -run
// TestSeed$ -sim.seed N.
func TestSeed(t *testing.T) {
	if *seedFlag == 0 {
		t.Skip("no -sim.seed")
	}
	o := Options{Trace: os.Stdout, OneAtATime: *singleFlag, Vary: *varyFlag}
	if *keepFlag != "" {
		var err error
		if o.Keep, err = ParseSteps(*keepFlag); err != nil {
			t.Fatal(err)
		}
	}
	count, err := Run(*seedFlag, o)
	t.Log(count)
	if err != nil {
		t.Fatal(err)
	}
}

// shrinkRuns bounds the search for a shorter schedule of a seed that failed.
const shrinkRuns = 1500

// play plays n histories on all processors and returns what happened in all of
// them. Of a history that fails it tells which steps are needed for that.
func play(t *testing.T, n uint64, o Options) Counters {
	t.Helper()
	defer debug.SetGCPercent(debug.SetGCPercent(1600)) // little is alive at a time
	start := time.Now()
	var next atomic.Uint64
	next.Store(*fromFlag)
	var mu sync.Mutex
	var total Counters
	var failed uint64 // the lowest seed that did; 0: none
	var all sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() {
			var mine Counters
			for seed := next.Add(1) - 1; seed < *fromFlag+n; seed = next.Add(1) - 1 {
				count, err := Run(seed, o)
				mine.Add(count)
				if err != nil {
					mu.Lock()
					if failed == 0 || seed < failed {
						failed = seed
					}
					mu.Unlock()
					next.Store(*fromFlag + n) // those that were begun come to their end
				}
			}
			mu.Lock()
			total.Add(mine)
			mu.Unlock()
		})
	}
	all.Wait()
	if failed != 0 {
		_, err := Run(failed, o)
		single := map[bool]string{true: " SINGLE=1"}[o.OneAtATime]
		t.Fatalf("%v\n%v\nmake sim SEED=%d%s [VARY=... KEEP=...] plays it, with a trace", err, Shrink(failed, o, shrinkRuns), failed, single)
	}
	took := time.Since(start)
	t.Logf("%d seeds in %v, %.0f a second\n%v\n%v", n, took.Round(time.Millisecond), float64(n)/took.Seconds(), total, total.Coverage)
	return total
}

// TestSeeds: nothing is lost and nothing speaks twice, whatever breaks.
func TestSeeds(t *testing.T) {
	n := *seedsFlag
	if testing.Short() {
		n /= 10
	}
	if missing := play(t, n, Options{}).Missing(); len(missing) > 0 && n >= 5000 {
		t.Errorf("the histories never met: %v", missing)
	}
}

// TestOneFaultAtATime: whatever single thing breaks while the VM is protected,
// the guest survives it with its memory.
func TestOneFaultAtATime(t *testing.T) {
	n := *seedsFlag / 5
	if testing.Short() {
		n /= 10
	}
	total := play(t, n, Options{OneAtATime: true})
	if total.Boots != int(n) || total.GoLives == 0 {
		t.Errorf("%d boots and %d takeovers in %d histories", total.Boots, total.GoLives, n)
	}
}

// TestSameSeedSameHistory: a seed is a bug report.
func TestSameSeedSameHistory(t *testing.T) {
	for seed := uint64(1); seed <= 20; seed++ {
		a, errA := Run(seed, Options{})
		b, errB := Run(seed, Options{})
		if a != b || errA != nil || errB != nil {
			t.Fatalf("seed %d: %+v, %v and %+v, %v", seed, a, errA, b, errB)
		}
	}
}

// TestShrink shortens the schedule of a history with a planted mistake, to
// steps that are enough for it and are told.
func TestShrink(t *testing.T) {
	o := Options{bugs: bugs{pauseWithTasks: true}}
	seed := uint64(1)
	for ; ; seed++ {
		if _, err := Run(seed, o); err != nil {
			break
		}
	}
	s := Shrink(seed, o, shrinkRuns)
	t.Logf("seed %d: %v", seed, s)
	if s.Err == nil || len(s.Steps) == 0 || 3*len(s.Steps) > s.Of || len(s.Story) < len(s.Steps) {
		t.Errorf("%d steps of %d, %d lines, %v", len(s.Steps), s.Of, len(s.Story), s.Err)
	}
	_, keep, _ := strings.Cut(s.String(), "KEEP=")
	steps, err := ParseSteps(keep)
	if err != nil {
		t.Fatal(err)
	}
	o.Keep, o.Vary = steps, s.Vary
	if _, err := Run(seed, o); err == nil || err.Error() != s.Err.Error() {
		t.Errorf("played again: %v, want %v", err, s.Err)
	}
	for _, bad := range []string{"", "f", "x1", "f1,,u2", "fx"} {
		if _, err := ParseSteps(bad); err == nil {
			t.Errorf("%q is taken for steps", bad)
		}
	}
}
