package vm

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/kvm/kvmtest"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/trapset"
)

// workloads are what a shell in the guest is told to do: each is a kind of
// load that finds its positions in another way.
var workloads = []struct{ name, command string }{
	{"fork", "i=0; while [ $i -lt 100 ]; do /bin/true; i=$((i+1)); done"},
	{"allocator", `perl -e 'for (1..60) { $x = "a" x 4000000; undef $x }'`},
	{"sha256", "sha256sum /usr/lib/x86_64-linux-gnu/libc.so.6 /usr/bin/perl /usr/bin/redis-check-rdb /bin/systemctl"},
	{"syscall", "dd if=/dev/zero of=/dev/null bs=1 count=60000"},
	{"cpu", "perl -e 'for ($i = 0; $i < 4000000; $i++) { }'"},
}

// sets are what the benchmark has counted; the last follows the load.
var sets = []struct {
	name string
	set  uint64
}{
	{"none", 0},
	{"cr3", kvm.FlagCR3},
	{"cr3+pf", kvm.FlagCR3 | kvm.FlagPF},
	{"write", kvm.FlagWrite},
	{"cr3+pf+write", kvm.FlagCR3 | kvm.FlagPF | kvm.FlagWrite},
	{"all", kvm.Counted},
	{"chosen", follow},
}

const follow = ^uint64(0)

// BenchmarkTraps measures, on one recorded guest, what each set of traps makes
// of each workload: the share of inputs by locator, the size of resyncs, and the
// host's CPU time for the same work, the guest's included. "boot" comes first,
// with the set that follows the load.
func BenchmarkTraps(b *testing.B) {
	sys := kvmtest.Open(b)
	m := bootDebian(b, sys)
	defer m.Close()
	var forced atomic.Uint64
	forced.Store(follow)
	cfg := tcgConfig()
	chooser := trapset.New(m.Countable(), cfg.Costs)
	cfg.Choose = func(l trapset.Load) (trapset.Choice, bool) {
		if set := forced.Load(); set != follow {
			c := trapset.Choice{Set: set, Every: 16}
			return c, c != trapset.Choice{Set: l.Set, Every: l.Every}
		}
		return chooser.Next(l)
	}
	rim := newTestRim(b)
	e := New(m, rim, cfg)
	rim.engine = e
	rim.openNetwork(b)
	defer rim.close()
	if err := acknowledged(b, e, m); err != nil {
		b.Fatal(err)
	}
	ctx, stop := live(b, e, rim, 25*time.Minute)
	defer stop()
	b.Run("boot", func(b *testing.B) {
		locators(b, e, func() {
			if err := serve(ctx, rim.guest); err != nil {
				b.Fatal(err)
			}
		})
	})
	sh, err := login(ctx, e, rim)
	if err != nil {
		b.Fatalf("log in to the guest: %v\nconsole:\n%s", err, rim.tail())
	}
	for _, w := range workloads {
		for _, s := range sets {
			b.Run(w.name+"/"+s.name, func(b *testing.B) {
				forced.Store(s.set)
				if err := sh("true"); err != nil {
					b.Fatal(err)
				}
				locators(b, e, func() {
					if err := sh(w.command); err != nil {
						b.Fatal(err)
					}
				})
			})
		}
	}
}

// locators runs f and reports, for each run, where its inputs were placed.
func locators(b *testing.B, e *Engine, f func()) {
	s := &e.Stats
	read := func() [6]float64 {
		var traps uint64
		err := e.Do(b.Context(), func(m *machine.Machine) error {
			for kind, n := range m.Counted() {
				if kind != kvm.KindTSC && kind != kvm.KindHidden {
					traps += n
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
		return [...]float64{
			float64(s.AtExit.Load()), float64(s.AtTrap.Load()), float64(s.AtResync.Load()),
			float64(s.Resyncs.Load()), float64(s.ResyncBytes.Load()), float64(traps),
		}
	}
	before, cpu, n := read(), cpuTime(b, unix.RUSAGE_SELF), 0.0
	for b.Loop() {
		f()
		n++
	}
	cpu = cpuTime(b, unix.RUSAGE_SELF) - cpu
	after := read()
	for i := range after {
		after[i] = (after[i] - before[i]) / n
	}
	all := max(1/n, after[0]+after[1]+after[2]) / 100
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(after[0]/all, "%exit")
	b.ReportMetric(after[1]/all, "%trap")
	b.ReportMetric(after[2]/all, "%resync")
	b.ReportMetric(after[3], "resyncs")
	b.ReportMetric(after[4]/max(1/n, after[3]), "B/resync")
	b.ReportMetric(after[4]/1e6, "resync-MB")
	b.ReportMetric(after[5], "traps")
	b.ReportMetric(float64(cpu.Milliseconds())/n, "cpu-ms")
}

// login gives a shell on the guest's serial console: it runs a command and
// waits for its end.
func login(ctx context.Context, e *Engine, rim *testRim) (func(command string) error, error) {
	say := func(line string) { e.Input(event.Entry{Kind: event.Console, Data: []byte(line + "\r")}) }
	if err := rim.expect(ctx, 0, "login: "); err != nil {
		return nil, err
	}
	// What is typed while the prompt is being made is thrown away.
	for asked := false; !asked; {
		from := rim.printed()
		say("root")
		try, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := rim.expect(try, from, "assword: ")
		cancel()
		if ctx.Err() != nil {
			return nil, err
		}
		asked = err == nil
	}
	for _, x := range [][2]string{{"duet", "# "}, {"stty -echo", "# "}, {"PS1=", ""}} {
		from := rim.printed()
		say(x[0])
		if err := rim.expect(ctx, from, x[1]); err != nil {
			return nil, err
		}
	}
	n := 0
	return func(command string) error {
		n++
		from, done, failed := rim.printed(), fmt.Sprintf("end-%d-ok", n), fmt.Sprintf("end-%d-bad", n)
		// The quotes keep an echo of the command from looking like its end.
		say(fmt.Sprintf("( %s ) >/dev/null 2>/tmp/said && echo end-%d-''ok || { tail -n 3 /tmp/said; echo end-%d-''bad; }", command, n, n))
		if err := rim.expect(ctx, from, done, failed); err != nil {
			return err
		}
		rim.mu.Lock()
		defer rim.mu.Unlock()
		if said := string(rim.console[from:]); strings.Contains(said, failed) {
			return fmt.Errorf("%s failed: %s", command, said)
		}
		return nil
	}, nil
}

func (r *testRim) printed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.console)
}

// expect waits until the console has said one of some things behind a place.
func (r *testRim) expect(ctx context.Context, from int, what ...string) error {
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for {
		r.mu.Lock()
		said := string(r.console[from:])
		r.mu.Unlock()
		if slices.ContainsFunc(what, func(s string) bool { return strings.Contains(said, s) }) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the console never said %q: %w", what, ctx.Err())
		case <-look.C:
		}
	}
}
