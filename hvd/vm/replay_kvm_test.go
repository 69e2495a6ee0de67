package vm

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/boot"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/kvm/kvmtest"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/trapset"
)

var loud = flag.Bool("loud", false, "let the guest's kernel print all it has to say")

// guestDisk is where image/boottest puts a guest's disk.
const guestDisk = "/dev/vda"

const guestMemory = 384 << 20

var guestMAC = [6]byte{0x52, 0x54, 0, 0xd0, 0xe7, 1}

func tcgConfig() Config {
	// Under emulation everything takes some twenty times longer.
	return Config{
		Window: 2 * time.Millisecond, StopAfter: 4 * time.Millisecond, KickAfter: 20 * time.Millisecond,
		Costs: trapset.Costs{Trap: 20 * time.Microsecond, Resync: 5 * time.Millisecond, KB: 50 * time.Microsecond},
	}
}

// guestConfig is the machine that a guest boots on.
func guestConfig(t testing.TB) machine.Config {
	t.Helper()
	disk, err := os.Open(guestDisk)
	if err != nil {
		t.Skip("needs a guest's disk at ", guestDisk)
	}
	defer disk.Close()
	size, err := disk.Seek(0, 2)
	if err != nil {
		t.Fatal(err)
	}
	return machine.Config{
		MemoryBytes: guestMemory,
		Board: board.Config{
			Disks: []board.Disk{{Sectors: uint64(size / 512), Serial: "guest"}},
			MAC:   guestMAC, CID: 3, Wall: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		},
		Traps: trapset.Initial,
	}
}

// bootDebian makes a machine that stands at the first instruction of the
// guest's kernel. The seed makes two of them equal.
func bootDebian(t testing.TB, sys *kvm.System) *machine.Machine {
	t.Helper()
	cfg := guestConfig(t)
	image, err := soakImage(*soakKernel)
	if err != nil {
		t.Fatal(err)
	}
	m, err := machine.New(sys, cfg)
	if err != nil {
		t.Fatal(err)
	}
	entry, err := boot.Load(m.Memory, image, boot.Options{Seed: [32]byte{1, 2, 3}, Quiet: !*loud})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Boot(entry); err != nil {
		t.Fatal(err)
	}
	return m
}

// final is all there is to compare at the end of two executions.
type final struct {
	position, fingerprint, memory uint64
	state                         []byte
	pages                         []uint64
}

func finalOf(t *testing.T, m *machine.Machine) final {
	t.Helper()
	s, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	f := final{
		position: s.Position, fingerprint: s.Fingerprint, memory: xxh3.Hash(m.Memory.Bytes()),
		state: fmt.Appendf(nil, "%x %+v %s", s.CPU, s.Counters, s.Board),
	}
	for p := range m.Memory.Pages() {
		f.pages = append(f.pages, xxh3.Hash(m.Memory.Page(p)))
	}
	return f
}

// TestEarlyReplay records the first stretch of a boot, up to some resyncs, and
// replays it: the quick form of TestRecordReplay.
func TestEarlyReplay(t *testing.T) {
	recordReplay(t, tcgConfig(), early)
}

// early is a workload: the first ticks of a boot that find no exit.
func early(ctx context.Context, _ *testRim, e *Engine) error {
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for e.Stats.AtTrap.Load()+e.Stats.AtResync.Load() < 40 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-look.C:
		}
	}
	return nil
}

// TestEarlyReplayOfEachSet is TestEarlyReplay with each kind of traps for good,
// with none and with all.
func TestEarlyReplayOfEachSet(t *testing.T) {
	for _, set := range []uint64{0, kvm.FlagCR3, kvm.FlagPF, kvm.FlagSyscall, kvm.FlagWrite, kvm.Counted} {
		t.Run(strings.Join(append(TrapNames(set), "time"), "+"), func(t *testing.T) {
			cfg := tcgConfig()
			cfg.Choose = func(l trapset.Load) (trapset.Choice, bool) {
				c := trapset.Choice{Set: set, Every: 4}
				return c, l.Set != c.Set || l.Every != c.Every
			}
			recordReplay(t, cfg, early)
		})
	}
}

// changing chooses another set and another time between two harvests whenever
// it is asked.
func changing(seed uint64) func(trapset.Load) (trapset.Choice, bool) {
	r := rand.New(rand.NewPCG(seed, 0))
	return func(trapset.Load) (trapset.Choice, bool) {
		return trapset.Choice{Set: r.Uint64() & kvm.Counted, Every: 1 + r.Uint64N(8)}, true
	}
}

// TestRecordReplayOfChangingSets is TestRecordReplay with the set of traps
// changing at random positions.
func TestRecordReplayOfChangingSets(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	cfg := tcgConfig()
	cfg.Choose = changing(seed)
	recordReplay(t, cfg, func(ctx context.Context, rim *testRim, _ *Engine) error { return serve(ctx, rim.guest) })
}

// TestRecordReplay records an unmodified Debian from its first instruction to
// a Redis that serves, and replays the log twice on other machines: every
// fingerprint, the final memory, registers and devices are equal. What the guest
// costs meanwhile is within the goals.
func TestRecordReplay(t *testing.T) {
	recordReplay(t, tcgConfig(), func(ctx context.Context, rim *testRim, e *Engine) error {
		if err := serve(ctx, rim.guest); err != nil {
			return err
		}
		return withinGoals(ctx, rim, e)
	})
}

// recordReplay records a boot until the workload returns.
func recordReplay(t *testing.T, cfg Config, workload func(context.Context, *testRim, *Engine) error) {
	sys := kvmtest.Open(t)
	m := bootDebian(t, sys)
	rim := newTestRim(t)
	e := New(m, rim, cfg)
	rim.engine = e
	base := m.Base()
	var log bytes.Buffer
	startLog(t, e, m, &log)
	rim.openNetwork(t)
	var steps []machine.Step
	m.Trace = func(s machine.Step) {
		if len(steps) < maxSteps {
			steps = append(steps, s)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	begun := time.Now()
	go func() { ended <- e.Live(ctx) }()
	go progress(ctx, e)
	served := make(chan error, 1)
	go func() { served <- workload(ctx, rim, e) }()
	select {
	case err := <-served:
		if err != nil {
			t.Errorf("the workload: %v\nconsole:\n%s", err, rim.tail())
		}
	case err := <-ended:
		t.Fatalf("the guest ended: %v\nconsole:\n%s", err, rim.tail())
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatalf("the guest ended: %v\nconsole:\n%s", err, rim.tail())
	}
	if err := e.flush(time.Now(), true); err != nil {
		t.Fatal(err)
	}
	report(t, "record", e, time.Since(begun))
	if t.Failed() {
		return
	}
	want := finalOf(t, m)
	rim.close()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	for n := range 2 {
		replay(t, sys, base, log.Bytes(), want, steps, n)
	}
}

// startLog makes e a primary whose log goes to a buffer that acknowledges all
// it gets.
func startLog(t testing.TB, e *Engine, m *machine.Machine, log *bytes.Buffer) {
	t.Helper()
	if err := m.LogDirty(true); err != nil {
		t.Fatal(err)
	}
	err := e.Record(func(lsn uint64, batch []byte) {
		log.Write(batch)
		if err := e.Ack(lsn+uint64(len(batch)), lsn+uint64(len(batch))); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Gate(lockstep.Acked); err != nil {
		t.Fatal(err)
	}
}

func replay(t *testing.T, sys *kvm.System, base event.Base, log []byte, want final, steps []machine.Step, n int) {
	t.Helper()
	m := bootDebian(t, sys)
	defer m.Close()
	if err := m.Track(); err != nil {
		t.Fatal(err)
	}
	e := New(m, discard{}, tcgConfig())
	m.Trace = comparer(t, steps)
	if err := e.Feed(0, log); err != nil {
		t.Fatal(err)
	}
	e.Consume()
	begun := time.Now()
	var verified uint64
	if err := e.Replay(t.Context(), base, func(_, v uint64) { verified = v }); err != nil {
		t.Fatalf("replay %d: %v", n, err)
	}
	report(t, fmt.Sprint("replay ", n), e, time.Since(begun))
	if verified != uint64(len(log)) {
		t.Errorf("replay %d: verified up to LSN %d of %d", n, verified, len(log))
	}
	got := finalOf(t, m)
	if got.position != want.position || got.fingerprint != want.fingerprint {
		t.Errorf("replay %d: ended at exit %d with %x, recorded %d with %x",
			n, got.position, got.fingerprint, want.position, want.fingerprint)
	}
	if !bytes.Equal(got.state, want.state) {
		t.Errorf("replay %d: CPU or device state differs\n got %s\nwant %s", n, got.state, want.state)
	}
	if got.memory != want.memory {
		differ := 0
		for p := range got.pages {
			if got.pages[p] != want.pages[p] {
				if differ++; differ <= 8 {
					t.Logf("page %#x differs", p)
				}
			}
		}
		t.Errorf("replay %d: %d pages of memory differ", n, differ)
	}
}

// progress prints where a long run is, for whoever waits for it.
func progress(ctx context.Context, e *Engine) {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := e.Do(ctx, func(m *machine.Machine) error {
			deadline, armed := m.Deadline()
			fmt.Printf("progress: exit %d, clock %.3f s, real %.3f s, deadline %.3f %t, %d ticks, %d resyncs, log %d, by reason %v, pending %t\n",
				m.Position(), float64(m.Clock())/1e9, float64(e.clock.now())/1e9, float64(deadline)/1e9, armed, e.Stats.Ticks.Load(), e.Stats.Resyncs.Load(), e.Stats.LogBytes.Load(), m.Exits, m.Board.Pending())
			return nil
		})
		if err != nil {
			return
		}
	}
}

// maxSteps bounds the exits that are kept for the comparison.
const maxSteps = 1 << 20

// comparer reports the first exits of a replay that differ from the recorded
// ones, with what came before.
func comparer(t *testing.T, want []machine.Step) func(machine.Step) {
	n, bad := 0, 0
	return func(got machine.Step) {
		if n < len(want) && got != want[n] && bad < 3 {
			bad++
			for i := max(0, n-3); i < n; i++ {
				t.Logf("equal    %+v", want[i])
			}
			t.Errorf("recorded %+v", want[n])
			t.Errorf("replayed %+v", got)
		}
		n++
	}
}

type discard struct{}

func (discard) Effect(board.Effect) {}

func report(t *testing.T, what string, e *Engine, took time.Duration) {
	t.Helper()
	s := &e.Stats
	t.Logf("%s: %.1fs, %d exits, %d ticks, %.1f exits/tick, %d inputs, %d resyncs (%d bytes), log %d bytes",
		what, took.Seconds(), s.Exits.Load(), s.Ticks.Load(), float64(s.Exits.Load())/float64(max(1, s.Ticks.Load())),
		s.Inputs.Load(), s.Resyncs.Load(), s.ResyncBytes.Load(), s.LogBytes.Load())
	t.Logf("%s: exits by reason: %v, traps by kind %v", what, e.m.Exits, e.m.Counted())
	if e.primary != nil {
		t.Logf("%s: inputs at exits %d, traps %d (by kind %v), resyncs %d; %d bytes a resync; set %v, harvest each %d ticks", what,
			s.AtExit.Load(), s.AtTrap.Load(), s.byTrap, s.AtResync.Load(), s.ResyncBytes.Load()/max(1, s.Resyncs.Load()),
			TrapNames(e.m.Traps()), e.m.HarvestEvery())
	}
	if e.primary != nil {
		t.Logf("%s: log entries by kind %v, bytes %v", what, e.primary.Log.Entries, e.primary.Log.Bytes)
	}
}

// serve waits for the guest's Redis, writes and reads back.
func serve(ctx context.Context, guest string) error {
	var conn net.Conn
	for {
		var err error
		d := net.Dialer{Timeout: 2 * time.Second}
		if conn, err = d.DialContext(ctx, "tcp", guest+":6379"); err == nil {
			break
		}
		if ctx.Err() != nil {
			return fmt.Errorf("redis never answered: %w", err)
		}
	}
	defer conn.Close()
	r := newRedis(conn)
	for i := range 100 {
		want := strings.Repeat(fmt.Sprint(i, " "), 100)
		if got, err := r.do("SET", fmt.Sprint("k", i), want); err != nil || got != "OK" {
			return fmt.Errorf("SET: %q, %w", got, err)
		}
		if got, err := r.do("GET", fmt.Sprint("k", i)); err != nil || got != want {
			return fmt.Errorf("GET: %q, %w", got, err)
		}
	}
	return nil
}
