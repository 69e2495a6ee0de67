package machine

import (
	"errors"

	"github.com/duet-ft/duet/hvd/kvm"
)

// Watch begins to note, beside what resyncs need, which pages are written: for
// whoever copies the memory of a machine whose execution is logged. LogDirty
// must be on. Off, it forgets them.
func (m *Machine) Watch(on bool) error {
	// What was written before belongs to nobody who watches.
	if err := m.collect(); err != nil {
		return err
	}
	m.watched = nil
	if on {
		m.watched = make([]uint64, len(m.dirty))
	}
	return nil
}

// Watched says whether Watch is on.
func (m *Machine) Watched() bool { return m.watched != nil }

// TakeWatched merges the pages written since the last call into set and forgets
// them. What resyncs need stays as it was.
func (m *Machine) TakeWatched(set []uint64) error {
	if err := m.collect(); err != nil {
		return err
	}
	for i, w := range m.watched {
		set[i] |= w
	}
	clear(m.watched)
	return nil
}

// watch passes on what was collected.
func (m *Machine) watch(set []uint64) {
	for i, w := range set {
		m.dirty[i] |= w
		m.watched[i] |= w
	}
}

// wrote notes a page that was written behind KVM's and the devices' back.
func (m *Machine) wrote(page int) {
	if m.watched != nil {
		m.watched[page/64] |= 1 << (page % 64)
	}
}

// ErrNotHere says that the machine can't be looked at without a trace at this
// position; it can at one soon after.
var ErrNotHere = errors.New("the machine is inside an instruction")

// Peek is Snapshot for a machine whose execution is logged already: it changes
// nothing that the other copy wouldn't see change, too. At a position inside an
// instruction (a port or memory access, a time-stamp read, which Snapshot would
// finish before this position's inputs come) it fails with ErrNotHere.
func (m *Machine) Peek() (*Snapshot, error) {
	switch m.cpu.ExitReason() {
	case kvm.ExitIO, kvm.ExitMMIO, kvm.ExitTSC, kvm.ExitReadMSR, kvm.ExitWriteMSR:
		return nil, ErrNotHere
	}
	ready := m.cpu.Ready()
	s, err := m.Snapshot()
	if err != nil {
		return nil, err
	}
	if m.cpu.Ready() != ready {
		// An interrupt must go in where it does on the other copy.
		m.cpu.SetReady(ready)
		return nil, ErrNotHere
	}
	return s, nil
}

// Bookmark is a place in a logged execution to come back to: a snapshot, and
// what it leaves out because a log doesn't begin there. It is without memory.
type Bookmark struct {
	*Snapshot
	dirty   []uint64
	harvest uint64
}

// Bookmark is Peek for Return.
func (m *Machine) Bookmark() (*Bookmark, error) {
	s, err := m.Peek()
	if err != nil {
		return nil, err
	}
	if err := m.collect(); err != nil {
		return nil, err
	}
	return &Bookmark{s, append([]uint64(nil), m.dirty...), m.harvest}, nil
}

// Return brings the machine back to a bookmark; its memory is in place.
func (m *Machine) Return(b *Bookmark) error {
	if err := m.Restore(b.Snapshot); err != nil {
		return err
	}
	m.effects = nil
	// What was written on the way here isn't of that execution.
	if err := m.collect(); err != nil {
		return err
	}
	clear(m.watched)
	copy(m.dirty, b.dirty)
	m.harvest = b.harvest
	return nil
}
