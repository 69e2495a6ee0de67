package iscsi

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/duet-ft/duet/image/target"
)

const (
	perfRounds = 5
	perfTime   = 2 * time.Second // of each initiator in a round
	perfBlocks = 8               // of 512 bytes, a request
)

// BenchmarkAgainstLibiscsi compares this initiator with the one of libiscsi, which is
// written in C and has one thread, on one target: random reads of 4 KiB, by turns, so
// that other load on the machine meets both. It reports the medians of requests per
// second and of what they cost of the CPU, each as ours divided by libiscsi's.
func BenchmarkAgainstLibiscsi(b *testing.B) {
	perf, err := exec.LookPath("iscsi-perf")
	if err != nil {
		b.Skip("iscsi-perf is missing: apt-get install libiscsi-bin")
	}
	cfg := target.Config{Dir: b.TempDir(), Size: 64 << 20}
	tg, err := target.StartTgt(b.Context(), cfg)
	if err != nil { // it is the faster one, and needs root
		tg, err = target.Start(b.Context(), cfg)
	}
	if err != nil {
		b.Skip(err)
	}
	defer tg.Kill()
	s, err := Dial(b.Context(), testConfig(tg, "bench"))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	url := fmt.Sprintf("iscsi://%s/%s/%d", tg.Portal(), tg.IQN(), tg.LUN())
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			var rates, costs []float64
			for range perfRounds {
				theirs, theirCPU, err := libiscsiReads(b.Context(), perf, url, depth)
				if err != nil {
					b.Fatal(err)
				}
				ours, ourCPU, err := ownReads(b.Context(), s, depth)
				if err != nil {
					b.Fatal(err)
				}
				b.Logf("%.0f requests a second, libiscsi %.0f; CPU %v, %v each", ours, theirs, ourCPU, theirCPU)
				rates = append(rates, ours/theirs)
				costs = append(costs, float64(ourCPU)/float64(theirCPU))
			}
			b.ReportMetric(0, "ns/op") // means nothing here
			b.ReportMetric(median(rates), "rate/libiscsi's")
			b.ReportMetric(median(costs), "CPU/libiscsi's")
		})
	}
}

func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}

var perfResult = regexp.MustCompile(`iops average (\d+)`)

// libiscsiReads returns requests per second, and CPU time a request.
func libiscsiReads(ctx context.Context, perf, url string, depth int) (rate float64, each time.Duration, err error) {
	cmd := exec.CommandContext(ctx, perf, "-m", fmt.Sprint(depth), "-b", fmt.Sprint(perfBlocks), "-t", fmt.Sprint(perfTime/time.Second), "-r", url)
	out, err := cmd.CombinedOutput()
	found := perfResult.FindAllSubmatch(out, -1)
	if err != nil || len(found) == 0 {
		return 0, 0, fmt.Errorf("iscsi-perf: %w: %s", err, out)
	}
	if rate, err = strconv.ParseFloat(string(found[len(found)-1][1]), 64); err != nil || rate == 0 {
		return 0, 0, fmt.Errorf("iscsi-perf says %s", out)
	}
	used := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return rate, time.Duration(float64(used) / (rate * perfTime.Seconds())), nil
}

func ownReads(ctx context.Context, s *Session, depth int) (rate float64, each time.Duration, err error) {
	blocks, size := s.Capacity()
	before, start := ownCPU(), time.Now()
	end := start.Add(perfTime)
	var done atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for range depth {
		wg.Go(func() {
			p := make([]byte, perfBlocks*size)
			for time.Now().Before(end) {
				if err := s.Read(ctx, rand.Uint64N(blocks/perfBlocks)*perfBlocks, p); err != nil {
					failed.Store(&err)
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	if e := failed.Load(); e != nil {
		return 0, 0, *e
	}
	n := float64(done.Load())
	return n / time.Since(start).Seconds(), time.Duration(float64(ownCPU()-before) / n), nil
}

// ownCPU is the CPU time of this process.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
