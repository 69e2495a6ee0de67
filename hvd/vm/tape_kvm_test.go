package vm

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/kvm/kvmtest"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/playback"
	"github.com/duet-ft/duet/hvd/recording"
	"github.com/duet-ft/duet/hvd/recording/gdb"
)

// tapeFile is a TapeSink that writes a recording to a file.
type tapeFile struct {
	t *testing.T
	m *machine.Machine
	f *os.File
	w *recording.Writer

	mu     sync.Mutex
	queue  [][]byte
	end    *recording.End
	memory []byte   // a copy at the end
	hashes []uint64 // of its pages, without accessed bits
	ended  chan struct{}
}

func newTapeFile(t *testing.T, m *machine.Machine, made machine.Config) *tapeFile {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "tape"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	sys, err := kvm.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer sys.Close()
	cpu, err := machine.HostCPU(sys)
	if err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(made)
	if err != nil {
		t.Fatal(err)
	}
	w, err := recording.NewWriter(f, recording.Head{
		VM: "test", Host: "here", CPU: cpu.Name, Leaves: cpu.Fingerprint, Started: time.Now(),
		Memory: m.Memory.Size(), Machine: config,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &tapeFile{t: t, m: m, f: f, w: w, ended: make(chan struct{})}
}

func (s *tapeFile) Pages(pages []int, page func(int) []byte) error { return s.w.Pages(pages, page) }

func (s *tapeFile) Snapshot(snap *machine.Snapshot, base event.Base) error {
	b, err := json.Marshal(snap)
	if err != nil {
		return err
	}
	return s.w.State(base, b)
}

func (s *tapeFile) Log(batch []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue = append(s.queue, batch)
	return nil
}

func (s *tapeFile) End(position, fingerprint uint64, why string) {
	s.end = &recording.End{Position: position, Fingerprint: fingerprint, Why: why}
	s.memory = bytes.Clone(s.m.Memory.Bytes())
	for n := range s.m.Memory.Pages() {
		s.hashes = append(s.hashes, s.m.Memory.HashPage(n))
	}
	close(s.ended)
}

// compare looks for pages that differ from those that were recorded. Accessed bits
// of page tables may: see mem.HashPage.
func (s *tapeFile) compare(m *mem.Memory) {
	s.t.Helper()
	differ := 0
	for n, want := range s.hashes {
		page, was := m.Page(n), s.memory[n*mem.PageSize:(n+1)*mem.PageSize]
		if bytes.Equal(page, was) {
			continue
		}
		what := "has other accessed bits"
		if m.HashPage(n) != want {
			what = "differs"
			s.t.Errorf("page %#x differs", n)
		}
		for at := 0; at < mem.PageSize && differ < 8; at += 8 {
			if got, want := binary.LittleEndian.Uint64(page[at:]), binary.LittleEndian.Uint64(was[at:]); got != want {
				differ++
				s.t.Logf("page %#x %s: at %#x %#x, recorded was %#x", n, what, at, got, want)
			}
		}
	}
}

// finish writes what the log has become, and the end.
func (s *tapeFile) finish() {
	s.t.Helper()
	<-s.ended
	for _, b := range s.queue {
		if err := s.w.Log(b); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := s.w.End(*s.end); err != nil {
		s.t.Fatal(err)
	}
}

// tapeAWhile records the running guest from some ticks after its boot on, until
// more ticks and a resync have happened.
func tapeAWhile(ctx context.Context, t *testing.T, e *Engine, s *tapeFile, ticks uint64) error {
	for e.Stats.Ticks.Load() < ticks && ctx.Err() == nil {
		runtime.Gosched()
	}
	stats, err := e.Tape(ctx, s)
	if err != nil {
		return err
	}
	t.Logf("tape: %d pages in %d rounds and %v; the guest stood still for %v", stats.Pages, stats.Rounds, stats.Total, stats.Pause)
	if _, err := e.Tape(ctx, s); !errors.Is(err, ErrTaped) {
		t.Errorf("a second tape at once: %v", err)
	}
	resyncs := e.Stats.Resyncs.Load()
	for ticks = e.Stats.Ticks.Load() + 200; e.Stats.Ticks.Load() < ticks || e.Stats.Resyncs.Load() == resyncs; runtime.Gosched() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return e.EndTape(ctx, s, "enough")
}

// replayTape executes the recording again.
func replayTape(t *testing.T, s *tapeFile) {
	t.Helper()
	s.finish()
	size, _ := s.f.Seek(0, 2)
	if _, err := s.f.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	sys := kvmtest.Open(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, err := playback.Open(sys, s.f)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	begun := time.Now()
	if err := p.To(t.Context(), ^uint64(0)); !errors.Is(err, playback.ErrEnd) {
		t.Fatal(err)
	}
	if p.Damage() != nil || p.End() == nil {
		t.Fatalf("end %v, damage %v", p.End(), p.Damage())
	}
	m := p.Machine
	t.Logf("a recording of %d bytes, positions %d to %d, replayed in %v", size, p.Start, m.Position(), time.Since(begun))
	if m.Position() != s.end.Position || m.Fingerprint() != s.end.Fingerprint {
		t.Errorf("ended at exit %d with %x, recorded %d with %x", m.Position(), m.Fingerprint(), s.end.Position, s.end.Fingerprint)
	}
	s.compare(m.Memory)
	checkCore(t, p)
}

// checkCore writes a core and looks up in it what the registers say.
func checkCore(t *testing.T, p *playback.Player) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "core")
	if err := p.WriteCore(path); err != nil {
		t.Fatal(err)
	}
	core, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer core.Close()
	s, err := p.Machine.Registers()
	if err != nil {
		t.Fatal(err)
	}
	var want, got [16]byte
	if err := p.Machine.ReadVirtual(s.Regs.RSP&^15, want[:]); err != nil {
		t.Fatal(err)
	}
	for _, seg := range core.Progs {
		if at := s.Regs.RSP &^ 15; seg.Type == elf.PT_LOAD && at >= seg.Vaddr && at-seg.Vaddr < seg.Memsz {
			if _, err := seg.ReadAt(got[:], int64(at-seg.Vaddr)); err != nil || got != want {
				t.Errorf("the core has %x on the stack (%v), the guest %x", got, err, want)
			}
			t.Logf("a core of %d segments", len(core.Progs))
			return
		}
	}
	t.Errorf("the core doesn't have the stack at %#x, in %d segments", s.Regs.RSP, len(core.Progs))
}

// debugTape goes through the recording as a debugger does. What it steps through
// from the beginning to the end must leave no trace.
func debugTape(t *testing.T, s *tapeFile) {
	t.Helper()
	if _, err := s.f.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	sys := kvmtest.Open(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, err := playback.Open(sys, s.f)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	d, err := playback.NewDebugger(t.Context(), p, ^uint64(0))
	if err != nil {
		t.Fatal(err)
	}
	regs := func() string {
		t.Helper()
		b, err := d.Registers()
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	rip := func(regs string) uint64 { return binary.LittleEndian.Uint64([]byte(regs[16*8:])) }
	const places, steps = 20, 150
	apart := max(1, (s.end.Position-p.Start)/places)
	begun := time.Now()
	stepped, wentBack, crossed := 0, 0, 0
	for place := range places {
		trail, exits := []string{regs()}, []bool{true}
		for range steps {
			if stop := d.Step(); stop.Why != gdb.Stepped {
				t.Fatalf("at %s: %+v", d.Monitor("position"), stop)
			}
			trail = append(trail, regs())
			exits = append(exits, !strings.Contains(d.Monitor("position"), " instructions on"))
			stepped++
		}
		// Programs can't have breakpoints everywhere; the kernel can.
		if place >= places/2 && wentBack == 0 && d.Breakable(rip(trail[steps])) && d.Breakable(rip(trail[steps-40])) {
			wentBack++
			backAndForth(t, d, trail, exits, regs, rip)
		}
		t.Log(d.Monitor("position"))
		d.Monitor(fmt.Sprint("run ", apart))
		if place >= places/2 && crossed == 0 && d.Breakable(rip(regs())) {
			crossed++
			acrossExit(t, d, regs)
		}
	}
	if wentBack == 0 || crossed == 0 {
		t.Error("the guest was in a program at each place: nothing was taken back")
	}
	t.Logf("%d steps and a replay in %v; %s", stepped, time.Since(begun), d.Monitor("checkpoints"))
	if stop := d.Continue(nil); stop.Why != gdb.AtEnd {
		t.Fatalf("to the end: %+v", stop)
	}
	if p.Machine.Position() != s.end.Position || p.Machine.Fingerprint() != s.end.Fingerprint {
		t.Errorf("ended at exit %d with %x, recorded %d with %x",
			p.Machine.Position(), p.Machine.Fingerprint(), s.end.Position, s.end.Fingerprint)
	}
	s.compare(p.Machine.Memory)
	if stop := d.ReverseContinue(nil); stop.Why != gdb.AtBegin {
		t.Errorf("to the beginning: %+v", stop)
	}
	t.Logf("back at %s after %v", d.Monitor("position"), time.Since(begun))
}

// acrossExit takes an exit back, and makes it again.
func acrossExit(t *testing.T, d *playback.Debugger, regs func() string) {
	t.Helper()
	was, where := regs(), d.Monitor("position")
	begun := time.Now()
	if stop := d.ReverseStep(); stop.Why != gdb.Stepped || d.Monitor("position") == where {
		t.Fatalf("back from %s: %+v at %s", where, stop, d.Monitor("position"))
	}
	t.Logf("from %s back to %s in %v", where, d.Monitor("position"), time.Since(begun))
	if stop := d.Step(); stop.Why != gdb.Stepped || regs() != was || d.Monitor("position") != where {
		t.Fatalf("forth again: %+v at %s, was %s", stop, d.Monitor("position"), where)
	}
}

// backAndForth goes back over the trail's instructions and forth again by
// breakpoints. exits says which places of the trail are behind an exit, before
// any other instruction.
func backAndForth(t *testing.T, d *playback.Debugger, trail []string, exits []bool, regs func() string, rip func(string) uint64) {
	t.Helper()
	here := len(trail) - 1
	for range 5 {
		if stop := d.ReverseStep(); stop.Why != gdb.Stepped {
			t.Fatalf("back: %+v", stop)
		}
		if here--; regs() != trail[here] {
			t.Fatalf("%d instructions back, at %s, the registers differ: RIP is %#x, was %#x",
				len(trail)-1-here, d.Monitor("position"), rip(regs()), rip(trail[here]))
		}
	}
	for range 5 {
		d.Step()
		here++
	}
	if regs() != trail[here] {
		t.Fatal("forth again, the registers differ")
	}
	// The last time that the trail came to an address; each round of a repeated
	// instruction is one, the place behind an exit is none.
	address := rip(trail[here-40])
	for at := here - 1; at >= here-60; at-- {
		if rip(trail[at]) != address || exits[at] {
			continue
		}
		if stop := d.ReverseContinue([]uint64{address}); stop.Why != gdb.AtBreak || regs() != trail[at] {
			t.Fatalf("back to %#x: %+v at %s, RIP %#x", address, stop, d.Monitor("position"), rip(regs()))
		}
		break
	}
	if stop := d.Continue([]uint64{rip(trail[here])}); stop.Why != gdb.AtBreak {
		t.Fatalf("forth to %#x: %+v", rip(trail[here]), stop)
	}
}

// TestTapeOfPrimary records a machine that has a secondary: the recording replays,
// and so does the secondary's log, as if nobody had looked.
func TestTapeOfPrimary(t *testing.T) {
	var tape *tapeFile
	recordReplay(t, tcgConfig(), func(ctx context.Context, _ *testRim, e *Engine) error {
		tape = newTapeFile(t, e.m, guestConfig(t))
		return tapeAWhile(ctx, t, e, tape, 20)
	})
	if !t.Failed() {
		replayTape(t, tape)
	}
}

// userTicks is when the guest has come to run programs.
const userTicks = 3000

// TestTapeAlone records a machine that runs alone, from its boot to some time
// later.
func TestTapeAlone(t *testing.T) {
	sys := kvmtest.Open(t)
	m := bootDebian(t, sys)
	rim := newTestRim(t)
	e := New(m, rim, tcgConfig())
	rim.engine = e
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- e.Live(ctx) }()
	tape := newTapeFile(t, m, guestConfig(t))
	if err := tapeAWhile(ctx, t, e, tape, userTicks); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-ended
	rim.disk.Close()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	replayTape(t, tape)
	if !t.Failed() {
		debugTape(t, tape)
	}
}
