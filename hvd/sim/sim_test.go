package sim

import (
	"flag"
	"os"
	"runtime/debug"
	"testing"
	"time"
)

var (
	seedFlag   = flag.Uint64("sim.seed", 0, "play this one seed, with a trace")
	singleFlag = flag.Bool("sim.single", false, "with -sim.seed: one fault at a time")
	fromFlag   = flag.Uint64("sim.from", 1, "play seeds from this one on")
	seedsFlag  = flag.Uint64("sim.seeds", 10000, "play so many seeds")
)

// TestSeed plays one seed and writes down what happens: go test -run
// TestSeed$ -sim.seed N.
func TestSeed(t *testing.T) {
	if *seedFlag == 0 {
		t.Skip("no -sim.seed")
	}
	count, err := Run(*seedFlag, Options{Trace: os.Stdout, OneAtATime: *singleFlag})
	t.Logf("%+v", count)
	if err != nil {
		t.Fatal(err)
	}
}

// play plays n histories and returns what happened in all of them.
func play(t *testing.T, n uint64, o Options) Counters {
	t.Helper()
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	var total Counters
	start := time.Now()
	for seed := *fromFlag; seed < *fromFlag+n; seed++ {
		count, err := Run(seed, o)
		if err != nil {
			t.Fatal(err)
		}
		total.Add(count)
	}
	t.Logf("%d seeds in %v: %+v", n, time.Since(start).Round(time.Millisecond), total)
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
