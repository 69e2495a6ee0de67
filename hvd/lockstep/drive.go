package lockstep

import (
	"fmt"

	"github.com/duet-ft/duet/hvd/event"
)

// Primary couples a machine with the recorder of its log.
type Primary[E any] struct {
	Machine Machine[E]
	Log     *Recorder
}

// Input writes an input into the log and applies it, both at the current
// position. e.Pos is filled in.
func (p *Primary[E]) Input(e event.Entry) error { return p.InputAs(e, e) }

// InputAs writes one entry into the log and applies another: what the secondary
// makes of the first. Pos is filled in.
func (p *Primary[E]) InputAs(logged, e event.Entry) error {
	e.Pos = p.Machine.Position()
	logged.Pos = e.Pos
	p.Log.Input(logged)
	return p.Machine.Apply(e)
}

// Run lets the machine run to its next exit and writes a stop into the log.
// It returns the effects that the guest made on the way and the LSN that
// explains them.
func (p *Primary[E]) Run(stop uint64) (Exit, []E, uint64, error) {
	before := p.Machine.Position()
	exit, err := p.Machine.Run(stop)
	if err != nil {
		return exit, nil, 0, err
	}
	switch exit.Kind {
	case Trapped:
		p.Log.Input(event.Entry{Pos: before, Kind: event.Stop, Traps: exit.Traps})
	case Pointed:
		p.Log.Input(*exit.Point)
	}
	effects := p.Machine.TakeEffects()
	if len(effects) == 0 {
		return exit, nil, p.Log.LSN(), nil
	}
	return exit, effects, p.Mark(), nil
}

// Mark writes the fingerprint at the current position and returns the LSN
// behind it.
func (p *Primary[E]) Mark() uint64 {
	return p.Log.Mark(p.Machine.Position(), p.Machine.Fingerprint())
}

// Secondary couples a machine with the replayer of a log.
type Secondary[E any] struct {
	Machine Machine[E]
	Log     *Replayer

	verified uint64
	equalAt  uint64 // position of the last fingerprint found equal
	stop     uint64 // a stop that was handed out and isn't reached yet
	stopping bool
}

// Verified is the LSN up to which the log has been executed with equal
// fingerprints.
func (s *Secondary[E]) Verified() uint64 { return s.verified }

// EqualAt is the position at which a fingerprint was found equal last.
func (s *Secondary[E]) EqualAt() uint64 { return s.equalAt }

// Step carries out the next thing that the log asks for and says what it was:
// Wait when there was nothing. The effects that the machine made meanwhile are
// dropped: they are the primary's to release, and what a disk still owes is
// part of the machine's state.
//
// After an error the machine is no replica any more: ErrDiverged when its
// execution differs.
func (s *Secondary[E]) Step() (Do, error) {
	if s.stopping {
		return Run, s.run(s.stop)
	}
	step, err := s.Log.Next(s.Machine.Position())
	if err != nil {
		return Wait, err
	}
	switch step.Do {
	case Run:
		return Run, s.run(step.Stop)
	case Apply:
		if step.Entry.Kind == event.Live {
			return Apply, nil
		}
		if err := s.Machine.Apply(step.Entry); err != nil {
			return Apply, fmt.Errorf("%v at exit %d: %w", step.Entry.Kind, step.Entry.Pos, err)
		}
	case Check:
		if got := uint32(s.Machine.Fingerprint()); got != step.Entry.Hash {
			return Check, &Divergence{Kind: "exit", Position: step.Entry.Pos, Detail: fmt.Sprintf(
				"the fingerprint is %08x, the primary's %08x", got, step.Entry.Hash)}
		}
		s.verified, s.equalAt = step.LSN, step.Entry.Pos
	}
	return step.Do, nil
}

// Confirm is for a machine that has come to its own end at the present
// position, with the error cause: it returns cause if the primary has come to
// the same, and an ErrDiverged if it hasn't.
func (s *Secondary[E]) Confirm(cause error) error {
	step, err := s.Log.Next(s.Machine.Position())
	switch {
	case err != nil:
		return err
	case step.Do == Check && uint32(s.Machine.Fingerprint()) == step.Entry.Hash:
		s.verified, s.equalAt = step.LSN, step.Entry.Pos
		return cause
	}
	return &Divergence{Kind: "exit", Position: s.Machine.Position(), Detail: fmt.Sprintf("%v, but not on the primary", cause)}
}

// run runs the machine once. A stop is handed out only once, so it is kept
// until the machine has got there, however often the host interrupts.
func (s *Secondary[E]) run(stop uint64) error {
	s.stop, s.stopping = stop, stop != Free
	exit, err := s.Machine.Run(stop)
	if err != nil {
		return err
	}
	s.Machine.TakeEffects()
	if exit.Kind == Async {
		return nil
	}
	s.stopping = false
	switch {
	case (exit.Kind == Trapped) != (stop != Free):
		return &Divergence{Kind: "stop", Position: s.Machine.Position(), Detail: fmt.Sprintf(
			"a stop was wanted at trap %d, trapped %t at %d", stop, exit.Kind == Trapped, exit.Traps)}
	case exit.Kind == Trapped && exit.Traps != stop:
		return &Divergence{Kind: "stop", Position: s.Machine.Position(), Detail: fmt.Sprintf(
			"it stopped at trap %d, the primary at %d", exit.Traps, stop)}
	}
	return nil
}
