package vm

import (
	"context"
	"time"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/lockstep"
)

// timed is an effect with the time when it was made.
type timed struct {
	board.Effect
	made time.Time
}

// maxBatch is the log that is kept back at the most, in bytes.
const maxBatch = 64 << 10

// markAfter is how often a guest that makes no effects has its fingerprint
// written. The secondary runs up to the last input without: an idle guest's is a
// tick behind. What the fingerprint says of that comes so much later; at Debian's
// 250 Hz it takes 1.2 bytes a tick.
const markAfter = 16 * time.Millisecond

// Record makes the machine a primary, whose log starts at its position: the
// caller runs it inside Do, or before Live. send gets the log, batch by batch;
// it must not block for long, for the guest stands still meanwhile. The gate
// stays as it is.
func (e *Engine) Record(send func(lsn uint64, batch []byte)) error {
	if err := e.endTape("another log began"); err != nil {
		return err
	}
	if err := e.m.SetLogged(true); err != nil {
		return err
	}
	e.startTraps()
	e.makePoints(true)
	e.primary = &lockstep.Primary[board.Effect]{Machine: e.m, Log: lockstep.NewRecorder(e.m.Base())}
	e.send = send
	e.flushed, e.marked = time.Now(), time.Now()
	e.lag.reset()
	e.reads.restart()
	e.gateMu.Lock()
	e.gate.Rebase()
	e.gateMu.Unlock()
	return nil
}

// EndLog ends the log: the machine goes on without a secondary. Inside Do.
func (e *Engine) EndLog() error {
	e.send = nil
	e.lag.reset()
	if e.tape != nil {
		e.tape.own = true
		return nil // the log goes on for the recording
	}
	e.primary = nil
	if err := e.m.SetLogged(false); err != nil {
		return err
	}
	e.stopTraps()
	e.makePoints(false)
	return e.m.LogDirty(false)
}

// Gate sets what effects wait for, and returns the length of the log at that
// moment: all that left before is explained by the log up to there. Inside Do,
// or before Live.
func (e *Engine) Gate(m lockstep.GateMode) (lsn uint64, err error) {
	if e.primary != nil {
		lsn = e.primary.Mark()
		e.urgent = true
	}
	e.gateMu.Lock()
	e.gate.Set(m)
	e.gateMu.Unlock()
	return lsn, e.release()
}

// Ack notes what the secondary holds and has executed, and lets go of what may
// leave. Any goroutine may call it.
func (e *Engine) Ack(received, executed uint64) error {
	e.lag.ack(executed)
	e.reads.acked(received)
	e.Stats.Verified.Store(executed)
	e.gateMu.Lock()
	e.gate.Ack(received, executed)
	e.gateMu.Unlock()
	err := e.release()
	if e.wanting.Load() {
		e.bell.ring()
	}
	return err
}

// release lets out what may leave. The lock is held throughout, so that
// effects keep their order.
func (e *Engine) release() error {
	e.gateMu.Lock()
	defer e.gateMu.Unlock()
	for _, x := range e.gate.Release() {
		e.Stats.delay(time.Since(x.made))
		switch x.Kind {
		case board.PowerOff:
			e.end(ErrPowerOff)
		case board.Reset:
			e.end(ErrReset)
		default:
			e.rim.Effect(x.Effect)
		}
	}
	return nil
}

// flush hands the log to send when it is time to, or at once with all.
func (e *Engine) flush(now time.Time, all bool) error {
	if e.primary == nil {
		return nil
	}
	if !e.urgent && !all && e.primary.Log.Pending() < maxBatch && now.Sub(e.flushed) < e.cfg.FlushAfter {
		return nil
	}
	if e.urgent || all || now.Sub(e.marked) >= markAfter {
		e.primary.Mark()
		e.marked = now
	}
	lsn, batch := e.primary.Log.Take()
	e.urgent, e.flushed = false, now
	if len(batch) == 0 {
		return nil
	}
	e.Stats.LogBytes.Add(uint64(len(batch)))
	e.Stats.LSN.Store(lsn + uint64(len(batch)))
	if e.send != nil {
		e.lag.sent(lsn + uint64(len(batch)))
		e.send(lsn, batch)
	}
	return e.tapeLog(batch)
}

// throttle lets the guest stand still while its secondary lags, as lockstep.Pace
// says. An acknowledgement ends it that shows the secondary near again, and so does
// whoever has something done inside: the secondary may be dead, and the log about to
// end. It says whether the guest stood.
func (e *Engine) throttle(ctx context.Context, now time.Time) bool {
	if e.primary == nil {
		return false
	}
	stop := e.lag.stop(now)
	if stop == 0 {
		return false
	}
	e.Stats.Throttled.Add(1)
	timer := time.NewTimer(stop)
	defer timer.Stop()
	for stands := true; stands; {
		select {
		case <-ctx.Done():
			stands = false
		case <-timer.C:
			stands = false
		case <-e.lag.bell: // which may be an old one
			stands = e.standsOn()
		}
	}
	e.lag.stood()
	return true
}

// standsOn says that the guest goes on standing still.
func (e *Engine) standsOn() bool { return !e.lag.near() && len(e.do) == 0 }

// Lag is how long ago the primary made what the secondary hasn't executed yet.
func (e *Engine) Lag() time.Duration { return e.lag.now() }
