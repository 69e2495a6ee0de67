package playback

import (
	"slices"

	"github.com/duet-ft/duet/hvd/recording/gdb"
)

// maxBackSteps bounds the instructions that are stepped through to find the one
// before a breakpoint or an exit.
const maxBackSteps = 1 << 20

// ReverseStep implements gdb.Target.
func (d *Debugger) ReverseStep() gdb.Stop {
	d.asked.Store(false)
	to := d.at.clone()
	n := len(to.moves)
	var err error
	switch {
	case n > 0 && to.moves[n-1].steps > 0:
		if to.moves[n-1].steps--; to.moves[n-1] == (move{}) {
			to.moves = nil
		}
		err = d.goTo(to)
	case n > 0:
		address := to.moves[n-1].address
		if to.moves[n-1].times--; to.moves[n-1].times == 0 {
			to.moves = to.moves[:n-1]
		}
		err = d.lastBefore(to, nil, func() bool { return d.rip() == address })
	case to.exit == d.p.Start:
		return gdb.Stop{Why: gdb.AtBegin}
	default:
		// The instruction that made the exit is where the guest stands, or it is a
		// HLT behind which it stands. Nothing else is known to begin there.
		hints := []uint64{d.rip()}
		var b [1]byte
		if d.Memory(hints[0]-1, b[:]) == 1 && b[0] == 0xf4 {
			hints = append(hints, hints[0]-1)
		}
		hints = slices.DeleteFunc(hints, func(a uint64) bool { return !d.Breakable(a) })
		err = d.lastBefore(point{exit: to.exit - 1}, hints, nil)
	}
	if err != nil {
		return d.failed(err)
	}
	return gdb.Stop{Why: gdb.Stepped}
}

// lastBefore goes to the last instruction behind a point that is before the next
// exit, and before the first place of which found says true. hints are addresses
// that are met shortly before the exit: what comes before the last arrival there
// isn't stepped through.
func (d *Debugger) lastBefore(from point, hints []uint64, found func() bool) error {
	if err := d.goTo(from); err != nil {
		return err
	}
	last := from
	if len(hints) > 0 {
		for o := arrived; o == arrived; {
			var err error
			if o, err = d.beyond(hints); err != nil {
				return err
			}
			if o == arrived {
				last = d.at.clone()
			}
		}
		if err := d.goTo(last); err != nil {
			return err
		}
	}
	for range maxBackSteps {
		before := d.at.clone()
		o, err := d.once(true, nil)
		if err != nil {
			return err
		}
		last = before
		if o != stepped || found != nil && found() {
			break
		}
	}
	return d.goTo(last)
}

// ReverseContinue implements gdb.Target: it executes forwards from one checkpoint
// after the other, the latest first, and remembers the last arrival before the
// present point.
func (d *Debugger) ReverseContinue(breaks []uint64) gdb.Stop {
	d.asked.Store(false)
	end := d.at.clone()
	for i := d.p.history.before(end.exit); i >= 0; i-- {
		start := d.p.history.points[i].position()
		if len(breaks) == 0 && i > 0 {
			continue
		}
		last, err := d.lastArrival(i, end, breaks)
		if err != nil {
			return d.failed(err)
		}
		if last != nil {
			if err := d.goTo(*last); err != nil {
				return d.failed(err)
			}
			return gdb.Stop{Why: gdb.AtBreak}
		}
		end = point{exit: start}
		if d.asked.Load() {
			if err := d.goTo(end); err != nil {
				return d.failed(err)
			}
			return gdb.Stop{Why: gdb.Interrupted}
		}
	}
	if err := d.goTo(point{exit: d.p.Start}); err != nil {
		return d.failed(err)
	}
	return gdb.Stop{Why: gdb.AtBegin}
}

// lastArrival is the last place before end, from a checkpoint on, at one of the
// addresses; nil if there is none.
func (d *Debugger) lastArrival(from int, end point, breaks []uint64) (last *point, err error) {
	d.deaf = true
	defer func() { d.deaf = false }()
	if err := d.p.back(from); err != nil {
		return nil, err
	}
	d.at = point{exit: d.p.Machine.Position()}
	if len(breaks) == 0 {
		return nil, nil
	}
	note := func() {
		p := d.at.clone()
		last = &p
	}
	for d.at.exit < end.exit {
		o, err := d.beyond(breaks)
		if err != nil {
			return nil, err
		}
		switch o {
		case arrived:
			note()
		case over:
			return last, nil
		}
	}
	for i, m := range end.moves {
		final := i == len(end.moves)-1
		for times := m.times; times > 0; {
			o, err := d.beyond(append([]uint64{m.address}, breaks...))
			if err != nil || o != arrived {
				return last, err
			}
			here := d.rip()
			if here == m.address {
				times--
			}
			if slices.Contains(breaks, here) && !(final && times == 0 && m.steps == 0) {
				note()
			}
		}
		for left := m.steps; left > 0; left-- {
			if o, err := d.once(true, nil); err != nil || o != stepped {
				return last, err
			}
			if slices.Contains(breaks, d.rip()) && !(final && left == 1) {
				note()
			}
		}
	}
	return last, nil
}
