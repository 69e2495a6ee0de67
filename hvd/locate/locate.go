// Package locate finds an exact point of a guest's execution again that is no
// exit: "k conditional branches after the last counted exit, at this RIP with
// these registers".
//
// # Place
//
// A machine that stops a guest between two exits makes a Point of where it
// stands (Settle); the other copy goes there (Seek). The decisions are pure;
// what they need of a CPU is the interface Target. Stepper is the Target that
// counts by single-stepping: slow, exact, everywhere. Counter counts by the
// host's performance counters. Of ours it imports hvd/kvm, hvd/mem, hvd/vcpu.
//
// # Why branches, and what else a point needs
//
// Of the events that processors count, retired conditional branches are the
// ones that are counted exactly on all of them: instructions are not (rr,
// "Engineering Record and Replay for Deployability", section 2.4). Code between
// two conditional branches runs straight on or in a circle without end, so a
// count, RIP, RCX (repeated string instructions) and a hash of the registers
// name one point. A circle without a conditional branch that comes back to the
// same registers has points that can't be told apart; a guest gets out of one
// only by an interrupt or a fault.
//
// # The primary: Settle
//
// A point is never inside a repeated string instruction (its progress at an
// interrupt is the CPU's own affair), in the shadow of STI, MOV SS or POP SS,
// nor with interrupts off, where nothing could be injected anyway. Settle
// steps on until none of these holds. An exit on the way is as good: the input
// goes there.
//
// # The secondary: Seek
//
// The interrupt of an overflowing counter comes late, by up to skid events. So
// the counter is made to overflow that much short of k; the rest is gone by a
// breakpoint at RIP.
//
//	        k <= skid
//	start ------------------------+
//	  |                           |     at RIP, all is equal
//	  | k > skid                  |   +----------------------> found
//	  v                           v   |
//	 far ----- overflow -------> near-+-- at RIP, count <= k --> stepping
//	  run to k - skid             ^   |                             |
//	                              |   | count > k                   |
//	                              |   v                             |
//	                              | missed <---- an exit, count > k-+
//	                              +----------- elsewhere -----------+
//
// In near, the guest runs to the breakpoint, and the counter overflows at k+1 in
// case it never gets there; in stepping, it makes one instruction, past the
// breakpoint. An exit in any state is a miss: the executions differ.
package locate

import (
	"errors"
	"fmt"
)

// Why says what ended a run or a step of a Target.
type Why uint8

// What ends a run.
const (
	Stepped    Why = iota // one instruction was made
	Overflowed            // the counter reached what Overflow said, or went past it
	Broke                 // the breakpoint, before its instruction
	Exited                // an exit of the guest's own
)

// Regs is what a Target tells of the CPU between two instructions.
type Regs struct {
	RIP, RCX uint64
	Hash     uint64 // of all general registers and RFLAGS without RF and TF
	IF       bool   // interrupts are on
	Shadow   bool   // the next instruction is in the shadow of the last one, or an event comes before it
	Repeated bool   // RIP is at a repeated string instruction
}

// Target is a CPU under control.
type Target interface {
	// Count is how many conditional branches were retired since the last
	// counted exit.
	Count() (uint64, error)
	// Regs are the registers now.
	Regs() (Regs, error)
	// Overflow makes Run end once Count has reached n; it may end late, by as
	// many events as the Target's skid.
	Overflow(n uint64) error
	// SetBreakpoint makes Run end before the instruction at rip; on false takes
	// it away. There is one at a time.
	SetBreakpoint(rip uint64, on bool) error
	// Run lets the guest run; with a breakpoint at RIP, it ends at once. A Kick
	// of the CPU ends it with kvm.ErrInterrupted.
	Run() (Why, error)
	// Step makes one instruction (one round of a repeated one), and ends with
	// Stepped or Exited. No breakpoint is set.
	Step() (Why, error)
}

// Point is a point between two exits.
type Point struct {
	Count    uint64 // conditional branches since the last counted exit
	RIP, RCX uint64
	Hash     uint64 // Regs.Hash
}

// ErrMissed says that a point wasn't found where it should be.
var ErrMissed = errors.New("the point of execution wasn't found")

// Settle steps t on to the next point that may be used and returns it. ok is
// false if limit steps didn't suffice, or if the guest made an exit (exited).
func Settle(t Target, limit int) (p Point, ok, exited bool, err error) {
	for n := 0; ; n++ {
		r, err := t.Regs()
		if err != nil {
			return p, false, false, err
		}
		if r.IF && !r.Shadow && !r.Repeated {
			count, err := t.Count()
			return Point{Count: count, RIP: r.RIP, RCX: r.RCX, Hash: r.Hash}, err == nil, false, err
		}
		if n == limit {
			return p, false, false, nil
		}
		why, err := t.Step()
		if err != nil || why == Exited {
			return p, false, why == Exited, err
		}
	}
}

// Order is what a Seeker wants done next.
type Order uint8

// The orders.
const (
	Found Order = iota // the point is here
	Far                // run until the counter overflows at Seeker.Overflow
	Near               // the same, and to the breakpoint at the point's RIP
	Past               // one step, without the breakpoint
)

// Seeker is the state machine of the package comment: pure.
type Seeker struct {
	Want     Point
	Skid     uint64 // the most events that an overflow comes late
	Overflow uint64 // for Far and Near

	Breaks, Steps int // breakpoints met and steps made so far
}

// Start is the first order; count and r are those of the start.
func (s *Seeker) Start(count uint64, r Regs) (Order, error) {
	if s.Want.Count > s.Skid && count < s.Want.Count-s.Skid {
		s.Overflow = s.Want.Count - s.Skid
		return Far, nil
	}
	return s.near(count, r)
}

// Next is the order after what why, count and r tell.
func (s *Seeker) Next(why Why, count uint64, r Regs) (Order, error) {
	switch why {
	case Exited:
		return 0, fmt.Errorf("%w: the guest made an exit after %d of %d branches", ErrMissed, count, s.Want.Count)
	case Broke:
		s.Breaks++
	case Stepped:
		s.Steps++
	}
	return s.near(count, r)
}

func (s *Seeker) near(count uint64, r Regs) (Order, error) {
	switch {
	case count > s.Want.Count:
		return 0, fmt.Errorf("%w: after %d branches instead of %d, at %#x instead of %#x", ErrMissed,
			count, s.Want.Count, r.RIP, s.Want.RIP)
	case r.RIP != s.Want.RIP:
		s.Overflow = s.Want.Count + 1
		return Near, nil
	case count == s.Want.Count && r.RCX == s.Want.RCX && r.Hash == s.Want.Hash:
		return Found, nil
	}
	return Past, nil
}

// Seek takes t, which stands behind the same counted exit, to s.Want.
func Seek(t Target, s *Seeker) error {
	ask := func(why Why, begin bool) (Order, error) {
		count, err := t.Count()
		if err != nil {
			return 0, err
		}
		r, err := t.Regs()
		if err != nil {
			return 0, err
		}
		if begin {
			return s.Start(count, r)
		}
		return s.Next(why, count, r)
	}
	order, err := ask(0, true)
	for err == nil && order != Found {
		var why Why
		if why, err = carryOut(t, s, order); err == nil {
			order, err = ask(why, false)
		}
	}
	return err
}

func carryOut(t Target, s *Seeker, order Order) (Why, error) {
	if order == Past {
		return t.Step()
	}
	if err := t.Overflow(s.Overflow); err != nil {
		return 0, err
	}
	if order == Far {
		return t.Run()
	}
	if err := t.SetBreakpoint(s.Want.RIP, true); err != nil {
		return 0, err
	}
	why, err := t.Run()
	return why, errors.Join(err, t.SetBreakpoint(s.Want.RIP, false))
}
