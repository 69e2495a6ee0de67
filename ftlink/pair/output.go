package pair

import (
	"fmt"
	"time"
)

// Output is what a machine wants done: one of the types below. Outputs of one
// Step are carried out in their order. Send, Arbiter, Fence, Register, StartSeed,
// Pause and Consume are only started; all others are complete before the next
// output, and before the next input.
type Output interface {
	fmt.Stringer
	output()
}

// Path is a way to the peer.
type Path uint8

// The paths.
const (
	Direct     Path = iota // the direct link
	Management             // the management network
	paths
)

// String is the path's name.
func (p Path) String() string {
	if p == Direct {
		return "direct"
	}
	return "management"
}

// Send sends a message to the peer; it may get lost.
type Send struct {
	Path Path
	Msg  Message
}

// ArbiterKind is an operation on the arbiter block.
type ArbiterKind uint8

// The operations.
const (
	Read ArbiterKind = 1 + iota
	Swap             // COMPARE AND WRITE of Old by New
)

// Arbiter asks for an operation on the arbiter block; ArbiterDone with the
// same Op answers it. At most one Swap is under way at a time, and any number
// of reads that is small.
type Arbiter struct {
	Op       uint64
	Kind     ArbiterKind
	Old, New Block // Swap
}

// Fence preempts the other host's reservation key and aborts its commands;
// FenceDone answers it. The local key is registered first where it isn't.
type Fence struct{ Host HostID }

// StartSeed starts to send the live guest's full state over the log stream,
// followed by its log from LSN 0. The state has to reach Seeded on the peer;
// a failure is Faulted{SeedFailed} here.
type StartSeed struct{ Seed Seed }

// EndSeed ends a seeding and the log that follows it, on either side, and
// resets the stream that carried it. Acknowledgements of it no longer count.
type EndSeed struct{ Seed Seed }

// GateMode is when a live copy's effects may leave.
type GateMode uint8

// The modes of the gate.
const (
	GateClosed GateMode = iota // nothing leaves
	GateAcked                  // what the secondary of the present seeding has acknowledged leaves
	GateOpen                   // everything leaves
)

// String is the mode's name.
func (g GateMode) String() string { return [...]string{"closed", "acked", "open"}[min(g, 2)] }

// Gate sets the output gate. After GateAcked comes a Gated input.
type Gate struct{ Mode GateMode }

// Consume tells the secondary to say, by Consumed, when it has executed all
// of the log that it has received. It goes on receiving meanwhile.
type Consume struct{}

// Seal tells the secondary to take no more log, and resets the stream: from
// here on nothing is received, so nothing is acknowledged.
type Seal struct{}

// Register lets this host write to the volume, before a switchover gives it the
// VM; Registered answers it. This copy has no disk request under way, and had
// none since its session with the volume began.
type Register struct{ Op uint64 }

// Pause stops the live guest where it is. Inputs are still taken there until no
// disk request is under way and every effect has left; then the log ends, and
// Paused answers. What comes later waits, or is dropped as on a busy wire.
type Pause struct{ Op uint64 }

// Resume lets a paused guest go on, whether Paused came or not.
type Resume struct{}

// Yield makes the paused copy the secondary of a seeding whose state it has: its
// own. The log follows from LSN 0, on the stream that carried its own log the
// other way. Some of it may have come already.
type Yield struct{ Seed Seed }

// TakeOver makes the secondary, which has executed all of the log, the primary
// of a seeding that needs no transfer: a log begins here at LSN 0, on the stream
// that carried the last one the other way, and effects wait for its
// acknowledgements. Nothing more of the old log is taken.
type TakeOver struct{ Seed Seed }

// Reissue submits every disk request that the log shows as issued and not as
// completed.
type Reissue struct{}

// GoLive lets the former secondary execute on its own. It comes after Reissue
// and Gate{GateOpen}, or after TakeOver and Reissue.
type GoLive struct{ Epoch uint64 }

// Boot starts the guest anew from its disk.
type Boot struct{ Epoch uint64 }

// Announce tells the network where the VM's address is now. It comes again
// when the former primary has halted.
type Announce struct{}

// Halt destroys the local copy's guest: its state and held effects are gone,
// and so is its session with the volume, so that none of its disk requests can
// take effect behind a later guest's back.
type Halt struct{}

// Event is for people, and for programs that watch.
type Event struct {
	At    time.Duration
	Epoch uint64 // of the block that is known
	Kind  Kind
	From  Role   // before the event
	Role  Role   // after it
	Cause string // why, one line; empty: What says no more than that
	What  string // one line
}

func (Send) output()      {}
func (Arbiter) output()   {}
func (Fence) output()     {}
func (StartSeed) output() {}
func (EndSeed) output()   {}
func (Gate) output()      {}
func (Consume) output()   {}
func (Seal) output()      {}
func (Register) output()  {}
func (Pause) output()     {}
func (Resume) output()    {}
func (Yield) output()     {}
func (TakeOver) output()  {}
func (Reissue) output()   {}
func (GoLive) output()    {}
func (Boot) output()      {}
func (Announce) output()  {}
func (Halt) output()      {}
func (Event) output()     {}

// String names the path, and the role that the message tells.
func (o Send) String() string { return fmt.Sprintf("send %v %v", o.Path, o.Msg.Role) }

// String says what is read, or swapped for what.
func (o Arbiter) String() string {
	if o.Kind == Read {
		return "read block"
	}
	return fmt.Sprintf("swap %v -> %v", o.Old, o.New)
}

// String names the host that is shut out.
func (o Fence) String() string { return fmt.Sprintf("fence %v", o.Host) }

// String names the seeding that begins.
func (o StartSeed) String() string { return fmt.Sprintf("start seed %v", o.Seed) }

// String names the seeding that ends.
func (o EndSeed) String() string { return fmt.Sprintf("end seed %v", o.Seed) }

// String names the gate's new mode.
func (o Gate) String() string { return fmt.Sprintf("gate %v", o.Mode) }

// String names the command.
func (Consume) String() string { return "consume" }

// String names the command.
func (Seal) String() string { return "seal" }

// String names the command.
func (Register) String() string { return "register" }

// String names the command.
func (Pause) String() string { return "pause" }

// String names the command.
func (Resume) String() string { return "resume" }

// String names the seeding that this copy follows from now on.
func (o Yield) String() string { return fmt.Sprintf("yield, follow seed %v", o.Seed) }

// String names the seeding that this copy leads from now on.
func (o TakeOver) String() string { return fmt.Sprintf("take over, lead seed %v", o.Seed) }

// String names the command.
func (Reissue) String() string { return "reissue" }

// String names the command and the epoch that was won.
func (o GoLive) String() string { return fmt.Sprintf("go live, epoch %d", o.Epoch) }

// String names the command and the epoch that was won.
func (o Boot) String() string { return fmt.Sprintf("boot, epoch %d", o.Epoch) }

// String names the command.
func (Announce) String() string { return "announce" }

// String names the command.
func (Halt) String() string { return "halt" }

// String is what happened, behind the role and the epoch.
func (o Event) String() string {
	return fmt.Sprintf("event (%v, epoch %d): %s", o.Role, o.Epoch, o.What)
}
