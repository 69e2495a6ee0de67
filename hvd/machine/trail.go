package machine

import (
	"fmt"

	"github.com/duet-ft/duet/hvd/kvm"
)

// Step is one counted exit, as the fingerprint sees it: what to compare when two
// executions differ.
type Step struct {
	Position, Fingerprint uint64
	Reason                uint32
	Addr                  uint64 // port, address or MSR
	Data                  uint64 // in or out
	Traps, Reads          uint64
	Regs                  kvm.Regs
}

// crumb is the exit in short.
func (s *Step) crumb() Crumb {
	return Crumb{
		Position: s.Position, Fingerprint: s.Fingerprint, Reason: s.Reason, Addr: s.Addr, Data: s.Data,
		RIP: s.Regs.RIP, Traps: s.Traps, Reads: s.Reads,
	}
}

// trailLength is how many exits a logged execution remembers: more than a
// secondary lags behind before its primary slows down.
const trailLength = 1 << 15

// Crumb is a counted exit in short: enough to say where two executions of a
// guest differ first.
type Crumb struct {
	Position    uint64 `json:"position"`
	Fingerprint uint64 `json:"fingerprint"` // behind it
	Reason      uint32 `json:"reason"`      // KVM's; 0 for a resync, or reasonPoint
	Addr        uint64 `json:"addr"`        // port, address or MSR; an input has bit 16 set
	Data        uint64 `json:"data"`        // the first 8 bytes
	RIP         uint64 `json:"rip"`
	Traps       uint64 `json:"traps"`
	Reads       uint64 `json:"reads"`
}

// reasonPoint is none of KVM's.
const reasonPoint = ^uint32(0)

// String describes the exit for people.
func (c Crumb) String() string {
	what := fmt.Sprintf("exit of kind %d", c.Reason)
	switch c.Reason {
	case 0:
		what = "resync"
	case reasonPoint:
		what = fmt.Sprintf("point after %d branches", c.Data)
	case kvm.ExitIO:
		what = fmt.Sprintf("port %#x, data %#x", c.Addr&0xffff, c.Data)
	case kvm.ExitMMIO:
		what = fmt.Sprintf("device memory %#x, data %#x", c.Addr, c.Data)
	case kvm.ExitHLT:
		what = "halt"
	case kvm.ExitIRQWindowOpen:
		what = "interrupt window"
	case kvm.ExitReadMSR, kvm.ExitWriteMSR:
		what = fmt.Sprintf("MSR %#x, data %#x", c.Addr, c.Data)
	case kvm.ExitTrap:
		what = "counted trap"
	case kvm.ExitTSC:
		what = "time-stamp read"
	}
	return fmt.Sprintf("%s at RIP %#x, %d traps, %d reads, fingerprint %016x", what, c.RIP, c.Traps, c.Reads, c.Fingerprint)
}

// trail is a ring of the last exits.
type trail struct {
	ring []Crumb
	n    uint64 // crumbs dropped so far
}

func (t *trail) drop(c Crumb) {
	if len(t.ring) == 0 {
		return
	}
	t.ring[t.n%uint64(len(t.ring))] = c
	t.n++
}

// after lists at most limit crumbs behind position, in order.
func (t *trail) after(position uint64, limit int) []Crumb {
	var out []Crumb
	for i := t.n - min(t.n, uint64(len(t.ring))); i < t.n && len(out) < limit; i++ {
		if c := t.ring[i%uint64(len(t.ring))]; c.Position > position {
			out = append(out, c)
		}
	}
	return out
}

// Trail lists at most limit exits of this logged execution behind a position,
// in order. The older ones are forgotten.
func (m *Machine) Trail(position uint64, limit int) []Crumb { return m.trail.after(position, limit) }

// FirstDifference compares exits of another copy with this one's trail. ok says
// that there is a difference; here is the zero Crumb if this copy has made no
// exit there.
func (m *Machine) FirstDifference(theirs []Crumb) (here, there Crumb, ok bool) {
	if len(theirs) == 0 {
		return here, there, false
	}
	mine := m.trail.after(theirs[0].Position-1, len(m.trail.ring))
	at := make(map[uint64]Crumb, len(mine))
	for _, c := range mine {
		at[c.Position] = c
	}
	for _, c := range theirs {
		if own := at[c.Position]; own != c {
			return own, c, true
		}
	}
	return here, there, false
}
