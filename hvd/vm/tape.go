package vm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/mem"
)

// A tape is a recording of a running machine: a state transfer to a sink, and
// the log from there on. A primary's log exists already and is copied. For a
// machine that runs alone one is begun, which nobody acknowledges and no effect
// waits for.
//
//	Tape ---> pages, round by round -> snapshot -> log ... -> end
//	            |                                    |
//	            +- Seed, the guest's end ------------+--> end, with the reason
//
// When a primary loses its secondary, the tape keeps the log going.
type tape struct {
	out         TapeSink
	live        bool                  // the snapshot is taken; the log goes to out
	own         bool                  // the log is there for the tape alone
	look        func(why string) bool // takes the snapshot, or gives it up with a reason; false: not here
	looks       int
	position    uint64
	fingerprint uint64
	why         string
}

// TapeSink takes a recording. Its methods are called with the guest standing
// still and must not block.
type TapeSink interface {
	Sink
	// Log takes the log's next bytes, which the sink must not change. An error
	// ends the recording.
	Log(batch []byte) error
	// End is called once after a Tape that succeeded: the log that was taken
	// leads to position, with that fingerprint.
	End(position, fingerprint uint64, why string)
}

// Reasons why a recording can't begin.
var (
	ErrTaped   = errors.New("the VM is being recorded already")
	ErrSeeding = errors.New("the VM's state is on its way to the other host; record it once it is protected")
	ErrMoving  = errors.New("the VM moves to the other host; record it there")
	ErrTooBusy = errors.New("the guest writes to its memory faster than the recording can be sent; try again when it is less busy")
)

const (
	// maxLastPages bounds what the guest stands still for at the end of a tape's
	// state transfer: 32 MiB.
	maxLastPages = 8 << 10
	// looksPerKick is how many positions are looked at before the guest is kicked.
	looksPerKick = 64
)

// Tape sends the running machine's state to out, as Seed does, and its log from
// that position on. It returns when the state is sent. The guest goes on as if
// nobody had looked.
func (e *Engine) Tape(ctx context.Context, out TapeSink) (stats SeedStats, err error) {
	begun := time.Now()
	t := &tape{out: out}
	if err := e.Do(ctx, func(*machine.Machine) error { return e.beginTape(t) }); err != nil {
		return stats, err
	}
	defer func() {
		if err != nil {
			e.dropTape(t)
		}
	}()
	pages := e.m.Memory.Pages()
	set := make([]uint64, (pages+63)/64)
	for p := range pages {
		set[p/64] |= 1 << (p % 64)
	}
	left := pages
	for ; stats.Rounds < maxRounds && left > fewPages; stats.Rounds++ {
		if err := sendPages(ctx, out, mem.PageSet(set), e.m.Memory.Page, &stats); err != nil {
			return stats, err
		}
		clear(set)
		err := e.Do(ctx, func(m *machine.Machine) error {
			if e.tape != t {
				return errors.New(t.why)
			}
			return e.takeWatched(set)
		})
		if err != nil {
			return stats, err
		}
		left = count(set)
	}
	if left > maxLastPages {
		return stats, ErrTooBusy
	}
	last, err := e.tapeSnapshot(ctx, t, set, &stats)
	if err != nil {
		return stats, err
	}
	if err := sendPages(ctx, out, last.pages, last.page, &stats); err != nil {
		return stats, err
	}
	if err := out.Snapshot(last.snapshot, last.base); err != nil {
		return stats, fmt.Errorf("write the machine's state: %w", err)
	}
	stats.Total = time.Since(begun)
	return stats, nil
}

// beginTape has written pages noted. Inside Do.
func (e *Engine) beginTape(t *tape) error {
	switch {
	case e.tape != nil:
		return ErrTaped
	case e.seeding:
		return ErrSeeding
	case e.paused != nil:
		return ErrMoving
	}
	if e.primary == nil {
		t.own = true
		e.startTraps() // before the snapshot, which has them
		if err := e.m.LogDirty(true); err != nil {
			return err
		}
	}
	e.tape = t
	e.m.Watch(true)
	return nil
}

// takeWatched takes what was written. Where there is a secondary, it harvests at
// the same position, and both forget what resyncs brought.
func (e *Engine) takeWatched(set []uint64) error {
	if e.primary != nil && (!e.m.Harvested() || e.m.Remembers()) {
		if err := e.input(event.Entry{Kind: event.Traps, Set: e.m.Traps(), Every: e.m.HarvestEvery()}); err != nil {
			return err
		}
	}
	return e.m.TakeWatched(set)
}

// lastPages is what changed last, copied while the guest stood still.
type lastPages struct {
	snapshot *machine.Snapshot
	base     event.Base
	pages    []int
	at       map[int]int
	content  []byte
}

func (l *lastPages) page(p int) []byte { return l.content[l.at[p] : l.at[p]+mem.PageSize] }

// tapeSnapshot stops the guest for the end of the transfer, at the first position
// where that leaves no trace. From there on its log goes to the tape.
func (e *Engine) tapeSnapshot(ctx context.Context, t *tape, set []uint64, stats *SeedStats) (*lastPages, error) {
	done := make(chan error, 1)
	var l lastPages // the loop's until done
	var pause time.Duration
	err := e.Do(ctx, func(m *machine.Machine) error {
		if e.tape != t {
			return errors.New(t.why)
		}
		t.look = func(why string) bool {
			if why != "" {
				done <- errors.New(why)
				return true
			}
			stopped := time.Now()
			err := e.lastOf(t, set, &l)
			if errors.Is(err, machine.ErrNotHere) {
				return false
			}
			pause = time.Since(stopped)
			done <- err
			return true
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	select {
	case err := <-done:
		stats.Pause = pause
		return &l, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// lastOf takes the snapshot and what changed last, and lets the log begin.
func (e *Engine) lastOf(t *tape, set []uint64, l *lastPages) (err error) {
	if _, err := e.m.Peek(); err != nil {
		return err
	}
	if err := e.takeWatched(set); err != nil {
		return err
	}
	if l.snapshot, err = e.m.Peek(); err != nil { // which has the harvest
		return err
	}
	l.pages, l.at = mem.PageSet(set), map[int]int{}
	l.content = make([]byte, 0, len(l.pages)*mem.PageSize)
	for _, p := range l.pages {
		l.at[p] = len(l.content)
		l.content = append(l.content, e.m.Memory.Page(p)...)
	}
	l.base, err = e.rollTape(t)
	return err
}

// lookTape takes the snapshot that a tape waits for, if it can be had at this
// position. A guest that never comes to such a position by itself is kicked: where
// it is stopped then is one.
func (e *Engine) lookTape() {
	t := e.tape
	if t == nil || t.look == nil {
		return
	}
	if t.looks++; t.look("") {
		t.look = nil
	} else if t.looks%looksPerKick == 0 {
		e.m.Kick()
	}
}

// rollTape lets the log go to the tape, and says where it starts from.
func (e *Engine) rollTape(t *tape) (event.Base, error) {
	e.m.Watch(false)
	if e.primary == nil {
		e.tape = nil
		if err := e.Record(nil); err != nil {
			return event.Base{}, err
		}
		e.tape = t
	} else if err := e.flush(time.Now(), true); err != nil {
		return event.Base{}, err
	}
	t.live = true
	t.position, t.fingerprint = e.m.Position(), e.m.Fingerprint()
	return e.primary.Log.Base(), nil
}

// tapeLog gives the tape a batch of the log.
func (e *Engine) tapeLog(batch []byte) error {
	t := e.tape
	if t == nil || !t.live {
		return nil
	}
	if err := t.out.Log(batch); err != nil {
		return e.stopTape(t, err.Error())
	}
	t.position, t.fingerprint = e.m.Position(), e.m.Fingerprint()
	return nil
}

// EndTape ends the recording to out, if it is still on.
func (e *Engine) EndTape(ctx context.Context, out TapeSink, why string) error {
	return e.Do(ctx, func(*machine.Machine) error {
		if e.tape == nil || e.tape.out != out {
			return nil
		}
		return e.endTape(why)
	})
}

// endTape ends the recording, with all of the log so far. Inside Do.
func (e *Engine) endTape(why string) error {
	t := e.tape
	if t == nil {
		return nil
	}
	if t.live {
		if err := e.flush(time.Now(), true); err != nil {
			return err
		}
	}
	if e.tape != t {
		return nil // the flush has ended it
	}
	return e.stopTape(t, why)
}

// stopTape ends the recording where its log ends now.
func (e *Engine) stopTape(t *tape, why string) error {
	e.tape, t.why = nil, why
	if t.look != nil {
		t.look(why)
	}
	if t.live {
		t.out.End(t.position, t.fingerprint, why)
	}
	e.m.Watch(false)
	if !t.own {
		return nil
	}
	return e.EndLog()
}

// dropTape gives a tape up that didn't get to its log. The engine may have ended.
func (e *Engine) dropTape(t *tape) {
	e.later(func(*machine.Machine) error {
		if e.tape != t {
			return nil
		}
		return e.stopTape(t, "given up")
	})
}

// seedEnded notes that a state transfer has failed. The engine may have ended.
func (e *Engine) seedEnded() {
	e.later(func(*machine.Machine) error {
		e.seeding = false
		return nil
	})
}

// later has f run by the loop, and waits a while for a loop that may have ended.
func (e *Engine) later(f func(*machine.Machine) error) {
	ctx, cancel := context.WithTimeout(context.Background(), laterLimit)
	defer cancel()
	go func() {
		select {
		case <-e.over:
			cancel()
		case <-ctx.Done():
		}
	}()
	_ = e.Do(ctx, f) // a loop that has ended needs nothing undone
}

const laterLimit = 5 * time.Second

// lastTape ends the recording of a machine that stops running here.
func (e *Engine) lastTape() {
	if t := e.tape; t != nil {
		_ = e.endTape("the VM doesn't run here any more")
	}
}
