package machine

import (
	"errors"
	"fmt"

	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/transfer"
)

// Watch begins to note, beside what resyncs need, which pages are written: for
// whoever copies the memory of a machine whose execution is logged. LogDirty
// must be on. What was written since the last harvest counts, too. Off, it
// forgets them.
func (m *Machine) Watch(on bool) {
	m.watched = nil
	if on {
		m.watched = make([]uint64, len(m.dirty))
	}
}

// TakeWatched merges the pages written since the last call into set and forgets
// them. What resyncs need stays as it was. A logged execution must have harvested
// at this very position (see Harvested): to collect what was written makes the
// next write to each page a counted trap, which the other copy wouldn't have.
func (m *Machine) TakeWatched(set []uint64) error {
	if m.logged && !m.Harvested() {
		return fmt.Errorf("exit %d isn't where the log harvests", m.pos)
	}
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
// nothing that the other copy wouldn't see change, too. Who follows the log from a
// snapshot that leaves this process must find that the machine Remembers nothing. At a position inside an
// instruction (a port or memory access, a time-stamp read, which Snapshot would
// finish before this position's inputs come) it fails with ErrNotHere.
func (m *Machine) Peek() (*Snapshot, error) {
	switch m.cpu.ExitReason() {
	case kvm.ExitIO, kvm.ExitMMIO, kvm.ExitTSC, kvm.ExitReadMSR, kvm.ExitWriteMSR:
		if !m.whole {
			return nil, ErrNotHere
		}
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
	if m.logged {
		s.Logged = &Logged{m.harvest, m.window.At, m.window.from, m.window.pages, m.window.hash, m.memo.Clone()}
	}
	return s, nil
}

// Logged is where what follows a log stands, for a copy that begins to follow it
// in the middle.
type Logged struct {
	Harvest uint64 `json:"harvest"` // deadlines since the last harvest
	// Of the memory window, since the last digest; At as in Sweep.
	At    uint64 `json:"at"`
	From  int    `json:"from"`
	Pages int    `json:"pages"`
	Hash  uint64 `json:"hash"`

	memo transfer.Memo // for Return only; see Remembers
}

// Follow prepares a machine that was just restored for the log behind the
// snapshot, with LogDirty on. A log that began at the snapshot needs no more than
// SetLogged.
func (m *Machine) Follow(s *Snapshot) error {
	if err := m.SetLogged(true); err != nil {
		return err
	}
	m.resume(s.Logged)
	return nil
}

func (m *Machine) resume(l *Logged) {
	if l != nil {
		m.harvest = l.Harvest
		m.window.At, m.window.from, m.window.pages, m.window.hash = l.At, l.From, l.Pages, l.Hash
		m.memo = l.memo.Clone()
	}
}

// Bookmark is Peek for Return: a place in a logged execution to come back to. It is
// one where the log harvests, so that no page counts as written; elsewhere it fails
// with ErrNotHere, too.
func (m *Machine) Bookmark() (*Snapshot, error) {
	if !m.Harvested() {
		return nil, ErrNotHere
	}
	return m.Peek()
}

// Leave ends the logged execution here: what was written can be taken, and the
// machine brought back to a bookmark.
func (m *Machine) Leave() error {
	m.logged = false
	// An access that is still to be finished would write to the state and the memory
	// that are put in place next; a string instruction's goes on item by item.
	err := m.cpu.Settle()
	for n := 0; err != nil && n < mem.PageSize; n++ {
		err = m.cpu.Settle()
	}
	return err
}

// Return brings the machine, which Leave has ended, back to a bookmark; its memory
// is in place.
func (m *Machine) Return(s *Snapshot) error {
	if err := m.Restore(s); err != nil {
		return err
	}
	m.idt, m.effects = nil, nil
	if err := m.Follow(s); err != nil {
		return err
	}
	clear(m.watched) // what was written on the way here isn't of that execution
	return nil
}
