package torture

import (
	"fmt"

	"github.com/duet-ft/duet/hvd/event"
)

// Place is where a plan acts.
type Place uint8

// The places.
const (
	Exits  Place = iota // after an exit of the guest's own
	Traps               // after a counted trap, at which the guest is stopped
	Points              // between two instructions, at a point of hvd/locate, where there may be one
	Kicks               // between any two instructions, by a resync
	places              // how many there are
)

// Action is what a plan does there.
type Action uint8

// The actions.
const (
	Timer   Action = iota // the timer fires
	Console               // a key is typed
	Frame                 // a frame arrives
	Power                 // the power button is pressed
	All                   // all of these at once
	Behind                // the timer fires, and is due again
	Resync                // nothing: the guest is kicked or stopped, and no more
	Actions               // how many there are
)

var (
	placeNames  = [places]string{Exits: "exits", Traps: "traps", Points: "points", Kicks: "kicks"}
	actionNames = [...]string{
		Timer: "timer", Console: "console", Frame: "frame", Power: "power", All: "all", Behind: "behind", Resync: "resync",
	}
)

// Plan says where a run of the guest is attacked, and how. The attacks are at
// First, and with Every more than 0 at First+Every, First+2*Every and so on.
// Instructions are counted only behind each exit in so many; 0 is each one.
//
// Behind one exit there are at most Most attacks between instructions. Interrupts
// end without an exit, so a guest that is interrupted again and again on its way
// out of the handler wouldn't get on.
type Plan struct {
	Place        Place
	Action       Action
	First, Every uint64
	Exits        uint64
	Most         int
}

func (p Plan) String() string {
	return fmt.Sprintf("%s at %s %d+%dn", actionNames[p.Action], placeNames[p.Place], p.First, p.Every)
}

// Walks says whether instructions are counted behind the guest's exit number n.
func (p Plan) Walks(n uint64) bool { return p.Exits == 0 || n%p.Exits == p.First%p.Exits }

// At says whether the plan acts at place number n.
func (p Plan) At(n uint64) bool {
	if n < p.First || p.Every == 0 {
		return n == p.First
	}
	return (n-p.First)%p.Every == 0
}

// Next is the first place above n where the plan acts; ok is false if there
// is none.
func (p Plan) Next(n uint64) (at uint64, ok bool) {
	if n < p.First {
		return p.First, true
	}
	if p.Every == 0 {
		return 0, false
	}
	return n + p.Every - (n-p.First)%p.Every, true
}

// Sparse are plans that act at each of n places once, in a run of its own.
func Sparse(place Place, action Action, n uint64) []Plan {
	return plans(place, action, n, 0)
}

// Dense are plans that, among them, act at each place once; each acts at every
// one in so many.
func Dense(place Place, action Action, every uint64) []Plan {
	return plans(place, action, every, every)
}

func plans(place Place, action Action, n, every uint64) []Plan {
	out := make([]Plan, n)
	for i := range out {
		out[i] = Plan{Place: place, Action: action, First: uint64(i), Every: every}
	}
	return out
}

// Inputs are the entries of an action other than Resync at place n; what a key
// or frame holds depends on n alone.
func (a Action) Inputs(n uint64) []event.Entry {
	frame := make([]byte, 60+n%300)
	for i := range frame {
		frame[i] = byte(uint64(i)*n + n>>3)
	}
	all := []event.Entry{
		Timer: {Kind: event.Deadline}, Console: {Kind: event.Console, Data: []byte{byte('a' + n%26)}},
		Frame: {Kind: event.Frame, Data: frame}, Power: {Kind: event.Power},
	}
	switch a {
	case Timer, Console, Frame, Power:
		return all[a : a+1]
	case All:
		return all
	case Behind:
		return []event.Entry{all[Timer], {Kind: event.Behind}}
	}
	return nil
}
