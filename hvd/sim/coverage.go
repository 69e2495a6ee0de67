package sim

import (
	"fmt"
	"strings"

	"github.com/duet-ft/duet/ftlink/pair"
)

// faultKind is what a step does.
type faultKind uint8

const (
	faultKill faultKind = iota
	faultFreeze
	faultCut
	faultLossy
	faultStall
	faultUnreachable
	faultReplies
	faultMedium
	faultFlip
	faultCrash
	faultLag
	faultPower
	moveStop
	moveSwitchover
	moveTest
	moveDrain
	moveUnprotect
	moveProtect
	faultKinds
)

var faultNames = [faultKinds]string{
	"process or host killed", "frozen", "path cut", "network slow and lossy", "volume stalls", "volume out of reach",
	"arbiter replies lost", "disk errors", "execution differs", "copy crashes", "secondary too slow", "power cut of both", "stopped by a user", "switchover",
	"failover tested", "host drained", "unprotected", "protected again",
}

// roleCount is one more than the last role; role 0 is a host without a process.
const roleCount = int(pair.Stopping) + 1

// Coverage counts what was done, by the role that the host's copy had. What
// concerns both hosts counts for the live copy.
type Coverage [faultKinds][roleCount]int

func (c *Coverage) add(k faultKind, role pair.Role) { c[k][role]++ }

// roleAt is the role of a host's copy; both is the live one's.
func (w *World) roleAt(host int) pair.Role {
	if host == both {
		for _, p := range w.hosts {
			if p != nil && p.machine.Role().Live() {
				return p.machine.Role()
			}
		}
		return 0
	}
	if p := w.hosts[host]; p != nil {
		return p.machine.Role()
	}
	return 0
}

const both = -1

// String is a table: a line for each kind of fault, a column for each role.
func (c Coverage) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-23s", "")
	for r := range roleCount {
		name := "none"
		if r > 0 {
			name = pair.Role(r).String()
		}
		fmt.Fprintf(&b, " %9s", name)
	}
	met, cells := 0, 0
	for k, counts := range c {
		fmt.Fprintf(&b, "\n%-23s", faultNames[k])
		for _, n := range counts {
			cells++
			if n > 0 {
				met++
			}
			fmt.Fprintf(&b, " %9d", n)
		}
	}
	fmt.Fprintf(&b, "\n%d of %d pairs of fault and role were met", met, cells)
	return b.String()
}
