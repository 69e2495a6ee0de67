// Package trapset decides what a primary's kernel counts, and how often the
// dirty log is harvested, as the guest's load changes.
//
// # Place
//
// hvd/vm asks it now and then and writes its choice into the log, where it is
// an input at a position, as every other one. Pure: time comes with the load. It
// imports the flags of hvd/kvm.
//
// # What is weighed
//
// A counted trap costs an exit to the kernel, each time. It pays when an input
// that is due finds it, for without it that input would have cost a resync:
// state and pages in the log, made while the guest stands still. Both are
// estimates in time of the host (Costs).
//
//	member    traps                 begins
//	CR3       MOV to CR3            on
//	PF        page faults           on
//	Syscall   SYSCALL and SYSRET    off
//	Write     a page's first write  on, for good: the dirty log takes that
//	                                fault anyway
//
// Once a Window, for each member:
//
//	on   costs more than it saved, and more than a hundredth of the time,
//	     three windows in a row -> off; not again before its holdoff has
//	     passed, which doubles each time, up to maxHoldoff
//	     has seemed worth its cost for some windows -> off, to prove it: an
//	     input stops at the first trap that comes, and may have found another
//	off  resyncs cost more than a hundredth of the time and than the member
//	     did, and its holdoff has passed -> on, one member a window
//
// That holdoff is the hysteresis: what a system call costs can only be learnt by
// counting some, and a load that makes many of them in vain is tried ever less
// often. A window in which a member pays ends its holdoff.
//
// Harvests come each 64 ticks, and up to each 4 while there are resyncs that
// ship much: a page that was written before a harvest needn't travel. But each
// harvest costs a first write for every page that the guest goes on writing to,
// so there are no more of them than pays: none are added that could cost more
// than the resyncs do. A guest that has no ticks, as while it boots, gets a
// harvest a window all the same.
package trapset

import (
	"time"

	"github.com/duet-ft/duet/hvd/kvm"
)

// Costs are estimates of what things take of the host's time.
type Costs struct {
	Trap   time.Duration // one counted trap
	Resync time.Duration // one resync, its bytes not included
	KB     time.Duration // 1,000 bytes of a resync: to pack, to send, to apply
}

// Load is what has happened so far; all counts only ever rise.
type Load struct {
	Now         time.Duration     // of any clock that doesn't go back
	Set         uint64            // flags of kvm.Counted in force
	Every       uint64            // ticks between two harvests in force
	Harvests    uint64            // harvests of the dirty log
	Traps       [kvm.Kinds]uint64 // traps, by kind
	Placed      [kvm.Kinds]uint64 // inputs that were placed at one, by its kind
	Resyncs     uint64
	ResyncBytes uint64
}

// Choice is what is to be in force.
type Choice struct {
	Set   uint64
	Every uint64
}

// Window is how often the load is looked at.
const Window = 500 * time.Millisecond

// MaxEvery is the number of ticks between two harvests when no resync asks for
// more of them.
const MaxEvery = 64

const (
	worth      = 100 // a hundredth of the time isn't worth a change
	patience   = 3   // windows in a row that a member may cost more than it saves
	minHoldoff = 2 * time.Second
	maxHoldoff = 5 * time.Minute
	minStay    = 8      // windows until a member has to prove itself the first time
	maxStay    = 480    // and later
	smallBytes = 40_000 // a resync of fewer bytes needs no more harvests
	minEvery   = 4      // a fault a page of the working set; fewer ticks save little more
	// More harvests are so many times as many; then first writes cost up to as many
	// times what they did.
	harvestStep = 4
)

// Initial is the set that a log begins with.
const Initial = kvm.FlagCR3 | kvm.FlagPF | kvm.FlagWrite

type member struct {
	flag    uint64
	kinds   []int
	bad     int           // windows in a row that it cost too much
	paying  int           // windows that it was on and worth its cost, it seemed
	stay    int           // so many of them until it has to prove it
	cost    time.Duration // what it cost in a window before it went to prove it; fades
	faded   bool
	holdoff time.Duration // how long it stays off the next time
	until   time.Duration // it isn't tried before
}

// Chooser weighs the loads of one VM. The zero value isn't usable; see New.
type Chooser struct {
	costs   Costs
	can     uint64
	members []member
	last    Load
	begun   bool
}

// New returns a chooser for a host that can count the given flags of
// kvm.Counted; with none there is nothing to choose.
func New(can uint64, costs Costs) *Chooser {
	c := &Chooser{costs: costs, can: can}
	for _, m := range []member{
		{flag: kvm.FlagCR3, kinds: []int{kvm.KindCR3}},
		{flag: kvm.FlagPF, kinds: []int{kvm.KindPF}},
		{flag: kvm.FlagSyscall, kinds: []int{kvm.KindSyscall, kvm.KindSysret}},
	} {
		if can&m.flag != 0 {
			m.holdoff, m.stay = minHoldoff, minStay
			c.members = append(c.members, m)
		}
	}
	return c
}

// Next weighs what has happened since a window ago. It reports false as long as
// nothing is to change.
func (c *Chooser) Next(l Load) (Choice, bool) {
	if c.can == 0 {
		return Choice{}, false
	}
	if !c.begun {
		c.last, c.begun = l, true
		return Choice{}, false
	}
	passed := l.Now - c.last.Now
	if passed < Window {
		return Choice{}, false
	}
	bytes := l.ResyncBytes - c.last.ResyncBytes
	resyncs := l.Resyncs - c.last.Resyncs
	lost := times(resyncs, c.costs.Resync) + times(bytes/1000, c.costs.KB)
	writes := times(l.Traps[kvm.KindWrite]-c.last.Traps[kvm.KindWrite], c.costs.Trap)
	next := Choice{Set: l.Set | c.can&kvm.FlagWrite, Every: l.Every}
	switch {
	case resyncs == 0 || writes > max(lost, passed/worth):
		next.Every = fewer(l.Every)
	case bytes/resyncs > smallBytes && harvestStep*writes < lost:
		next.Every = more(l.Every)
	}
	tried := false
	for i := range c.members {
		m := &c.members[i]
		switch {
		case l.Set&m.flag != 0:
			if c.tooDear(m, l, passed) {
				next.Set &^= m.flag
			}
		case lost > max(passed/worth, m.cost) && l.Now >= m.until && !tried:
			next.Set |= m.flag
			tried = true
			m.back()
		default:
			m.cost, m.faded = m.cost/2, true
		}
	}
	// Each choice is a harvest, too: a guest without ticks gets one a window.
	idle := l.Harvests == c.last.Harvests
	c.last = l
	return next, idle || next != Choice{l.Set, l.Every}
}

// tooDear says that a member that is on is to go.
func (c *Chooser) tooDear(m *member, l Load, passed time.Duration) bool {
	var traps, placed uint64
	for _, k := range m.kinds {
		traps += l.Traps[k] - c.last.Traps[k]
		placed += l.Placed[k] - c.last.Placed[k]
	}
	spent, saved := times(traps, c.costs.Trap), times(placed, c.costs.Resync)
	switch {
	case spent <= passed/worth:
		m.bad = 0
		return false
	case spent <= saved:
		m.bad, m.holdoff = 0, minHoldoff
		if m.paying++; m.paying < m.stay {
			return false
		}
		m.cost, m.until = spent, l.Now
		return true
	}
	if m.bad++; m.bad < patience {
		return false
	}
	m.bad, m.until = 0, l.Now+m.holdoff
	m.holdoff = min(2*m.holdoff, maxHoldoff)
	return true
}

// back switches a member on. If what was lost without it was more than its cost,
// it has proved itself, and needn't for twice as long.
func (m *member) back() {
	if m.paying >= m.stay && !m.faded {
		m.stay = min(2*m.stay, maxStay)
	} else {
		m.stay = minStay
	}
	m.bad, m.paying, m.cost, m.faded = 0, 0, 0, false
}

// more and fewer are the next steps of how many ticks lie between two harvests.
func more(every uint64) uint64  { return max(1, every/harvestStep, min(every, minEvery)) }
func fewer(every uint64) uint64 { return min(2*max(1, every), MaxEvery) }

func times(n uint64, d time.Duration) time.Duration { return time.Duration(n) * d }
