package pair

import "fmt"

// Kind is what an event is about.
type Kind uint8

// The kinds of events. One that changes the role has two roles, whatever its kind.
const (
	AboutRole       Kind = 1 + iota // a change of role that is about nothing else
	AboutSuspicion                  // the peer is suspected, or no longer
	AboutArbiter                    // how an operation on the block ended, and what it decides
	AboutFence                      // how a fence ended
	AboutDivergence                 // executions differ
	AboutSeed                       // a state transfer begins, ends or fails
	AboutVolume                     // the volume answers, or doesn't
	AboutCommand                    // what a user told this copy, or why that is refused
	kinds
)

var kindNames = [kinds]string{
	AboutRole: "role", AboutSuspicion: "suspicion", AboutArbiter: "arbiter", AboutFence: "fence",
	AboutDivergence: "divergence", AboutSeed: "seed", AboutVolume: "volume", AboutCommand: "command",
}

// String is the kind's name, as the API has it.
func (k Kind) String() string {
	if k < kinds && kindNames[k] != "" {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// about is the kind of a change of role that says nothing else.
func about(from, to Role) Kind {
	switch to {
	case Fencing, Primary:
		return AboutArbiter
	case Consuming, Resolving:
		return AboutSuspicion
	case Diverged:
		return AboutDivergence
	case Receiving, Seeding, Gating, Pairing:
		return AboutSeed
	case Alone:
		switch from {
		case Fencing:
			return AboutFence
		case Resolving:
			return AboutArbiter
		}
		return AboutSeed
	case Secondary:
		switch from {
		case Consuming:
			return AboutSuspicion
		case Yielding:
			return AboutArbiter
		}
		return AboutSeed
	}
	return AboutRole
}

// event tells of something that changes no role.
func (m *Machine) event(k Kind, cause, format string, args ...any) {
	m.tellOf(k, m.role, cause, format, args...)
}

func (m *Machine) tellOf(k Kind, from Role, cause, format string, args ...any) {
	m.emit(Event{
		At: m.now, Epoch: m.block.Epoch, Kind: k, From: from, Role: m.role, Cause: cause, What: fmt.Sprintf(format, args...),
	})
}

// enter changes the role, for a reason.
func (m *Machine) enter(r Role, format string, args ...any) {
	m.change(about(m.role, r), r, "", format, args...)
}

// change changes the role, and tells what that is about, and why if it says more
// than that.
func (m *Machine) change(k Kind, r Role, cause, format string, args ...any) {
	from := m.role
	m.role, m.since, m.tell = r, m.now, true
	m.tellOf(k, from, cause, format, args...)
}

// or is the first of two texts that isn't empty.
func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
