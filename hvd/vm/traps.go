package vm

import (
	"time"

	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/trapset"
)

// place is how the guest was brought to the present position: the locator.
type place struct {
	kind lockstep.ExitKind // Pointed: by counted branches; Async: by a resync
	trap int               // Trapped: the kind of trap, kvm.Kind*
}

func placeOf(m *machine.Machine, kind lockstep.ExitKind) place {
	p := place{kind: kind}
	if kind == lockstep.Trapped {
		p.trap = m.StoppedAt()
	}
	return p
}

// placed counts an input by the locator of its position. What only sets the
// clock or what is counted, or compares the copies, waits for nothing and isn't
// one.
func (s *Stats) placed(at place, kind event.Kind) {
	if kind == event.Time || kind == event.Traps || kind == event.Digest || kind == event.Behind {
		return
	}
	switch at.kind {
	case lockstep.Trapped:
		s.AtTrap.Add(1)
		s.byTrap[at.trap]++
	case lockstep.Pointed:
		s.AtPoint.Add(1)
	case lockstep.Async:
		s.AtResync.Add(1)
	default:
		s.AtExit.Add(1)
	}
}

// startTraps has a log begin with the initial set; with none where a kick is as
// good.
func (e *Engine) startTraps() {
	switch {
	case e.points():
		e.m.SetTraps(0)
	case e.m.Traps() == 0:
		e.m.SetTraps(trapset.Initial)
	}
	e.Stats.Traps.Store(e.m.Traps())
}

// stopTraps counts nothing in a machine that runs alone: to stop it anywhere
// costs no resync.
func (e *Engine) stopTraps() {
	e.m.SetTraps(0)
	e.Stats.Traps.Store(e.m.Traps())
}

// chooseTraps lets the primary's set of traps follow the load; now is the guest's
// time, ns.
func (e *Engine) chooseTraps(now uint64) error {
	if e.primary == nil || e.points() || now-e.chosen < uint64(chooseEvery) {
		return nil
	}
	e.chosen = now
	choice, ok := e.cfg.Choose(trapset.Load{
		Now: time.Duration(now), Set: e.m.Traps(), Every: e.m.HarvestEvery(), Harvests: e.m.Harvests(),
		Traps: e.m.Counted(), Placed: e.Stats.byTrap,
		Resyncs: e.Stats.Resyncs.Load(), ResyncBytes: e.Stats.ResyncBytes.Load(),
	})
	if !ok {
		return nil
	}
	e.Stats.Traps.Store(choice.Set)
	return e.input(event.Entry{Kind: event.Traps, Set: choice.Set, Every: choice.Every})
}

// chooseEvery is how often the choice is thought about: well within a window.
const chooseEvery = 20 * time.Millisecond

// TrapNames are the members of a set of kvm.Counted flags, in words for people.
func TrapNames(set uint64) []string {
	names := []string{}
	for _, n := range []struct {
		flag uint64
		name string
	}{{kvm.FlagCR3, "cr3"}, {kvm.FlagPF, "page-fault"}, {kvm.FlagSyscall, "syscall"}, {kvm.FlagWrite, "first-write"}} {
		if set&n.flag != 0 {
			names = append(names, n.name)
		}
	}
	return names
}
