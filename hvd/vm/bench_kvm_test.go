package vm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/kvm/kvmtest"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/machine"
)

// BenchmarkGuest measures what a guest's work costs its host, alone and
// recorded, in one run on one guest: processor time, exits and log for requests
// to its Redis, a tick while it idles, and files and blocks that are read from the
// disk. The log's reader acknowledges at once, so the link isn't in it.
func BenchmarkGuest(b *testing.B) {
	sys := kvmtest.Open(b)
	m := bootDebian(b, sys)
	defer m.Close()
	rim := newTestRim(b)
	cfg := benchConfig()
	cfg.SharedDisks = true
	e := New(m, rim, cfg)
	rim.engine = e
	rim.openNetwork(b)
	defer rim.close()
	ctx, stop := live(b, e, rim, 20*time.Minute)
	defer stop()
	if err := serve(ctx, rim.guest); err != nil {
		b.Fatal(err)
	}
	conn, err := net.Dial("tcp", rim.guest+":6379")
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	guest := &benchGuest{ctx: ctx, e: e, rim: rim, redis: newRedis(conn)}
	if guest.sh, err = login(ctx, e, rim); err != nil {
		b.Fatal(err)
	}
	b.Run("alone", guest.measure)
	if err := e.Do(ctx, func(m *machine.Machine) error { return acknowledged(b, e, m) }); err != nil {
		b.Fatal(err)
	}
	b.Run("recorded", guest.measure)
}

// live runs e beside the benchmark, for limit at most. stop ends it; it must not
// have ended by itself.
func live(b *testing.B, e *Engine, rim *testRim, limit time.Duration) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithTimeout(b.Context(), limit)
	ended := make(chan error, 1)
	go func() { ended <- e.Live(ctx) }()
	return ctx, func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			b.Errorf("the guest ended: %v\nconsole:\n%s", err, rim.tail())
		}
	}
}

// acknowledged makes e a primary whose log is acknowledged as it is written. As
// behind a seeding, all of the memory has been read by then: to look at a page for
// the first time costs the host a fault, and the window's first round isn't what
// its later ones are.
func acknowledged(b *testing.B, e *Engine, m *machine.Machine) error {
	for p := range m.Memory.Pages() {
		m.Memory.IsZero(p)
	}
	if err := m.LogDirty(true); err != nil {
		return err
	}
	err := e.Record(func(lsn uint64, batch []byte) {
		if err := e.Ack(lsn+uint64(len(batch)), lsn+uint64(len(batch))); err != nil {
			b.Error(err)
		}
	})
	if err != nil {
		return err
	}
	_, err = e.Gate(lockstep.Acked)
	return err
}

// benchGuest is a guest that runs.
type benchGuest struct {
	ctx   context.Context
	e     *Engine
	rim   *testRim
	redis *redis
	sh    func(command string) error
}

// readFiles has the guest read files that its memory no longer holds.
const readFiles = "echo 3 > /proc/sys/vm/drop_caches; cat /usr/bin/perl /usr/bin/redis-check-rdb /bin/systemctl"

// requests are what the benchmark asks the guest's Redis for, by name, and
// when it writes its log to the disk (appendfsync) meanwhile.
var requests = []struct {
	name, fsync string
	args        []string
}{
	{"GET", "no", []string{"GET", "bench"}},
	{"INCR", "no", []string{"INCR", "counter"}},
	{"SET-synced", "always", []string{"SET", "bench", "some sixteen bytes"}},
	{"SET-100KB", "no", []string{"SET", "large", strings.Repeat("0123456789abcdef", 100<<10/16)}},
}

func (g *benchGuest) measure(b *testing.B) {
	g.idle(b)
	g.ask(b, "SET", "bench", "some sixteen bytes")
	for _, r := range requests {
		g.ask(b, "CONFIG", "SET", "appendfsync", r.fsync)
		request := func() { g.ask(b, r.args...) }
		request()
		b.Run(r.name, func(b *testing.B) {
			g.tally(b, func() int {
				n := 0
				for b.Loop() {
					request()
					n++
				}
				return n
			})
		})
		fmt.Printf("exits of %s: %s\n", r.name, g.exits(b, 50, func() {
			for range 50 {
				request()
			}
		}))
	}
	g.read(b)
	b.Run("read-files", func(b *testing.B) {
		g.tally(b, func() int { // some are enough
			const n = 5
			for range n {
				if err := g.sh(readFiles); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
			}
			return n
		})
	})
}

// readsPerLoop makes the exits of the shell and of dd's start disappear among those
// of the reads.
const readsPerLoop = 200

// read measures a read of 4 KiB that goes to the disk.
func (g *benchGuest) read(b *testing.B) {
	dd := func(n int) {
		if err := g.sh(fmt.Sprintf("dd if=/dev/vda of=/dev/null iflag=direct bs=4k count=%d", n)); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("read-4K", func(b *testing.B) {
		g.tally(b, func() int {
			dd(readsPerLoop * b.N)
			return readsPerLoop * b.N
		})
	})
	const n = 5000
	fmt.Printf("exits of read-4K: %s\n", g.exits(b, n, func() { dd(n) }))
}

// settle is how many ticks of idleness it takes until what is counted has followed
// the load.
const settle = 1000

// idle measures a tick of a guest that has been idle for a while.
func (g *benchGuest) idle(b *testing.B) {
	tick := func() { // as long as a tick of the guest's
		select {
		case <-g.ctx.Done():
			b.Fatal(g.ctx.Err())
		case <-time.After(4 * time.Millisecond):
		}
	}
	for from := g.e.Stats.Ticks.Load(); g.e.Stats.Ticks.Load() < from+settle; {
		tick()
	}
	b.Run("idle-tick", func(b *testing.B) {
		g.tally(b, func() int {
			before := g.e.Stats.Ticks.Load()
			for b.Loop() {
				tick()
			}
			return int(g.e.Stats.Ticks.Load() - before)
		})
	})
}

// ask makes a request that must succeed.
func (g *benchGuest) ask(b *testing.B, args ...string) {
	b.Helper()
	if _, err := g.redis.do(args...); err != nil {
		b.Fatalf("%s: %v", args[0], err)
	}
}

// enoughReceived is from how many bytes that a piece of work receives on the log is
// put down to them.
const enoughReceived = 10 << 10

// tally runs f and reports what the host did meanwhile, for each of the n that
// f returns.
func (g *benchGuest) tally(b *testing.B, f func() int) {
	s := &g.e.Stats
	guest, all := g.threadTime(b), cpuTime(b, unix.RUSAGE_SELF)
	exits, ticks := s.Exits.Load(), s.Ticks.Load()
	log, resync, resyncs := s.LogBytes.Load(), s.ResyncBytes.Load(), s.Resyncs.Load()
	reads, refs, readLog, refLog := s.Reads.Load(), s.ReadRefs.Load(), s.ReadLogBytes.Load(), s.RefLogBytes.Load()
	received := g.rim.received.Load()
	n := float64(f())
	all = cpuTime(b, unix.RUSAGE_SELF) - all
	resync = s.ResyncBytes.Load() - resync
	b.ReportMetric(float64((g.threadTime(b)-guest).Nanoseconds())/n, "guest-ns/op")
	b.ReportMetric(float64(all.Nanoseconds())/n, "cpu-ns/op")
	b.ReportMetric(float64(s.Exits.Load()-exits)/n, "exits/op")
	b.ReportMetric(float64(s.Ticks.Load()-ticks)/n, "ticks/op")
	b.ReportMetric(float64(s.LogBytes.Load()-log-resync)/n, "log-B/op")
	b.ReportMetric(float64(resync)/n, "resync-B/op")
	if resyncs = s.Resyncs.Load() - resyncs; resyncs > 0 {
		b.ReportMetric(float64(resync)/float64(resyncs), "B/resync")
	}
	if reads = s.Reads.Load() - reads; reads > 0 {
		b.ReportMetric(float64(s.ReadLogBytes.Load()-readLog)/float64(reads), "log-B/read")
		b.ReportMetric(100*float64(s.ReadRefs.Load()-refs)/float64(reads), "%refs")
	}
	if refs = s.ReadRefs.Load() - refs; refs > 0 {
		b.ReportMetric(float64(s.RefLogBytes.Load()-refLog)/float64(refs), "log-B/ref")
	}
	if received = g.rim.received.Load() - received; float64(received)/n > enoughReceived {
		b.ReportMetric(float64(s.LogBytes.Load()-log-resync)/float64(received), "log-B/received-B")
	}
	b.ReportMetric(0, "ns/op") // time that passes says nothing here
}

// threadTime is what the thread that runs the guest has used.
func (g *benchGuest) threadTime(b *testing.B) (d time.Duration) {
	b.Helper()
	err := g.e.Do(g.ctx, func(*machine.Machine) error {
		d = cpuTime(b, unix.RUSAGE_THREAD)
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return d
}

// cpuTime is what this process, or the calling thread, has used, its guest
// included.
func cpuTime(b *testing.B, who int) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(who, &u); err != nil {
		b.Error(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// exits says what exits the guest makes while f makes n requests, by kind and
// place for each, the most frequent first, and how many ticks it gets meanwhile.
func (g *benchGuest) exits(b *testing.B, n int, f func()) string {
	b.Helper()
	seen := map[string]int{}
	trace := func(f func(machine.Step)) {
		err := g.e.Do(g.ctx, func(m *machine.Machine) error {
			m.Trace = f
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	trace(func(s machine.Step) { seen[exitName(s)]++ })
	ticks := g.e.Stats.Ticks.Load()
	f()
	ticks = g.e.Stats.Ticks.Load() - ticks
	trace(nil)
	names := slices.SortedFunc(maps.Keys(seen), func(x, y string) int { return seen[y] - seen[x] })
	var parts []string
	for _, name := range names {
		parts = append(parts, fmt.Sprintf("%s %.2f", name, float64(seen[name])/float64(n)))
	}
	return fmt.Sprintf("%s; ticks %.2f", strings.Join(parts, ", "), float64(ticks)/float64(n))
}

// exitName names an exit.
func exitName(s machine.Step) string {
	switch s.Reason {
	case kvm.ExitHLT:
		return "halt"
	case kvm.ExitIRQWindowOpen:
		return "interrupt window"
	case kvm.ExitTSC:
		return "time-stamp"
	case kvm.ExitTrap:
		return "trap"
	case kvm.ExitIO:
		return fmt.Sprintf("port %#x", s.Addr)
	case kvm.ExitMMIO:
		return fmt.Sprintf("memory %#x", s.Addr)
	}
	return fmt.Sprintf("reason %d at %#x", s.Reason, s.Addr)
}
