package vm

import (
	"context"
	"errors"
	"time"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/virtio/blk"
)

// Live runs the machine as the one that does I/O, until ctx ends, the guest
// ends (ErrPowerOff, ErrReset or machine.ErrStopped) or something breaks. It
// starts alone, with the gate as it is; Record makes it a primary.
func (e *Engine) Live(ctx context.Context) error {
	release, err := holdThread()
	if err != nil {
		return err
	}
	defer release()
	defer close(e.over)
	switch e.m.Ended() { // as a secondary, before its primary could say so
	case board.PowerOff:
		return ErrPowerOff
	case board.Reset:
		return ErrReset
	}
	if err := e.m.SetFresh(e.cfg.Window); err != nil {
		return err
	}
	unlocate, err := e.locate()
	if err != nil {
		return err
	}
	defer unlocate()
	if e.primary == nil {
		// A former secondary forgets no more of what is written: its own
		// secondary's seeding will need it.
		if err := e.m.SetLogged(false); err != nil {
			return err
		}
		e.stopTraps()
	}
	e.reads.inFlight(e.m.Board.PendingDisk())
	e.clock.start(e.m.Clock())
	if err := e.bell.open(); err != nil {
		return err
	}
	defer e.bell.close()
	if err := e.kick.start(e); err != nil {
		return err
	}
	defer e.kick.end()
	defer e.lastTape()
	defer context.AfterFunc(ctx, e.wake)()
	for ctx.Err() == nil {
		select {
		case err := <-e.ended:
			return err
		default:
		}
		e.commands()
		if e.paused != nil {
			if err := e.standStill(); err != nil {
				return err
			}
			continue
		}
		now := time.Now() // once a round: to look at the clock is a good part of what an exit costs
		if err := e.deliver(now); err != nil {
			return err
		}
		if err := e.flush(now, false); err != nil {
			return err
		}
		full := e.held() > maxHeld
		if e.wanting.Store(full); full {
			e.kick.idle()
			e.bell.wait(fullWait)
			continue
		}
		if e.m.Waiting() {
			e.halt()
			continue
		}
		if e.throttle(ctx, now) {
			now = time.Now()
		}
		if err := e.run(ctx, now); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// maxHeld bounds the effects that wait to leave. A guest that has made so many
// stands still until some do.
const maxHeld = 8192

// fullWait is how often such a guest is looked at.
const fullWait = 20 * time.Millisecond

// deliver applies the inputs that are due at this position.
func (e *Engine) deliver(host time.Time) error {
	now := e.clock.at(host)
	if err := e.chooseTraps(now); err != nil {
		return err
	}
	if in, ok := e.clockInput(now); ok {
		if err := e.input(in); err != nil {
			return err
		}
	}
	e.tell = false
	for _, in := range e.inbox.take(e.m.Board.VsockRoom()) {
		if err := e.input(in); err != nil {
			return err
		}
	}
	if e.behind() {
		if err := e.input(event.Entry{Kind: event.Behind}); err != nil {
			return err
		}
	}
	if e.primary == nil || !e.m.DigestDue() {
		return nil
	}
	digest, err := e.m.Digest()
	if err != nil {
		return err
	}
	return e.input(event.Entry{Kind: event.Digest, Data: digest})
}

// clockInput says what the guest's clock and timers get at this position, when
// they should be at now, ns.
// Ticks come one at a time: while an interrupt waits to be taken, the next
// tick would be lost, so the guest's clock stands still at its deadline, but
// for what each read adds. It catches up later, or jumps.
func (e *Engine) clockInput(now uint64) (event.Entry, bool) {
	clock := e.m.Clock()
	deadline, armed := e.m.Deadline()
	due := armed && max(now, clock) >= deadline
	switch {
	case due && now > deadline && time.Duration(now-deadline) > maxBehind:
		return event.Entry{Kind: event.Jump, Now: max(now, clock)}, true
	case due && !e.m.Board.Requested():
		e.Stats.ticked(e.m.Board.Faults)
		return event.Entry{Kind: event.Deadline}, true
	case e.tell && due:
		return event.Entry{Kind: event.Time, Now: clock}, true
	case e.tell:
		return event.Entry{Kind: event.Time, Now: max(now, clock)}, true
	}
	return event.Entry{}, false
}

// behind says that a further timer is due when the interrupt that is taken at this
// position has begun. A guest that ends its interrupts without an exit would come to
// the next position late.
func (e *Engine) behind() bool {
	deadline, armed := e.m.Deadline()
	return armed && e.m.Board.Pending() && e.m.Board.NamesFlag() && max(e.clock.now(), e.m.Clock()) >= deadline
}

// input applies an input, through the log if there is one.
func (e *Engine) input(in event.Entry) error {
	in.Pos = e.m.Position()
	read, steady := e.reads.completed(in)
	if e.primary != nil {
		e.Stats.Inputs.Add(1)
		e.Stats.placed(e.at, in.Kind)
		if err := e.logInput(in, read, steady); err != nil {
			return err
		}
		return e.effects(e.m.TakeEffects(), e.primary.Log.LSN())
	}
	if err := e.m.Apply(in); err != nil {
		return err
	}
	return e.effects(e.m.TakeEffects(), 0)
}

// run enters the guest once.
func (e *Engine) run(ctx context.Context, now time.Time) error {
	due := now.Add(time.Hour)
	if deadline, armed := e.m.Deadline(); armed {
		due = e.clock.host(deadline)
	}
	e.unheard.note(e.m.Board)
	e.kick.enter(now, due)
	var exit lockstep.Exit
	var effects []board.Effect
	var lsn uint64
	var err error
	if e.primary != nil {
		exit, effects, lsn, err = e.primary.Run(lockstep.Free)
	} else if exit, err = e.m.Run(lockstep.Free); err == nil {
		effects = e.m.TakeEffects()
	}
	if err != nil {
		return e.final(ctx, err)
	}
	e.Stats.ran(e.m)
	// Of chains without a notification the guest's devices hear with the time.
	e.tell = exit.Kind == lockstep.Trapped || exit.Kind != lockstep.Sync && e.unheard.waiting(e.m.Memory) != 0
	e.at = placeOf(e.m, exit.Kind)
	switch exit.Kind {
	case lockstep.Pointed:
		e.Stats.Points.Add(1)
	case lockstep.Async:
		if err := e.interrupted(); err != nil {
			return err
		}
	}
	return e.effects(effects, lsn)
}

// final lets out what the guest did before it ended, which may take a
// secondary's acknowledgement, and returns cause.
func (e *Engine) final(ctx context.Context, cause error) error {
	if e.primary != nil {
		if err := e.effects(e.m.TakeEffects(), e.primary.Mark()); err != nil {
			return errors.Join(cause, err)
		}
		if err := e.flush(time.Now(), true); err != nil {
			return errors.Join(cause, err)
		}
	}
	e.wanting.Store(true) // before looking, so that none is missed
	defer e.wanting.Store(false)
	for ctx.Err() == nil && e.held() > 0 {
		e.bell.wait(time.Hour)
		e.commands()
	}
	return cause
}

// held is the number of effects that wait to be let out.
func (e *Engine) held() int {
	e.gateMu.Lock()
	defer e.gateMu.Unlock()
	return e.gate.Held()
}

// interrupted makes a position of where the host stopped the guest.
func (e *Engine) interrupted() error {
	if e.primary == nil {
		e.kick.cost(0)
		return e.m.Break()
	}
	begun := time.Now()
	pos := e.m.Position()
	data, err := e.m.Capture()
	if err != nil {
		return err
	}
	e.Stats.Resyncs.Add(1)
	e.Stats.ResyncBytes.Add(uint64(len(data)))
	e.primary.Log.Input(event.Entry{Pos: pos, Kind: event.Resync, Data: data})
	e.kick.cost(time.Since(begun))
	return nil
}

// effects sends what the guest did to the gate. Reads change nothing and leave at
// once.
func (e *Engine) effects(effects []board.Effect, lsn uint64) error {
	if len(effects) == 0 {
		return nil
	}
	e.gateMu.Lock()
	gated := false
	for _, x := range effects {
		e.reads.issued(x)
		if x.Kind != board.DiskRequest || x.Request.Op != blk.OpRead {
			e.gate.Push(lsn, timed{x, time.Now()})
			gated = true
		}
	}
	mode := e.gate.Mode()
	e.gateMu.Unlock()
	for _, x := range effects {
		if x.Kind == board.DiskRequest && x.Request.Op == blk.OpRead {
			e.rim.Effect(x)
		}
	}
	if !gated {
		return nil
	}
	e.urgent = true
	if mode == lockstep.Open {
		return e.release()
	}
	return nil
}

// halt waits until an input is due. An acknowledgement lets effects go without
// the loop.
func (e *Engine) halt() {
	until := time.Now().Add(time.Hour)
	if deadline, armed := e.m.Deadline(); armed {
		until = e.clock.host(deadline)
	}
	e.kick.idle()
	e.bell.wait(time.Until(until))
}

// end makes Live return cause.
func (e *Engine) end(cause error) {
	select {
	case e.ended <- cause:
	default:
	}
	e.wake()
}
