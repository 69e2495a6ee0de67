package vm

import (
	"errors"
	"time"

	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/lockstep"
)

// In a planned switchover two copies exchange their roles. No state is sent:
//
//	primary                                  secondary
//	Pause: the guest stands still,           Replay executes to the log's end;
//	  inputs are taken until nothing is        Consume ends it
//	  under way; the log ends with a
//	  digest and a mark
//	Live ends; a new engine's Replay         Record, Gate, Live
//	  follows <------- the log from here -----
//
// Both stand at the same position of the same execution, and nothing looked at
// them (a snapshot might finish an access): so that position is the new log's
// base.

// paused is a guest that stands still.
type paused struct {
	idle func() bool
	done func(lsn uint64)
	cut  bool // the log has ended
}

// pausedWait is how often a paused guest is looked at, beside what rings.
const pausedWait = time.Millisecond

// Pause stops a primary's guest where it is. Inputs are still taken, at that
// position, until idle says that no disk request is under way and every effect
// has left. Then the log ends, and done is told its length; later inputs wait.
// Both functions are called by the loop and must not block. Inside Do.
func (e *Engine) Pause(idle func() bool, done func(lsn uint64)) error {
	if e.primary == nil || e.send == nil {
		return errors.New("the guest has no secondary that could take over")
	}
	if err := e.endTape("the VM moves to the other host"); err != nil {
		return err
	}
	e.paused = &paused{idle: idle, done: done}
	e.wanting.Store(true)
	return nil
}

// Resume lets a paused guest go on. Inside Do.
func (e *Engine) Resume() {
	e.paused = nil
	e.wanting.Store(false)
}

// standStill is a round of the loop while the guest is paused.
func (e *Engine) standStill() error {
	p := e.paused
	e.kick.idle()
	if p.cut {
		e.bell.wait(fullWait)
		return nil
	}
	// The first round finds that nothing is held, so nothing more can leave, and
	// then that nothing is under way, so every completion is among the inputs. The
	// second one takes those.
	for range 2 {
		if err := e.deliver(time.Now()); err != nil {
			return err
		}
		if err := e.flush(time.Now(), true); err != nil {
			return err
		}
		if e.held() > 0 || !p.idle() {
			e.bell.wait(pausedWait)
			return nil
		}
	}
	return e.cutLog()
}

// cutLog ends a paused guest's log. The digest has the secondary compare the CPU
// and the devices once more before the guest is its own.
func (e *Engine) cutLog() error {
	digest, err := e.m.Digest()
	if err != nil {
		return err
	}
	if err := e.input(event.Entry{Kind: event.Digest, Data: digest}); err != nil {
		return err
	}
	lsn := e.primary.Mark()
	if err := e.flush(time.Now(), true); err != nil {
		return err
	}
	e.paused.cut = true
	e.paused.done(lsn)
	return nil
}

// Left gives away the inputs that a paused guest didn't take, in their order:
// once its log has ended.
func (e *Engine) Left() []event.Entry { return e.inbox.take(0) }

// Lead makes a machine that has replayed all of a log the primary of a log that
// begins here, as Record does, whose effects wait for acknowledgements; blind is
// as in Blind. After Replay, before Live.
func (e *Engine) Lead(send func(lsn uint64, batch []byte), blind bool) error {
	e.blind = blind
	if err := e.Record(send); err != nil {
		return err
	}
	_, err := e.Gate(lockstep.Acked)
	return err
}
