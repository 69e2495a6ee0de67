package machine

import (
	"fmt"

	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/lockstep"
)

// TicksPerHarvest is how many timer deadlines pass between two harvests of the
// dirty log, unless a Traps entry says otherwise. What was dirtied before a
// harvest need not travel in a resync: both copies are at the same position
// there. But each harvest protects the guest's working set against writes anew,
// at a fault a page.
const TicksPerHarvest = 64

// Countable are the traps that may be in force, kvm.Counted flags; 0 where the
// host can't change them.
func (m *Machine) Countable() uint64 { return m.can }

// Traps is the set of traps in force, kvm.Counted flags.
func (m *Machine) Traps() uint64 { return m.cpu.Counters().Set }

// HarvestEvery is the number of ticks between two harvests of the dirty log.
func (m *Machine) HarvestEvery() uint64 { return m.every }

// Harvests is how often this copy has harvested.
func (m *Machine) Harvests() uint64 { return m.reaped }

// Counted is how many traps of each kind there were, by kvm's Kind*.
func (m *Machine) Counted() [kvm.Kinds]uint64 { return m.cpu.Counters().Kinds }

// StoppedAt is the kind of the trap at which the last run ended, if it did.
func (m *Machine) StoppedAt() int {
	if m.cpu.ExitReason() == kvm.ExitTSC {
		return kvm.KindTSC
	}
	return int(min(m.cpu.HardwareReason(), kvm.Kinds-1))
}

// setTraps changes what is counted and how often the dirty log is harvested,
// from the current position on. It harvests, so that where a set begins to have
// first writes, both copies have the same pages clean. And it has both forget what
// resyncs brought, so that whoever reads the log from here on needs nothing of it.
func (m *Machine) setTraps(set, every uint64) error {
	if set&^m.can != 0 && set != m.Traps() || every == 0 {
		return fmt.Errorf("%w: traps %#x each %d ticks, this host can count %#x", lockstep.ErrDiverged, set, every, m.can)
	}
	m.cpu.Counters().Set, m.every = set, every
	m.memo.Forget()
	return m.reap()
}

// Remembers says that the log from here on can't be followed without what its last
// resyncs brought.
func (m *Machine) Remembers() bool { return !m.memo.Empty() }

// SetTraps is setTraps for a machine that runs alone, without a log.
func (m *Machine) SetTraps(set uint64) {
	if m.can != 0 {
		m.cpu.Counters().Set = set & m.can
	}
}

// tick counts a timer's deadline, and harvests when it is time to.
func (m *Machine) tick() error {
	if m.harvest++; m.harvest < m.every {
		return nil
	}
	return m.reap()
}

// reap harvests the dirty log: what was written up to here is equal in both
// copies.
func (m *Machine) reap() error {
	m.harvest = 0
	if !m.logged {
		return nil
	}
	m.reaped++
	return m.clean()
}

// clean forgets what was written up to here.
func (m *Machine) clean() error {
	if err := m.collect(); err != nil {
		return err
	}
	clear(m.dirty)
	m.cleanAt = m.pos
	return nil
}

// Harvested says whether the machine stands where its log has just harvested, or
// begun: both copies count every page as unwritten.
func (m *Machine) Harvested() bool { return m.logged && !m.entered && m.cleanAt == m.pos }
