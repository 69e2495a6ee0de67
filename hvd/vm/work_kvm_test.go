package vm

import (
	"errors"
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/kvm/kvmtest"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/trapset"
)

// tasks are what BenchmarkWork has a guest do: scripts of image/workload, and a
// program that Redis runs, which hashes and allocates.
var tasks = []struct{ name, command string }{
	{"cpu", "/var/tmp/prime 1000000"},
	{"go", "/soak/spin 300"},
	{"compile", "/soak/compile"},
	{"redis", "/soak/redis"},
	{"lua", "redis-cli eval \"" + compute + "\" 1 " + computeRounds},
}

// compute has Redis do as many rounds of SHA-1 as KEYS says. It makes no exit by
// itself.
const compute = "local h = '' for i = 1, tonumber(KEYS[1]) do h = redis.sha1hex(h) end return h"

// computeRounds are some milliseconds.
const computeRounds = "20000"

var counted = flag.Bool("counted", false, "time is instructions, one a nanosecond (image/bench)")

// benchConfig is tcgConfig with what things cost where time is instructions: that
// is far less than under emulation.
func benchConfig() Config {
	c := tcgConfig()
	if *counted {
		c.Costs = trapset.Costs{Trap: 3 * time.Microsecond, Resync: 300 * time.Microsecond, KB: 20 * time.Microsecond}
	}
	return c
}

// BenchmarkWork is BenchmarkGuest for work that a guest does by itself: it needs
// the guest of image/workload.
func BenchmarkWork(b *testing.B) {
	sys := kvmtest.Open(b)
	m := bootDebian(b, sys)
	defer m.Close()
	rim := newTestRim(b)
	e := New(m, rim, benchConfig())
	rim.engine = e
	rim.openNetwork(b)
	defer rim.close()
	ctx, stop := live(b, e, rim, 25*time.Minute)
	defer stop()
	sh, err := login(ctx, e, rim)
	if err == nil {
		err = errors.Join(serve(ctx, rim.guest), sh("/soak/prepare"))
	}
	if err != nil {
		b.Fatalf("prepare the guest: %v\nconsole:\n%s", err, rim.tail())
	}
	guest := &worker{benchGuest{ctx: ctx, e: e}, sh}
	b.Run("alone", guest.measure)
	if err := e.Do(ctx, func(m *machine.Machine) error { return acknowledged(b, e, m) }); err != nil {
		b.Fatal(err)
	}
	b.Run("recorded", guest.measure)
}

// worker is a guest with a shell.
type worker struct {
	benchGuest
	sh func(command string) error
}

func (w *worker) measure(b *testing.B) {
	for _, t := range tasks {
		var behind string
		b.Run(t.name, func(b *testing.B) {
			work := func() {
				if err := w.sh(t.command); err != nil {
					b.Fatalf("%s: %v", t.name, err)
				}
			}
			work() // once for what it reads from the disk, and for the choice of what is counted
			before, n := w.hidden(b), 0
			w.tally(b, func() int {
				for b.Loop() {
					work()
					n++
				}
				return n
			})
			behind = w.hidden(b).since(before, n)
		})
		if behind != "" {
			fmt.Printf("behind %s: %s\n", b.Name()+"/"+t.name, behind)
		}
	}
}

// hidden is what a guest makes its host do beside counted exits.
type hidden struct {
	exits             [kvm.ExitTrap + 1]uint64 // by KVM's reason
	traps             [kvm.Kinds]uint64
	harvests, resyncs uint64
	atExit, atTrap    uint64
	atResync, every   uint64
	set               uint64
}

func (w *worker) hidden(b *testing.B) (h hidden) {
	b.Helper()
	err := w.e.Do(w.ctx, func(m *machine.Machine) error {
		s := &w.e.Stats
		h = hidden{
			m.Exits, m.Counted(), m.Harvests(), s.Resyncs.Load(),
			s.AtExit.Load(), s.AtTrap.Load(), s.AtResync.Load(), m.HarvestEvery(), m.Traps(),
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return h
}

// since says what has come since before, for each of n.
func (h hidden) since(before hidden, n int) string {
	var parts []string
	add := func(name string, now, then uint64) {
		if now != then {
			parts = append(parts, fmt.Sprintf("%s %.1f", name, float64(now-then)/float64(n)))
		}
	}
	for _, x := range []struct {
		reason int
		name   string
	}{
		{kvm.ExitIO, "ports"},
		{kvm.ExitMMIO, "device memory"},
		{kvm.ExitHLT, "halts"},
		{kvm.ExitIRQWindowOpen, "windows"},
		{kvm.ExitTSC, "anchors"},
		{kvm.ExitTrap, "stops"},
	} {
		add(x.name, h.exits[x.reason], before.exits[x.reason])
	}
	for kind, name := range []string{"CR3", "page faults", "time-stamps", "hidden", "SYSCALL", "SYSRET", "first writes"} {
		add(name, h.traps[kind], before.traps[kind])
	}
	add("harvests", h.harvests, before.harvests)
	add("resyncs", h.resyncs, before.resyncs)
	add("inputs at exits", h.atExit, before.atExit)
	add("at traps", h.atTrap, before.atTrap)
	add("at resyncs", h.atResync, before.atResync)
	return strings.Join(append(parts, fmt.Sprintf("set %v, a harvest each %d ticks", TrapNames(h.set), h.every)), ", ")
}
