package vm

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkSlice shows what the slice of guests' threads does to three others on a
// processor with two busy guests: a thread that carries the log, a guest that is
// woken now and then, and one of the two. Each of the figures is how long it waits.
func BenchmarkSlice(b *testing.B) {
	for _, slice := range []time.Duration{3 * time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond} {
		b.Run(slice.String(), func(b *testing.B) {
			var stop atomic.Bool
			waits := map[string]chan []time.Duration{}
			begin := func(name string, slice time.Duration, f func(*atomic.Bool) []time.Duration) {
				done := make(chan []time.Duration, 1)
				waits[name] = done
				go onOneCore(b, slice, func() { done <- f(&stop) })
			}
			begin("busy", slice, busy)
			begin("other-busy", slice, busy)
			begin("woken", slice, woken(5*time.Millisecond, 300*time.Microsecond))
			begin("log", 0, woken(2*time.Millisecond, 20*time.Microsecond))
			time.Sleep(5 * time.Second)
			stop.Store(true)
			for name, done := range waits {
				d := <-done
				if len(d) == 0 {
					b.Errorf("%s never waited", name)
					continue
				}
				slices.Sort(d)
				for _, x := range []struct {
					name string
					at   int
				}{{"median", len(d) / 2}, {"p99", len(d) * 99 / 100}, {"most", len(d) - 1}} {
					b.ReportMetric(float64(d[x.at].Microseconds()), fmt.Sprint(name, "-", x.name, "-us"))
				}
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// onOneCore runs f on processor 0, on a thread with that slice; 0: the usual one.
func onOneCore(b *testing.B, slice time.Duration, f func()) {
	if slice == 0 {
		slice = 700 * time.Microsecond // Linux's for one processor
	}
	release, err := holdFor(slice)
	if err != nil {
		b.Error(err)
		return
	}
	defer release()
	var set, was unix.CPUSet
	set.Set(0)
	if err := errors.Join(unix.SchedGetaffinity(0, &was), unix.SchedSetaffinity(0, &set)); err != nil {
		b.Error(err)
		return
	}
	defer unix.SchedSetaffinity(0, &was)
	f()
}

// busy only computes, and says how long it was kept from that.
func busy(stop *atomic.Bool) (waits []time.Duration) {
	for last := time.Now(); !stop.Load(); {
		now := time.Now()
		if d := now.Sub(last); d > 50*time.Microsecond {
			waits = append(waits, d)
		}
		last = now
	}
	return waits
}

// woken sleeps and then computes, again and again, and says how much later it ran
// than it should have.
func woken(sleep, work time.Duration) func(*atomic.Bool) []time.Duration {
	return func(stop *atomic.Bool) (waits []time.Duration) {
		for t := unix.NsecToTimespec(sleep.Nanoseconds()); !stop.Load(); {
			begun := time.Now()
			_ = unix.Nanosleep(&t, nil) // cut short by a signal: early, then
			waits = append(waits, max(0, time.Since(begun)-sleep))
			for begun = time.Now(); time.Since(begun) < work; {
			}
		}
		return waits
	}
}
