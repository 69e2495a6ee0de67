package playback

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/recording/gdb"
)

// point is where an execution is: an exit, and the moves since.
type point struct {
	exit  uint64
	moves []move
}

// move goes on from a place to where the guest arrives at an address, so many
// times, and then some instructions on. times 0: only those.
type move struct {
	address uint64
	times   uint64
	steps   uint64
}

func (a point) clone() point { return point{a.exit, slices.Clone(a.moves)} }

func (a point) String() string {
	s := fmt.Sprintf("position %d", a.exit)
	for _, m := range a.moves {
		if m.times > 0 {
			s += fmt.Sprintf(", arrival %d at %#x", m.times, m.address)
		}
		if m.steps > 0 {
			s += fmt.Sprintf(", %d instructions on", m.steps)
		}
	}
	return s
}

// stepped is the point one instruction on.
func (a *point) stepped() {
	if len(a.moves) == 0 {
		a.moves = append(a.moves, move{})
	}
	a.moves[len(a.moves)-1].steps++
}

// arrived is the point where the guest is next at an address.
func (a *point) arrived(address uint64) {
	if n := len(a.moves); n > 0 && a.moves[n-1].address == address && a.moves[n-1].times > 0 && a.moves[n-1].steps == 0 {
		a.moves[n-1].times++
		return
	}
	a.moves = append(a.moves, move{address: address, times: 1})
}

// Debugger is a recording as gdb sees it. Where it stands is at, always.
type Debugger struct {
	p     *Player
	ctx   context.Context
	to    uint64 // the last position that may be executed to
	at    point
	asked atomic.Bool // Interrupt
	deaf  bool        // on the way to a point: nobody interrupts
}

var _ gdb.Target = (*Debugger)(nil)

// NewDebugger makes a debugger of a recording that was just opened. It doesn't go
// beyond position to.
func NewDebugger(ctx context.Context, p *Player, to uint64) (*Debugger, error) {
	if err := p.keepHistory(); err != nil {
		return nil, err
	}
	return &Debugger{p: p, ctx: ctx, to: to, at: point{exit: p.Machine.Position()}}, nil
}

// Interrupt stops a run. Any goroutine may call it.
func (d *Debugger) Interrupt() {
	d.asked.Store(true)
	d.p.Machine.Kick()
}

// outcome is how a piece of execution ended.
type outcome uint8

const (
	exited  outcome = iota // at the next exit
	stepped                // behind one instruction
	arrived                // at an address
	over                   // the recording ends
	broken                 // Interrupt, at an exit or before
)

// once executes up to the next exit, or less: one instruction with step, else up
// to one of the addresses. d.at follows.
func (d *Debugger) once(step bool, breaks []uint64) (outcome, error) {
	if err := d.ctx.Err(); err != nil {
		return over, err
	}
	if !d.deaf && d.asked.Load() {
		return broken, nil
	}
	m := d.p.Machine
	if m.Position() >= d.to {
		return over, nil
	}
	was := m.Position()
	for {
		how, err := d.p.next(func(stop uint64) (machine.Debugged, lockstep.Exit, error) {
			if step {
				return m.Step(stop)
			}
			return m.RunTo(stop, breaks)
		})
		if errors.Is(err, ErrEnd) || err == nil && d.p.ended != nil && m.Position() == was {
			return over, nil
		}
		if err != nil {
			return over, err
		}
		switch how {
		case machine.Stepped:
			d.at.stepped()
			return stepped, nil
		case machine.AtBreak:
			d.at.arrived(d.rip())
			return arrived, nil
		case machine.Interrupted:
			// Here is no place that could be found again; the next exit is one.
			if d.ctx.Err() != nil {
				return over, d.ctx.Err()
			}
			if !d.deaf {
				step, breaks = false, nil
			}
			continue
		}
		d.at = point{exit: m.Position()}
		return exited, nil
	}
}

// rip is where the guest stands.
func (d *Debugger) rip() uint64 {
	s, err := d.p.Machine.Registers()
	if err != nil {
		return 0
	}
	return s.Regs.RIP
}

// beyond executes up to one of the addresses or the next exit. From an address
// among them it steps off first.
func (d *Debugger) beyond(breaks []uint64) (outcome, error) {
	if !slices.Contains(breaks, d.rip()) {
		return d.once(false, breaks)
	}
	was := d.at.clone()
	o, err := d.once(true, nil)
	if err != nil || o != stepped {
		return o, err
	}
	if here := d.rip(); slices.Contains(breaks, here) {
		d.at = was
		d.at.arrived(here)
		return arrived, nil
	}
	stepOff := d.at
	d.at = was
	o, err = d.once(false, breaks)
	if o == broken {
		d.at = stepOff
	}
	return o, err
}

// goTo goes to a point that was reached before.
func (d *Debugger) goTo(to point) error {
	d.deaf = true
	defer func() { d.deaf = false }()
	if err := d.p.back(d.p.history.before(to.exit)); err != nil {
		return err
	}
	d.at = point{exit: d.p.Machine.Position()}
	lost := func(o outcome) error {
		return fmt.Errorf("%v can't be found again (%d): this is %v", to, o, d.at)
	}
	for d.at.exit < to.exit {
		if o, err := d.once(false, nil); err != nil || o != exited {
			return errors.Join(err, lost(o))
		}
	}
	for _, m := range to.moves {
		for range m.times {
			if o, err := d.beyond([]uint64{m.address}); err != nil || o != arrived {
				return errors.Join(err, lost(o))
			}
		}
		for range m.steps {
			if o, err := d.once(true, nil); err != nil || o != stepped {
				return errors.Join(err, lost(o))
			}
		}
	}
	d.at = to.clone()
	return nil
}

func (d *Debugger) failed(err error) gdb.Stop {
	note := err.Error()
	if errors.Is(err, lockstep.ErrDiverged) {
		note += "; what comes from here on isn't what was recorded"
	}
	return gdb.Stop{Why: gdb.Failed, Note: note}
}

func (d *Debugger) stop(o outcome, err error) gdb.Stop {
	if err != nil {
		return d.failed(err)
	}
	switch o {
	case over:
		return gdb.Stop{Why: gdb.AtEnd}
	case broken:
		return gdb.Stop{Why: gdb.Interrupted}
	case arrived:
		return gdb.Stop{Why: gdb.AtBreak}
	}
	return gdb.Stop{Why: gdb.Stepped}
}

// Step implements gdb.Target. An exit is a stop of its own: the instruction there
// is finished by the next step.
func (d *Debugger) Step() gdb.Stop {
	d.asked.Store(false)
	return d.stop(d.once(true, nil))
}

// Continue implements gdb.Target.
func (d *Debugger) Continue(breaks []uint64) gdb.Stop {
	d.asked.Store(false)
	for {
		if o, err := d.beyond(breaks); err != nil || o != exited {
			return d.stop(o, err)
		}
	}
}
