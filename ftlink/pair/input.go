package pair

import (
	"fmt"
	"time"
)

// Input is what happens to a machine: one of the types below.
type Input interface{ input() }

// Tick says what time it is: monotonic, from any fixed point. A machine knows
// no other clock; tick it at least twice a heartbeat.
type Tick struct{ Now time.Duration }

// Received is a message of the peer that came in over a path.
type Received struct {
	Path Path
	Msg  Message
}

// LinkUp says that the log stream to the peer stands; Incarnation is that of
// the process at its other end. A stream that broke is not resumed: what
// comes next is a new one.
type LinkUp struct{ Incarnation uint64 }

// LinkDown says that the log stream broke. The seeding or log that it carried
// ends with it: nothing of it is sent on the next stream.
type LinkDown struct{}

// Answer is how an arbiter operation ended.
type Answer uint8

// The answers. A swap's outcome is unknown when its reply was lost and
// reading back settled nothing: the same swap is then asked for again, which
// is safe because the new block has its own nonce.
const (
	Unknown Answer = iota // nothing is known; ArbiterDone.Err says why
	Swapped               // the block holds New
	Current               // the block holds ArbiterDone.Block; as the answer to a swap: not swapped
)

// ArbiterDone answers an Arbiter output. Each is answered exactly once, in
// bounded time.
type ArbiterDone struct {
	Op     uint64
	Answer Answer
	Block  Block
	Err    error
}

// FenceDone answers a Fence output; nil says that nothing which the fenced
// host issued can reach the volume any more.
type FenceDone struct{ Err error }

// SeedBegin says that the peer's state starts to arrive.
type SeedBegin struct{ Seed Seed }

// Seeded says that the full state of a seeding is restored here and that the
// log follows.
type Seeded struct{ Seed Seed }

// Gated follows Gate{Acked}: LSN is the length of the log at that moment, so
// every effect that left before is explained by the log up to LSN.
type Gated struct{ LSN uint64 }

// Progress says how far a secondary is in the log of the present seeding: on
// the secondary itself, and on the primary as acknowledged on the stream.
type Progress struct {
	Received uint64 // holds the log up to here
	Verified uint64 // has executed it up to here, with equal fingerprints
}

// Consumed answers Consume: everything received is executed, but for what needs
// something that only the primary has. Nothing of that was acknowledged.
type Consumed struct{ LSN uint64 }

// Registered answers a Register output, by its Op; nil says that this host may write to the volume.
type Registered struct {
	Op  uint64
	Err error
}

// Paused answers a Pause output, by its Op: the guest stands still at the end of the log, which is
// LSN long; no disk request is under way, and every effect has left.
type Paused struct {
	Op  uint64
	LSN uint64
}

// Fault is why a copy can't go on as it is.
type Fault uint8

// The faults.
const (
	Crashed    Fault = 1 + iota // this copy is broken, through no fault of the guest
	Diverge                     // secondary: execution differs from the primary's, or the log can't be followed
	Shutdown                    // live: the guest switched itself off and all its effects have left
	SeedFailed                  // either side: the transfer failed
	Lagging                     // live: the secondary is too far behind
	Refused                     // live: the volume refused a write, the key is fenced
	Unbootable                  // live: the guest's disk has nothing to boot, as long as nobody changes it
)

var faultNames = [...]string{
	Crashed: "the copy crashed", Diverge: "the secondary's execution diverged", Shutdown: "the guest switched itself off",
	SeedFailed: "the state transfer failed", Lagging: "the secondary is too far behind", Refused: "the volume refused a write",
	Unbootable: "the guest can't be booted from its disk",
}

// String says what is wrong, as part of a sentence.
func (f Fault) String() string {
	if int(f) < len(faultNames) && faultNames[f] != "" {
		return faultNames[f]
	}
	return fmt.Sprintf("fault(%d)", uint8(f))
}

// Faulted reports a fault of the local copy.
type Faulted struct{ Fault Fault }

// Verb is what a user asks for.
type Verb uint8

// The commands.
const (
	Start        Verb = 1 + iota // boot a VM that is stopped
	Stop                         // switch the VM off, now
	ForceStart                   // boot the VM here although the block gives it to the other host, which the user knows to be off
	Switchover                   // exchange the roles of the two copies, with nothing lost
	TestFailover                 // drop the live copy, so that the secondary takes over
	Drain                        // the VM is to leave this host, and no copy of it to be started or received here
	Undrain                      // the end of that
	Unprotect                    // the VM is to run without a secondary
	Protect                      // the end of that
)

// Command is a user's.
type Command struct{ Verb Verb }

func (Tick) input()        {}
func (Received) input()    {}
func (LinkUp) input()      {}
func (LinkDown) input()    {}
func (ArbiterDone) input() {}
func (FenceDone) input()   {}
func (SeedBegin) input()   {}
func (Seeded) input()      {}
func (Gated) input()       {}
func (Progress) input()    {}
func (Consumed) input()    {}
func (Registered) input()  {}
func (Paused) input()      {}
func (Faulted) input()     {}
func (Command) input()     {}
