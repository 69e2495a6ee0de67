package vmproc

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// collectorWork is how long the collector is kept busy.
	collectorWork = 20 * time.Second
	// deepStack is how many calls lie below the pulse's, so that the collector takes long to look at its stack.
	deepStack = 5000
	// spun is more processor time than the pulse's thread needs from one heartbeat to the next, in an emulated host
	// too, and less than Linux lets a real-time thread have at a stretch.
	spun = 300 * time.Millisecond
)

// TestPulseBesideTheCollector keeps Go's garbage collector busy on a host with one processor, where the thread that
// looks at the pulse's stack can't run beside the pulse: the pulse may not stand in its way.
func TestPulseBesideTheCollector(t *testing.T) {
	if n := runtime.NumCPU(); n != 1 {
		t.Skipf("needs a host with one processor; this one has %d (image/boottest makes one)", n)
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(minProcs))
	ctx, cancel := context.WithTimeout(t.Context(), collectorWork)
	defer cancel()
	var collector sync.WaitGroup
	defer collector.Wait()
	collector.Go(func() {
		for ctx.Err() == nil {
			runtime.GC()
		}
	})
	begun := time.Now()
	var beats int
	var cpu, worstCPU, worst time.Duration
	last := begun
	p := &pulse{say: func(string) {}, begun: begun}
	p.send = func([]byte) error {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
			return err
		}
		now, used := time.Now(), time.Duration(u.Utime.Nano()+u.Stime.Nano())
		if beats++; beats > 2 { // the first is the loop's, and the second begins the count
			worst, worstCPU = max(worst, now.Sub(last)), max(worstCPU, used-cpu)
		}
		last, cpu = now, used
		p.turn(now)
		return nil
	}
	p.turn(begun)
	if err := p.beat(message, begun); err != nil {
		t.Fatal(err)
	}
	below(deepStack, func() { p.run(ctx) })
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	t.Logf("%d heartbeats beside %d collections; the longest silence was %v, the most processor time between two %v",
		beats, m.NumGC, worst, worstCPU)
	if beats < 10 || worstCPU > spun {
		t.Errorf("the pulse's thread kept the processor for %v", worstCPU)
	}
}

// below calls f below n other calls.
func below(n int, f func()) {
	if n == 0 {
		f()
		return
	}
	below(n-1, f)
}
