package vm

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/machine"
)

// Stats are an engine's live counters, since it was made.
type Stats struct {
	Exits, Ticks, Inputs atomic.Uint64 // counted exits, timer deadlines, logged inputs
	Resyncs, ResyncBytes atomic.Uint64
	// Of a primary: logged inputs by what the guest had come to when they were
	// applied, and the set of traps in force (flags of kvm.Counted).
	AtExit, AtTrap, AtPoint, AtResync, Traps atomic.Uint64
	Points                                   atomic.Uint64     // of a primary: kicks that ended at a point
	byTrap                                   [kvm.Kinds]uint64 // AtTrap by kind; the loop's
	LogBytes                                 atomic.Uint64
	// Of a primary: completed reads of disks in the log, those of them that are
	// references, and the bytes of log that all of them and the references take.
	Reads, ReadRefs, ReadLogBytes, RefLogBytes atomic.Uint64
	Throttled                                  atomic.Uint64 // times the guest was slowed down for its secondary
	Divergences                                atomic.Uint64 // of this copy
	Position, Clock                            atomic.Uint64 // counted exits; guest time, ns
	LSN, Verified                              atomic.Uint64 // primary: written; secondary: received, and verified

	faults atomic.Pointer[[]string]

	mu     sync.Mutex
	delays [1024]time.Duration // of the last effects, a ring
	n      int
}

// ran notes an exit.
func (s *Stats) ran(m *machine.Machine) {
	s.Exits.Add(1)
	s.Position.Store(m.Position())
	s.Clock.Store(m.Clock())
}

// Faults are the devices that rest because the guest's driver broke a rule, and
// which, one line each, as of the last second or so of guest time.
func (s *Stats) Faults() []string {
	if f := s.faults.Load(); f != nil {
		return *f
	}
	return nil
}

// ticked counts a timer's deadline, and now and then looks which devices rest.
func (s *Stats) ticked(resting func() []string) {
	if s.Ticks.Add(1)%ticksPerLook == 1 {
		f := resting()
		s.faults.Store(&f)
	}
}

// ticksPerLook is a second at Debian's 250 Hz.
const ticksPerLook = 250

// delay notes how long an effect was held.
func (s *Stats) delay(d time.Duration) {
	s.mu.Lock()
	s.delays[s.n%len(s.delays)] = d
	s.n++
	s.mu.Unlock()
}

// Delays are the median and the 99th percentile of how long the last 1,024
// effects waited for the output rule.
func (s *Stats) Delays() (median, p99 time.Duration) {
	s.mu.Lock()
	d := slices.Clone(s.delays[:min(s.n, len(s.delays))])
	s.mu.Unlock()
	if len(d) == 0 {
		return 0, 0
	}
	slices.Sort(d)
	return d[len(d)/2], d[len(d)*99/100]
}
