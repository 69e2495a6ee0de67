package pair

import "fmt"

// Role is what one copy is. The package comment has the diagram.
type Role uint8

// The roles.
const (
	Standby   Role = 1 + iota // holds nothing
	Starting                  // wins the block to boot the VM from its disk
	Receiving                 // is being seeded, incomplete
	Secondary                 // holds the full state of a seeding and follows the log
	Diverged                  // was secondary; its execution differs from the primary's
	Consuming                 // suspects the primary; executes the log that it has
	Claiming                  // asks for the block, so that it may go live
	Fencing                   // owns the block; shuts the other host out of the volume
	Alone                     // live, alone, effects leave at once
	Seeding                   // the same, sends its state to a standby
	Gating                    // the standby has the state; waits until nothing that left is unknown to it
	Pairing                   // writes the PAIR block
	Primary                   // live, effects wait for the secondary
	Resolving                 // live, has lost its secondary; asks for the block, effects wait
	Pausing                   // live, is to hand over: the guest stands still until nothing of it is under way
	Yielding                  // live, the guest stands still: writes the PAIR block with the roles exchanged
	Stopping                  // live, the VM is to stop: writes the FREE block
	roles
)

var roleNames = [roles]string{
	Standby: "standby", Starting: "starting", Receiving: "receiving", Secondary: "secondary", Diverged: "diverged",
	Consuming: "consuming", Claiming: "claiming", Fencing: "fencing", Alone: "solo", Seeding: "seeding",
	Gating: "gating", Pairing: "pairing", Primary: "primary", Resolving: "resolving", Pausing: "pausing", Yielding: "yielding", Stopping: "stopping",
}

// String is the role's name: what events, logs and the API say.
func (r Role) String() string {
	if r < roles && roleNames[r] != "" {
		return roleNames[r]
	}
	return fmt.Sprintf("role(%d)", uint8(r))
}

// Live says that a copy in this role executes the guest by itself, or did so
// last: in Pausing and Yielding the guest stands still.
func (r Role) Live() bool { return r >= Alone && r <= Stopping }

// holds says that a copy in this role has guest state that a secondary or
// primary goes on with, so that nobody should start the VM from its disk.
func (r Role) holds() bool { return r.Live() || r >= Secondary && r <= Fencing && r != Diverged }

// owns says that a copy in this role won the block in the epoch it tells.
func (r Role) owns() bool { return r.Live() || r == Fencing }
