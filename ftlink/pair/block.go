package pair

import (
	"encoding/hex"
	"fmt"
)

// HostID names a host of the pair. Both hosts agree on it (it derives from
// the host's key); zero names nobody.
type HostID uint64

// String is the ID in hex, or "nobody".
func (h HostID) String() string {
	if h == 0 {
		return "nobody"
	}
	return fmt.Sprintf("%x", uint64(h))
}

// UUID identifies a VM.
type UUID [16]byte

// String is the UUID in hex, without dashes.
func (u UUID) String() string { return hex.EncodeToString(u[:]) }

// Nonce identifies one write of the arbiter block: the incarnation that made
// it and a counter within. No two writes share one.
type Nonce struct {
	Incarnation uint64
	N           uint64
}

// Seed identifies one seeding: the incarnation of the copy that was live, and
// a counter within that grows. The zero value is no seeding.
type Seed struct {
	Incarnation uint64
	N           uint64
}

// String is the incarnation in hex, a dot and the counter, or "none".
func (s Seed) String() string {
	if s == (Seed{}) {
		return "none"
	}
	return fmt.Sprintf("%x.%d", s.Incarnation, s.N)
}

// BlockKind is what the arbiter block says.
type BlockKind uint8

// The kinds of arbiter block.
const (
	Free BlockKind = 1 + iota // the VM is stopped
	Solo                      // Owner alone may run the VM
	Pair                      // Owner runs it, Secondary holds the state of Seed: either may turn it into Solo
)

// String is the kind's name, in capitals as everywhere.
func (k BlockKind) String() string {
	switch k {
	case Free:
		return "FREE"
	case Solo:
		return "SOLO"
	case Pair:
		return "PAIR"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Block is the arbiter block of one VM. It changes only as a whole, by COMPARE
// AND WRITE, and each change adds one to Epoch and brings a new Nonce. So no
// value ever comes back, and a write that was delayed on its way can't land
// after another one has.
type Block struct {
	VM        UUID
	Kind      BlockKind
	Epoch     uint64
	Owner     HostID // Solo, Pair: the host that runs the VM
	Secondary HostID // Pair
	Seed      Seed   // Pair: what the secondary was seeded with
	Nonce     Nonce
}

// String is the kind with what counts in it: epoch, owner, secondary and seed.
func (b Block) String() string {
	switch b.Kind {
	case Free:
		return fmt.Sprintf("FREE(%d)", b.Epoch)
	case Solo:
		return fmt.Sprintf("SOLO(%d, %v)", b.Epoch, b.Owner)
	case Pair:
		return fmt.Sprintf("PAIR(%d, %v, %v, seed %v)", b.Epoch, b.Owner, b.Secondary, b.Seed)
	}
	return b.Kind.String()
}
