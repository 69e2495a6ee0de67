package vm

import (
	"math/rand/v2"

	"github.com/duet-ft/duet/hvd/kvm"
)

// soakTraps draws the set of traps that a run counts.
func soakTraps(r *rand.Rand) uint64 {
	return []uint64{0, kvm.FlagCR3, kvm.FlagPF, kvm.FlagCR3 | kvm.FlagPF}[r.IntN(4)]
}
