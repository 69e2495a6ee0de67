package vm

import (
	"math/rand/v2"
	"strings"

	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/trapset"
)

// soakTraps draws what a run counts: what follows the load, as in earnest, sets
// that change all the time, or one set for good. name says which.
func soakTraps(r *rand.Rand) (name string, choose func(trapset.Load) (trapset.Choice, bool)) {
	switch r.IntN(4) {
	case 0, 1:
		return "chosen by the load", nil
	case 2:
		return "changing", changing(r.Uint64())
	}
	set, every := r.Uint64()&kvm.Counted, 1+r.Uint64N(trapset.MaxEvery)
	return strings.Join(append(TrapNames(set), "time"), "+"), func(l trapset.Load) (trapset.Choice, bool) {
		c := trapset.Choice{Set: set, Every: every}
		return c, l.Set != c.Set || l.Every != c.Every
	}
}
