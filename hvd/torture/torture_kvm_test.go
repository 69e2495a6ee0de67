package torture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/kvm/kvmtest"
	"github.com/duet-ft/duet/hvd/locate"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/mem"
)

var (
	full  = flag.Bool("torture.full", false, "one run for each exit or trap and action, and each instruction")
	every = flag.Uint64("torture.every", 8, "without torture.full: a run acts at each one in so many places")
	apart = flag.Uint64("torture.apart", 16, "with torture.full, a run acts at each one in so many instructions")
)

// maxInputs bounds the attacks on a run: a guest that gets an input at each exit
// of the handler of the last one would never end.
const maxInputs = 3000

// maxPosition is where a run that doesn't end is given up.
const maxPosition = 200_000

// host is what the runs of a test share.
type host struct {
	sys   *kvm.System
	alone *outcome // the run without attacks
	rng   *rand.Rand
}

func newHost(t testing.TB) *host {
	t.Helper()
	return &host{sys: kvmtest.Open(t), rng: rand.New(rand.NewPCG(1, 1))}
}

// machine makes one that stands at the guest's first instruction.
func (h *host) machine(t testing.TB) *machine.Machine {
	t.Helper()
	m, err := machine.New(h.sys, machine.Config{
		MemoryBytes: MemoryBytes,
		Board:       board.Config{MAC: [6]byte{2}, NoVsock: true, Wall: time.Unix(0, 0)},
		Traps:       kvm.FlagCR3 | kvm.FlagPF,
	})
	if err != nil {
		t.Fatal(err)
	}
	entry, err := Load(m.Memory)
	if err == nil {
		err = m.Boot(entry)
	}
	if err == nil {
		err = m.Locate(locate.Locator{
			Method: locate.ByStep, Event: locate.Event{Skid: skid}, Late: func() uint64 { return h.rng.Uint64N(skid + 1) },
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// skid is by how many branches the overflow of an emulated counter comes late.
const skid = 20

// walker is a machine that a plan stops between two instructions.
type walker struct {
	*machine.Machine
	plan  *Plan
	exits *uint64 // the guest's own, so far
	at    uint64  // instructions walked
	acted bool    // at this one
	limit *int    // attacks so far
	last  uint64  // the exit behind which it walked last
	here  int     // attacks behind that one
}

// enough says that there were as many attacks behind the last exit as may be.
func (w *walker) enough() bool {
	if w.last != *w.exits {
		w.last, w.here = *w.exits, 0
	}
	return w.here >= w.plan.Most
}

// Run ends as Pointed or Async where the plan acts.
func (w *walker) Run(stop uint64) (lockstep.Exit, error) {
	if w.plan.Place < Points || !w.plan.Walks(*w.exits) || *w.limit == maxInputs || w.enough() {
		return w.Machine.Run(stop)
	}
	for {
		if w.plan.At(w.at) && !w.acted {
			w.acted = true
			if w.plan.Place == Kicks {
				w.here++
				return lockstep.Exit{Kind: lockstep.Async}, nil
			}
			if exit, err := w.PointHere(0); err != nil || exit.Kind != lockstep.Async {
				w.here++
				return exit, err
			}
		}
		// As a host: a guest that single-steps itself isn't stepped.
		if self, err := w.SelfSteps(); err != nil || self {
			if err != nil {
				return lockstep.Exit{}, err
			}
			return w.Machine.Run(stop)
		}
		d, exit, err := w.Step(stop)
		if err != nil || d == machine.Exited {
			return exit, err
		}
		if d == machine.Stepped {
			w.at, w.acted = w.at+1, false
		}
	}
}

// outcome is all there is to compare of an execution.
type outcome struct {
	log      []byte
	steps    []machine.Step
	console  string
	state    string
	memory   []byte
	position uint64
	traps    uint64
	resyncs  int
	points   int
	attacks  int
	walked   uint64 // instructions
	logged   int    // bytes, of several
}

// trace notes an exit. RF depends on exits of the host.
func (o *outcome) trace(s machine.Step) {
	s.Regs.RFLAGS &^= 1 << 16
	o.steps = append(o.steps, s)
}

func (o *outcome) finish(m *machine.Machine) error {
	s, err := m.Snapshot()
	if err != nil {
		return err
	}
	o.state = fmt.Sprintf("%d %x %t %+v %x %s", s.Position, s.Fingerprint, s.Halted, s.Counters, s.CPU, s.Board)
	o.memory = bytes.Clone(m.Memory.Bytes())
	o.position, o.traps = s.Position, s.Counters.Traps
	return nil
}

// recorder runs the guest as a primary under a plan.
type recorder struct {
	m       *machine.Machine
	walk    walker
	p       *lockstep.Primary[board.Effect]
	plan    Plan
	exits   uint64 // the guest's own, so far
	seen    uint64 // above exits: this one has been attacked
	attacks int
	out     outcome
}

// record runs the guest to its end, attacked by plan; nil for no attack.
func (h *host) record(t testing.TB, plan *Plan) (*outcome, error) {
	t.Helper()
	m := h.machine(t)
	defer m.Close()
	r := &recorder{m: m}
	m.Trace = r.out.trace
	if err := errors.Join(m.LogDirty(true), m.SetLogged(true)); err != nil {
		return nil, err
	}
	r.walk = walker{Machine: m, plan: &r.plan, exits: &r.exits, limit: &r.attacks}
	r.p = &lockstep.Primary[board.Effect]{Machine: &r.walk, Log: lockstep.NewRecorder(m.Base())}
	r.attacks = maxInputs
	if plan != nil {
		r.plan, r.attacks = *plan, 0
	}
	for m.Ended() == 0 {
		if err := r.step(); err != nil {
			for _, s := range r.out.steps[max(0, len(r.out.steps)-6):] {
				t.Logf("last: exit %d, reason %d, address %#x, %+v", s.Position, s.Reason, s.Addr, s.Regs)
			}
			return nil, fmt.Errorf("recording, exit %d: %w", m.Position(), err)
		}
	}
	r.p.Mark()
	if plan != nil {
		r.out.attacks, r.out.walked = r.attacks, r.walk.at
	}
	_, r.out.log = r.p.Log.Take()
	return &r.out, r.out.finish(m)
}

// step attacks at the present position, and runs the guest once.
func (r *recorder) step() error {
	if r.m.Position() > maxPosition {
		return errors.New("the guest doesn't come to its end")
	}
	r.p.Mark()
	if r.plan.Place == Exits && r.plan.At(r.exits) && r.seen == r.exits {
		r.seen++
		if err := r.attack(r.exits); err != nil {
			return err
		}
	}
	for n := 0; r.m.Waiting(); n++ {
		if n == 3 {
			return errors.New("the guest has halted, and its timer doesn't wake it")
		}
		if err := r.p.Input(event.Entry{Kind: event.Deadline}); err != nil {
			return err
		}
	}
	stop := lockstep.Free
	if r.plan.Place == Traps && r.attacks < maxInputs {
		if at, ok := r.plan.Next(r.m.Base().Traps); ok {
			stop = at
		}
	}
	exit, effects, _, err := r.p.Run(stop)
	if err != nil {
		return err
	}
	for _, e := range effects {
		if e.Kind == board.Console {
			r.out.console += string(e.Data)
		}
	}
	switch exit.Kind {
	case lockstep.Async:
		if err := r.capture(); err != nil || r.plan.Place != Kicks {
			return err
		}
		r.p.Mark()
		return r.attack(r.walk.at)
	case lockstep.Pointed:
		r.out.points++
		r.p.Mark()
		return r.attack(r.walk.at)
	case lockstep.Trapped:
		r.p.Mark()
		if r.plan.Place != Traps {
			break
		}
		return r.attack(exit.Traps)
	}
	r.exits++
	r.seen = r.exits
	return nil
}

func (r *recorder) capture() error {
	pos := r.m.Position()
	data, err := r.m.Capture()
	if err == nil {
		r.out.resyncs++
		r.p.Log.Input(event.Entry{Pos: pos, Kind: event.Resync, Data: data})
	}
	return err
}

// attack acts at place n.
func (r *recorder) attack(n uint64) error {
	if r.attacks == maxInputs {
		return nil
	}
	r.attacks++
	if r.plan.Action == Resync {
		if r.plan.Place < Points {
			r.m.Kick()
		}
		return nil
	}
	for _, e := range r.plan.Action.Inputs(n) {
		if _, armed := r.m.Deadline(); e.Kind == event.Deadline && !armed {
			continue
		}
		if err := r.p.Input(e); err != nil {
			return err
		}
	}
	return nil
}

// replay executes the log of a recording on another machine.
func (h *host) replay(t testing.TB, want *outcome) (*outcome, error) {
	t.Helper()
	m := h.machine(t)
	defer m.Close()
	if err := errors.Join(m.Track(), m.SetLogged(true)); err != nil {
		return nil, err
	}
	var out outcome
	m.Trace = out.trace
	s := &lockstep.Secondary[board.Effect]{Machine: m, Log: lockstep.NewReplayer(m.Base())}
	if err := s.Log.Feed(0, want.log); err != nil {
		return nil, err
	}
	for {
		do, err := s.Step()
		if err != nil {
			return &out, fmt.Errorf("replay: %w", err)
		}
		if do == lockstep.Wait {
			break
		}
	}
	if s.Verified() != uint64(len(want.log)) {
		return &out, fmt.Errorf("replay: verified %d of %d bytes", s.Verified(), len(want.log))
	}
	return &out, out.finish(m)
}

// compare says what differs between a recording and its replay.
func compare(t testing.TB, want, got *outcome, err error) {
	t.Helper()
	n := min(len(want.steps), len(got.steps))
	for i := range n {
		if want.steps[i] == got.steps[i] {
			continue
		}
		for j := max(0, i-4); j < i; j++ {
			t.Logf("equal    %+v", want.steps[j])
		}
		t.Errorf("recorded %+v", want.steps[i])
		t.Errorf("replayed %+v", got.steps[i])
		break
	}
	if err != nil {
		t.Error(err)
		return
	}
	if got.state != want.state {
		t.Errorf("CPU or device state differs\n got %s\nwant %s", got.state, want.state)
	}
	for p := 0; p < len(want.memory); p += mem.PageSize {
		a, b := want.memory[p:p+mem.PageSize], got.memory[p:p+mem.PageSize]
		if bytes.Equal(a, b) {
			continue
		}
		for i := 0; i < len(a); i += 8 {
			if x, y := binary.LittleEndian.Uint64(a[i:]), binary.LittleEndian.Uint64(b[i:]); x != y {
				t.Errorf("memory differs at %#x: recorded %#x, replayed %#x", p+i, x, y)
				break
			}
		}
	}
}

// lock keeps a test on its thread, which the virtual CPU belongs to.
func lock(t testing.TB) {
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
}

// base is the run without attacks: how many places there are.
func (h *host) base(t testing.TB) (exits, traps uint64) {
	t.Helper()
	begun := time.Now()
	o, err := h.record(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("alone: %d exits, %d traps, digest %s, %v", o.position, o.traps, strings.TrimSpace(o.console), time.Since(begun))
	if len(strings.TrimSpace(o.console)) != 16 {
		t.Fatalf("the guest printed %q, want a digest of 16 digits", o.console)
	}
	h.alone = o
	h.endings(t)
	return o.position, o.traps
}

// endings: each halt ends by the timer, whose interrupt makes an exit at its end
// only while the guest has no flag, which is at six halts.
func (h *host) endings(t testing.TB) {
	t.Helper()
	halts, byExit := 0, 0
	for _, s := range h.alone.steps {
		switch {
		case s.Reason == kvm.ExitHLT:
			halts++
		case s.Reason == kvm.ExitMMIO && s.Addr == 0xfee000b0:
			byExit++
		}
	}
	if byExit != 6 || halts <= 2*byExit {
		t.Errorf("of %d interrupts of the timer, %d ended by an exit, want 6", halts, byExit)
	}
}

// same says whether a run that was stopped now and then, and was given nothing,
// did what the guest does alone.
func (h *host) same(t testing.TB, o *outcome) {
	t.Helper()
	if o.console == h.alone.console {
		return
	}
	t.Errorf("stopping the guest changed its digest: %s instead of %s", o.console, h.alone.console)
	own := func(steps []machine.Step) (out []machine.Step) {
		for _, s := range steps {
			if s.Reason != kvm.ExitTrap {
				out = append(out, s)
			}
		}
		return out
	}
	a, b := own(h.alone.steps), own(o.steps)
	for i := range min(len(a), len(b)) {
		if a[i].Regs != b[i].Regs {
			t.Errorf("alone   %+v", a[i])
			t.Errorf("stopped %+v", b[i])
			return
		}
	}
}

// walkFrom are the exits behind which the short form walks, modulo 40. None is in
// the section where the guest single-steps itself: a host that stops it there is
// still seen (hvd/README).
var walkFrom = [...]uint64{Timer: 0, All: 4, Resync: 5}

// TestTorture attacks the guest at each of its exits and traps, and between its
// instructions, and replays each recording.
func TestTorture(t *testing.T) {
	lock(t)
	h := newHost(t)
	exits, traps := h.base(t)
	all := [...]uint64{Exits: exits, Traps: traps}
	for place := Exits; place < places; place++ {
		for action := range Actions {
			var set []Plan
			switch {
			case place >= Points && action != Timer && action != All && action != Resync:
				continue // All has them
			case place >= Points && *full:
				set = Dense(place, action, *apart)
				for i := range set {
					set[i].Most = 64
				}
			case place >= Points:
				set = []Plan{{Place: place, Action: action, First: walkFrom[action], Every: 11, Exits: 40, Most: 6}}
			case *full:
				set = Sparse(place, action, all[place])
			default:
				set = Dense(place, action, *every)
			}
			t.Run(fmt.Sprint(actionNames[action], " at ", placeNames[place]), func(t *testing.T) { h.attack(t, set) })
		}
	}
}

// maxBad is how many plans may fail before a test gives up: one cause mostly
// makes many.
const maxBad = 3

func (h *host) attack(t *testing.T, set []Plan) {
	lock(t)
	begun := time.Now()
	var sum outcome
	digests := map[string]bool{}
	bad := 0
	for _, plan := range set {
		started := time.Now()
		want, err := h.record(t, &plan)
		if err != nil {
			t.Errorf("%v: %v", plan, err)
			if bad++; bad == maxBad {
				return
			}
			continue
		}
		sum.add(want)
		digests[want.console] = true
		recorded := time.Now()
		got, err := h.replay(t, want)
		failed := t.Failed()
		if *full && plan.Place >= Points {
			t.Logf("%v: %d instructions, %d attacks, recorded in %.1f s, replayed in %.1f", plan, want.walked, want.attacks,
				recorded.Sub(started).Seconds(), time.Since(recorded).Seconds())
		}
		if plan.Action == Resync {
			h.same(t, want)
		}
		compare(t, want, got, err)
		if t.Failed() != failed {
			t.Errorf("%v: this was the plan", plan)
			if bad++; bad == maxBad {
				return
			}
		}
	}
	t.Logf("%d runs, %d exits, %d instructions walked, %d attacks, %d points, %d resyncs, log %d bytes, %d digests, %.1f s",
		len(set), sum.position, sum.walked, sum.attacks, sum.points, sum.resyncs, sum.logged, len(digests), time.Since(begun).Seconds())
}

func (o *outcome) add(x *outcome) {
	o.position += x.position
	o.attacks += x.attacks
	o.walked += x.walked
	o.points += x.points
	o.resyncs += x.resyncs
	o.logged += len(x.log)
}
