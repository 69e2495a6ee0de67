// Package lockstep makes two executions of one machine the same: the recorder
// writes what happens to the primary's machine into the log, the replayer
// tells the secondary's machine when to do what, and the gate holds the
// primary's effects until the secondary has caught up with what made them.
//
// # Place
//
// Pure: it owns no goroutine, clock or socket. hvd/vm drives it around a real
// virtual machine (hvd/machine), hvd/sim around a simulated one. It imports
// hvd/event.
//
// # The machine
//
// A Machine executes deterministically between inputs. It counts its exits;
// that count is the position. Inputs are applied at a position, with the
// guest stopped. Run lets it execute to the next exit, which is one of
//
//	Sync     an exit that the guest itself makes: counted
//	Trapped  stopped at a counted trap because a stop was set: counted, and in
//	         the log as Stop
//	Pointed  stopped by the host at a point that can be found again: counted,
//	         and in the log as Point
//	Async    stopped anywhere by the host: not counted. The primary either
//	         runs on, or captures the state there as a Resync entry, which
//	         counts as an exit.
//
// # Primary and secondary
//
//	primary                                secondary
//	Run                                    Replayer.Next -> Run(stop)
//	  -> Trapped: Recorder.Stopped           -> same exit, same position
//	effects -> Recorder.Mark -> Gate.Push  Next -> Check: fingerprints equal?
//	inputs  -> Recorder.Input, Apply       Next -> Apply
//
// The replayer lets its machine run from position n only when the log holds
// something at a later position, or a stop after n: what comes next at n is
// then known to be complete. A Mark is what the primary writes to say so when
// it has nothing else to say.
//
// A DiskRef stands for a DiskDone whose data the log hasn't. Replayer.Resolve
// makes one of the other, or has the replay wait.
//
// # LSN
//
// An LSN is an offset in the log: a batch that starts at LSN s and has n
// bytes brings the log to s+n. An effect carries the LSN behind the Mark of
// its position. A secondary that holds the log up to there can make the
// effect itself.
package lockstep

import (
	"errors"
	"fmt"

	"github.com/duet-ft/duet/hvd/event"
)

// ExitKind says why Run returned.
type ExitKind uint8

// The kinds of exit; see the package comment.
const (
	Sync ExitKind = iota
	Trapped
	Pointed
	Async
)

// Exit is how a run ended.
type Exit struct {
	Kind  ExitKind
	Traps uint64       // Trapped: counted traps so far
	Point *event.Entry // Pointed: the entry for the log; Pos is the exit before
}

// Free is the stop that lets a machine run to its next own exit.
const Free = ^uint64(0)

// Machine executes deterministically between inputs. E is the type of its
// effects.
type Machine[E any] interface {
	// Run executes to the next exit; with a stop other than Free, at the
	// latest to the trap of that number.
	Run(stop uint64) (Exit, error)
	// Position is the number of counted exits so far.
	Position() uint64
	// Fingerprint is the rolling hash of everything up to Position.
	Fingerprint() uint64
	// Apply applies an input (any kind but Mark, Stop and Live) at the current
	// position. A Resync or a Point counts as an exit.
	Apply(event.Entry) error
	// TakeEffects returns what the guest did to the world since the last
	// call, in order.
	TakeEffects() []E
}

// ErrDiverged says that a secondary's execution differs from the primary's.
var ErrDiverged = errors.New("execution differs from the primary's")

// Divergence is an ErrDiverged that says what differs.
type Divergence struct {
	Kind     string // what differs, in a word: exit, memory, cpu ...
	Position uint64
	Detail   string // a clause for people
}

// Error says where and what.
func (d *Divergence) Error() string {
	return fmt.Sprintf("%v: at exit %d %s", ErrDiverged, d.Position, d.Detail)
}

// Is makes it an ErrDiverged.
func (d *Divergence) Is(target error) bool { return target == ErrDiverged }
