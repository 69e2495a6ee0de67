package machine

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/zeebo/xxh3"

	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/locate"
	"github.com/duet-ft/duet/hvd/lockstep"
)

// points is how the machine comes to points between two exits (hvd/locate).
type points struct {
	by     locate.Locator
	making bool              // a kick ends a run at a point, where there is one
	events *kvm.EventCounter // ByPMU: of the thread that runs the machine
	base   uint64            // ByPMU: what events read at the last exit
}

// maxSettle is how many instructions a primary goes on for a point: more than
// Linux makes with interrupts off.
const maxSettle = 20_000

// Locate says how points are found from here on, by the calling thread, which runs
// the machine until it calls Locate again. The machine makes none yet.
func (m *Machine) Locate(by locate.Locator) error {
	if m.points.events != nil {
		if err := m.points.events.Close(); err != nil {
			return fmt.Errorf("give a performance counter back: %w", err)
		}
	}
	m.points = points{by: by}
	if by.Method != locate.ByPMU {
		return nil
	}
	events, err := kvm.OpenCounter(by.Event.Config)
	if err != nil {
		m.points.by = locate.Locator{}
		return err
	}
	m.points.events = events
	return nil
}

// MakePoints says whether a Kick ends Run as Pointed, where there is a point; the
// log's reader must be able to find it. Between two runs, at an exit.
func (m *Machine) MakePoints(on bool) {
	m.points.making = on && m.points.by.Method != locate.None
}

// runToPoint is Run for a machine that makes points.
func (m *Machine) runToPoint(stop uint64) (lockstep.Exit, error) {
	if !m.entered {
		if err := m.countFrom(); err != nil {
			return lockstep.Exit{}, err
		}
	}
	run := m.run
	if m.points.by.Method == locate.ByStep {
		run = m.runBySteps
	}
	exit, err := run(stop)
	if err != nil || exit.Kind != lockstep.Async {
		return exit, err
	}
	return m.PointHere(maxSettle)
}

// countFrom begins to count at the present exit.
func (m *Machine) countFrom() (err error) {
	if m.points.events != nil {
		m.points.base, err = m.points.events.Read()
	}
	return err
}

// errSelfSteps says that the guest single-steps itself, so that it must not be
// stepped: what its own trap handler sees would change. A copy that would have to
// step it for a point gives the point up, or stops.
var errSelfSteps = errors.New("the guest single-steps itself there, which a step of the host's would show")

// SelfSteps says whether the next instruction is one that the guest single-steps
// by itself, or that begins with that.
func (m *Machine) SelfSteps() (bool, error) {
	if m.cpu.Regs().RFLAGS&flagTF != 0 {
		return true, nil
	}
	var s kvm.Sregs
	if err := m.cpu.System(&s); err != nil {
		return false, err
	}
	i := m.instruction(&s)
	return i.tf, nil
}

// runBySteps is run, one instruction after the other, but for a guest that
// single-steps itself: that runs on to its next exit or kick.
func (m *Machine) runBySteps(stop uint64) (lockstep.Exit, error) {
	for {
		if self, err := m.SelfSteps(); err != nil {
			return lockstep.Exit{}, err
		} else if self {
			return m.run(stop)
		}
		d, exit, err := m.Step(stop)
		if err != nil || d == Exited || d == Interrupted {
			return exit, err
		}
		if m.cpu.TakeKick() {
			return lockstep.Exit{Kind: lockstep.Async}, nil
		}
	}
}

// PointHere makes a point of where the guest was stopped, or up to limit
// instructions further on. Where there is none, the exit is Async, and the guest
// may stand elsewhere in the same run; where an exit comes first, it is that one.
//
// In a guest that single-steps itself there are none, and where it begins to on the
// way to one, none is made.
func (m *Machine) PointHere(limit int) (lockstep.Exit, error) {
	if m.cpu.Regs().RFLAGS&flagTF != 0 {
		return lockstep.Exit{Kind: lockstep.Async}, nil
	}
	s := stepping{m: m}
	t, err := m.target(&s)
	if err != nil {
		return lockstep.Exit{}, err
	}
	if m.points.by.Method == locate.ByStep && !m.stepped {
		return lockstep.Exit{Kind: lockstep.Async}, nil // not counted
	}
	p, ok, exited, err := locate.Settle(t, limit)
	switch {
	case errors.Is(err, errSelfSteps):
		return lockstep.Exit{Kind: lockstep.Async}, nil
	case err != nil || exited:
		return s.exit, err
	case !ok:
		return lockstep.Exit{Kind: lockstep.Async}, nil
	}
	e := &event.Entry{Pos: m.pos, Kind: event.Point, Count: p.Count, RIP: p.RIP, RCX: p.RCX, Regs: p.Hash}
	return lockstep.Exit{Kind: lockstep.Pointed, Point: e}, m.pointed(*e)
}

// seek is PointHere's other side: it takes the guest from the present exit to a point.
func (m *Machine) seek(e event.Entry) error {
	if m.points.by.Method == locate.None {
		return errors.New("the log has a point between two exits, and this machine can't count branches")
	}
	if m.entered {
		return fmt.Errorf("the machine is inside exit %d, from which a point is sought", m.pos+1)
	}
	if err := m.countFrom(); err != nil {
		return err
	}
	m.branches, m.stepped = 0, true
	exited, err := m.prepare(lockstep.Free)
	if err != nil {
		return err
	}
	if !exited {
		exited, err = m.cpu.Finish()
	}
	if err != nil {
		return err
	}
	if exited {
		return m.diverged("point", "another exit comes before the primary's point")
	}
	s := stepping{m: m}
	t, err := m.target(&s)
	if err != nil {
		return err
	}
	want := locate.Point{Count: e.Count, RIP: e.RIP, RCX: e.RCX, Hash: e.Regs}
	err = locate.Seek(t, &locate.Seeker{Want: want, Skid: m.points.by.Event.Skid})
	if c, ok := t.(*locate.Counter); ok {
		err = errors.Join(err, c.Disarm())
	}
	if errors.Is(err, locate.ErrMissed) || errors.Is(err, errSelfSteps) {
		return m.diverged("point", err.Error())
	}
	if err != nil {
		return err
	}
	return m.pointed(e)
}

// target is the CPU as hvd/locate sees it. It is settled.
func (m *Machine) target(s *stepping) (locate.Target, error) {
	if err := m.cpu.Settle(); err != nil {
		return nil, err
	}
	if m.points.by.Method == locate.ByPMU {
		return locate.CounterBy(m.cpu, m.Memory, s, m.points.events, m.points.base), nil
	}
	t := locate.NewStepperBy(m.cpu, m.Memory, s)
	t.Late = m.points.by.Late
	return t, nil
}

// stepping makes instructions for hvd/locate, without a trace.
type stepping struct {
	m    *Machine
	exit lockstep.Exit // the counted exit that one made
}

// Step makes one; locate.Stepping.
func (s *stepping) Step() (locate.Why, error) {
	for {
		if self, err := s.m.SelfSteps(); err != nil || self {
			return 0, cmp.Or(err, errSelfSteps)
		}
		d, exit, err := s.m.Step(lockstep.Free)
		if err != nil {
			return 0, err
		}
		switch d {
		case Exited:
			s.exit = exit
			return locate.Exited, nil
		case Interrupted: // before it was made
			continue
		}
		return locate.Stepped, nil
	}
}

// Branches is what Step has counted; locate.Stepping.
func (s *stepping) Branches() uint64 { return s.m.branches }

// pointed counts a point as the exit that it is.
func (m *Machine) pointed(e event.Entry) error {
	// What brought the guest here, an interrupt of the host's or a breakpoint, may
	// show in RF, and an interrupt that is injected now would store it.
	r := *m.cpu.Regs()
	if r.RFLAGS&flagRF != 0 {
		r.RFLAGS &^= flagRF
		if err := m.cpu.SetGeneral(&r); err != nil {
			return err
		}
	}
	c := m.cpu.Counters()
	b := binary.LittleEndian.AppendUint64(nil, m.hash)
	for _, v := range [...]uint64{e.Count, e.RIP, e.RCX, e.Regs, c.Traps, c.Reads} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	m.hash = xxh3.Hash(b)
	m.between()
	if m.logged {
		m.trail.drop(Crumb{Position: m.pos, Fingerprint: m.hash, Reason: reasonPoint, Data: e.Count, RIP: e.RIP})
	}
	return nil
}

const flagRF = 1 << 16
