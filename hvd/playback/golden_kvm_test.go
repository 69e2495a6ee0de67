package playback

import (
	"bytes"
	"context"
	"embed"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/kvm/kvmtest"
	"github.com/duet-ft/duet/hvd/locate"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/recording"
	"github.com/duet-ft/duet/hvd/vm"
)

var update = flag.Bool("update", false, "record a tiny guest and print the recording")

//go:embed testdata/*.rec
var files embed.FS

// goldens are recordings of the tiny guest, named after the versions of format and
// log, and the digest that each replays to. One that this program doesn't execute
// any more must be refused, with the reason.
var goldens = map[string]uint64{
	"testdata/tiny-1-2.rec":   0xe7f67ceb9526cb6a,
	"testdata/tiny-1-3.rec":   0x74c99602565edd96,
	"testdata/points-1-4.rec": 0xa1d28f2f203a5a24,
	"testdata/tiny-1-4.rec":   0x722bbc777c642287,
	"testdata/points-1-5.rec": 0x432fd1f50bafed1a,
	"testdata/tiny-1-5.rec":   0x90172d93e4198466,
}

// tiny reads the time-stamp, stores it, counts down from 200,000 (at tinyRounds),
// makes an exit, and begins again.
var tiny = []byte{
	0x0f, 0x31, 0x89, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, 0x48, 0xff, 0x04, 0x25, 0x08,
	0x00, 0x20, 0x00, 0x48, 0x8b, 0x1c, 0x25, 0x08, 0x00, 0x20, 0x00, 0x81, 0xe3, 0xff,
	0x01, 0x00, 0x00, 0x48, 0x89, 0x04, 0xdd, 0x00, 0x10, 0x20, 0x00, 0xb9, 0x40, 0x0d,
	0x03, 0x00, 0xff, 0xc9, 0x75, 0xfc, 0x66, 0xba, 0x80, 0x00, 0xee, 0xeb, 0xc9,
}

const (
	tinyRounds = 40
	nop, sti   = 0x90, 0xfb
)

func tinyConfig() machine.Config {
	return machine.Config{
		MemoryBytes: 4 << 20,
		Board:       board.Config{Wall: time.Unix(0, 0).UTC(), NoNet: true, NoVsock: true},
		Traps:       kvm.FlagCR3 | kvm.FlagPF,
	}
}

// newTiny makes a machine that stands at the tiny guest's first instruction, in
// 64-bit mode with its memory mapped one to one; with points, the guest has
// interrupts on and counts down from 1,500 only, for each is a single step.
func newTiny(t *testing.T, sys *kvm.System, points bool) *machine.Machine {
	t.Helper()
	m, err := machine.New(sys, tinyConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	code := append([]byte{nop}, tiny...)
	if points {
		code[0] = sti
		binary.LittleEndian.PutUint32(code[1+tinyRounds:], 1500)
	}
	if err := m.Boot(kvmtest.Flat(t, m.Memory, kvmtest.Text-1, code)); err != nil {
		t.Fatal(err)
	}
	return m
}

// sink is a recording in memory.
type sink struct {
	bytes.Buffer
	w     *recording.Writer
	log   [][]byte
	end   recording.End
	ended chan struct{}
}

func (s *sink) Pages(pages []int, page func(int) []byte) error { return s.w.Pages(pages, page) }

func (s *sink) Snapshot(m *machine.Snapshot, base event.Base) error {
	b, err := json.Marshal(m)
	return errors.Join(err, s.w.State(base, b))
}

func (s *sink) Log(batch []byte) error {
	s.log = append(s.log, batch)
	return nil
}

func (s *sink) End(position, fingerprint uint64, why string) {
	s.end = recording.End{Position: position, Fingerprint: fingerprint, Why: why}
	close(s.ended)
}

type nowhere struct{}

func (nowhere) Effect(board.Effect) {}

// recordTiny records the tiny guest for some hundred exits, resyncs among them; or,
// with points, some dozen, points between two exits among them.
func recordTiny(t *testing.T, sys *kvm.System, points bool) []byte {
	t.Helper()
	m := newTiny(t, sys, points)
	cfg := vm.Config{Window: 2 * time.Millisecond, StopAfter: 4 * time.Millisecond, KickAfter: 10 * time.Millisecond}
	exits := uint64(300)
	if points {
		cfg.Locator.Method, exits = locate.ByStep, 40
	}
	e := vm.New(m, nowhere{}, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := e.Live(ctx); ctx.Err() == nil {
			t.Error("the guest ended: ", err)
			cancel()
		}
	}()
	cpu, err := machine.HostCPU(sys)
	if err != nil {
		t.Fatal(err)
	}
	made, err := json.Marshal(tinyConfig())
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{ended: make(chan struct{})}
	s.w, err = recording.NewWriter(&s.Buffer, recording.Head{
		VM: "tiny", Host: "test", CPU: cpu.Name, Leaves: cpu.Fingerprint, Memory: m.Memory.Size(), Machine: made,
	})
	if err != nil {
		t.Fatal(err)
	}
	stats, err := e.Tape(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", stats)
	until := e.Stats.Exits.Load() + exits
	for e.Stats.Exits.Load() < until && ctx.Err() == nil {
		runtime.Gosched()
		if points { // whoever wants to look has the guest kicked
			if err := e.Do(ctx, func(*machine.Machine) error { return nil }); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := e.EndTape(ctx, s, "enough"); err != nil {
		t.Fatal(err)
	}
	<-s.ended
	cancel()
	<-done
	for _, b := range s.log {
		if err := s.w.Log(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.w.End(s.end); err != nil {
		t.Fatal(err)
	}
	return s.Bytes()
}

// digestOf replays a recording and hashes what it ends with.
func digestOf(sys *kvm.System, b []byte) (uint64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, err := Open(sys, bytes.NewReader(b))
	if err != nil {
		return 0, err
	}
	defer p.Close()
	if err := p.To(context.Background(), ^uint64(0)); !errors.Is(err, ErrEnd) {
		return 0, err
	}
	if p.Damage() != nil {
		return 0, p.Damage()
	}
	m := p.Machine
	return xxh3.Hash(fmt.Appendf(nil, "%d %d %d", m.Position(), m.Fingerprint(), xxh3.Hash(m.Memory.Bytes()))), nil
}

// TestGolden replays recordings that were made once and are kept, for ever.
func TestGolden(t *testing.T) {
	sys := kvmtest.Open(t)
	if *update {
		for _, points := range []bool{false, true} {
			b := recordTiny(t, sys, points)
			d, err := digestOf(sys, b)
			fmt.Printf("GOLDEN %#x %v %s\n", d, err, base64.StdEncoding.EncodeToString(b))
		}
	}
	present := fmt.Sprintf("-%d-%d.rec", recording.Version, event.Version)
	for _, name := range []string{"testdata/tiny" + present, "testdata/points" + present} {
		if _, ok := goldens[name]; !ok {
			t.Errorf("there is no golden recording of the present versions: make one with -update, and add %s", name)
		}
	}
	for name, want := range goldens {
		b, err := files.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := digestOf(sys, b)
		switch {
		case errors.Is(err, ErrOtherCPU):
			t.Skipf("%s: %v", name, err)
		case !strings.HasSuffix(name, present) && errors.Is(err, recording.ErrFormat):
			t.Logf("%s is refused: %v", name, err)
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case got != want:
			t.Errorf("%s replays to %#x, want %#x", name, got, want)
		}
	}
}

// TestCountedPoints: a recording whose guest was stopped between two exits, at
// counted branches, replays.
func TestCountedPoints(t *testing.T) {
	sys := kvmtest.Open(t)
	b := recordTiny(t, sys, true)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, err := Open(sys, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var found [event.Kinds]int
	p.OnEntry = func(e event.Entry) { found[e.Kind]++ }
	if err := p.To(t.Context(), ^uint64(0)); !errors.Is(err, ErrEnd) {
		t.Fatal(err)
	}
	t.Logf("%d bytes, %d points, %d resyncs, %d fingerprints", len(b), found[event.Point], found[event.Resync], found[event.Mark])
	if found[event.Point] < 10 || found[event.Resync] != 0 {
		t.Errorf("%d points and %d resyncs, want some dozen and none", found[event.Point], found[event.Resync])
	}
}

// TestCut: a recording that was cut replays up to there, and says so.
func TestCut(t *testing.T) {
	sys := kvmtest.Open(t)
	b := recordTiny(t, sys, false)
	if _, err := digestOf(sys, b); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, err := Open(sys, bytes.NewReader(b[:len(b)-40]))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.To(t.Context(), ^uint64(0)); !errors.Is(err, ErrEnd) || !errors.Is(p.Damage(), recording.ErrDamaged) {
		t.Errorf("%v, %v", err, p.Damage())
	}
	if errors.Is(p.Damage(), lockstep.ErrDiverged) || p.Machine.Position() == p.Start && len(b) > 1<<20 {
		t.Errorf("nothing was replayed: position %d", p.Machine.Position())
	}
}
