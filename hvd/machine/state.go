package machine

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/zeebo/xxh3"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/transfer"
)

// Snapshot is everything of a machine but its memory, at a position where no
// interrupt has been injected yet.
type Snapshot struct {
	Position    uint64          `json:"position"`
	Fingerprint uint64          `json:"fingerprint"`
	Halted      bool            `json:"halted"`
	Behind      bool            `json:"behind,omitempty"` // a Behind entry was applied
	Ended       uint8           `json:"ended,omitempty"`  // see Machine.Ended
	Counters    kvm.Counters    `json:"counters"`
	Every       uint64          `json:"every"` // ticks between two harvests
	CPUID       []kvm.CPUID     `json:"cpuid"`
	CPU         []byte          `json:"cpu"` // kvm.State.Append
	Board       json.RawMessage `json:"board"`
	Window      Sweep           `json:"window"`
	Logged      *Logged         `json:"logged,omitempty"` // of Peek, inside a log
}

// Snapshot captures the machine between two runs.
func (m *Machine) Snapshot() (*Snapshot, error) {
	if m.entered {
		return nil, fmt.Errorf("the machine is inside exit %d", m.pos+1)
	}
	if err := m.finish(); err != nil {
		return nil, err
	}
	var s kvm.State
	if err := m.cpu.State(&s); err != nil {
		return nil, err
	}
	b, err := m.Board.State()
	if err != nil {
		return nil, err
	}
	c := *m.cpu.Counters()
	c.Stop, c.Fresh = lockstep.Free, 0 // the host's, not the guest's
	return &Snapshot{
		Position: m.pos, Fingerprint: m.hash, Halted: m.halted, Behind: m.behind, Ended: uint8(m.off),
		Counters: c, Every: m.every, CPUID: m.cpuid, CPU: s.Append(nil), Board: b, Window: m.window,
	}, nil
}

// finish brings the machine to the end of an instruction. One that makes
// several exits makes them here.
func (m *Machine) finish() error {
	for {
		exited, err := m.cpu.Finish()
		if err != nil || !exited {
			return err
		}
		if _, err := m.exit(m.cpu.ExitReason()); err != nil {
			return err
		}
	}
}

// Restore makes the machine, whose memory is in place, the one that was
// captured.
func (m *Machine) Restore(s *Snapshot) error {
	var state kvm.State
	if _, err := state.Decode(s.CPU); err != nil {
		return err
	}
	if err := m.cpu.SetCPUID(s.CPUID); err != nil {
		return fmt.Errorf("the other host has another CPU: %w", err)
	}
	m.cpuid = s.CPUID
	if err := m.cpu.SetState(&state); err != nil {
		return err
	}
	if err := m.Board.Restore(s.Board); err != nil {
		return err
	}
	*m.cpu.Counters() = s.Counters
	m.every = max(1, s.Every)
	m.pos, m.hash, m.halted, m.off = s.Position, s.Fingerprint, s.Halted, board.EffectKind(s.Ended)
	m.entered, m.whole, m.behind, m.window = false, true, s.Behind, s.Window
	return m.cpu.Settle()
}

// A resync's data: the layout of event.Resync's bytes, as one block of
// hvd/transfer's: a head, little endian, and pages.
//
//	traps, base, reads  u64 each
//	kinds               kvm.Kinds x u64
//	CPU state           kvm.StateSize bytes

// Capture stops the clockwork where the guest is now, in the middle of its run
// from one exit to the next: the state there becomes a Resync entry's data,
// and counts as an exit. Only a primary calls it, after Async. The data is valid
// until the next call.
func (m *Machine) Capture() ([]byte, error) {
	if err := m.cpu.Settle(); err != nil {
		return nil, err
	}
	var s kvm.State
	if err := m.cpu.State(&s); err != nil {
		return nil, err
	}
	if err := m.collect(); err != nil {
		return nil, err
	}
	c := m.cpu.Counters()
	head := binary.LittleEndian.AppendUint64(make([]byte, 0, resyncHead), c.Traps)
	head = binary.LittleEndian.AppendUint64(head, c.Base)
	head = binary.LittleEndian.AppendUint64(head, c.Reads)
	for _, n := range c.Kinds {
		head = binary.LittleEndian.AppendUint64(head, n)
	}
	data := transfer.AppendDelta(m.packed[:0], s.Append(head), mem.PageSet(m.dirty), m.Memory.Page, &m.memo)
	if m.packed = data; cap(data) > maxPacked {
		m.packed = nil
	}
	clear(m.dirty)
	m.harvest = 0
	m.resynced(&s)
	return data, nil
}

// Break counts where the guest was interrupted as an exit, without a log: what
// Capture does for a machine that runs alone.
func (m *Machine) Break() error {
	if err := m.cpu.Settle(); err != nil {
		return err
	}
	m.between()
	return nil
}

// between makes a position of where the guest stands, between two instructions.
func (m *Machine) between() {
	m.pos++
	m.entered, m.halted, m.whole, m.behind, m.digest = false, false, true, false, nil
	m.Board.TakeEOI()
}

// resynced counts a resync as the exit that it is.
func (m *Machine) resynced(s *kvm.State) {
	m.between()
	b := binary.LittleEndian.AppendUint64(nil, m.hash)
	b = binary.LittleEndian.AppendUint64(b, s.Regs.RIP)
	m.hash = xxh3.Hash(s.Append(b))
	if m.logged {
		m.trail.drop(Crumb{Position: m.pos, Fingerprint: m.hash, RIP: s.Regs.RIP})
	}
}

// maxPacked is the largest buffer that is kept for the next resync, in bytes.
const maxPacked = 4 << 20

const resyncHead = (3+kvm.Kinds)*8 + kvm.StateSize

// resync is Capture's other side. What this copy has written since the last
// harvest must be among what arrives; else the memories differ somewhere, and
// applying the delta would bury that. Page tables are let through, for a
// processor writes accessed bits to them when it likes; the memory window hashes
// what else is in them.
func (m *Machine) resync(data []byte) error {
	// The primary had injected this position's interrupt before it stopped, and
	// an access that is still to be finished would write to the new state.
	exited, err := m.inject()
	if err == nil && !exited {
		exited, err = m.cpu.Finish()
	}
	if err != nil {
		return err
	}
	if exited {
		return fmt.Errorf("%w: exit %d comes before a resync", lockstep.ErrDiverged, m.pos+1)
	}
	if err := m.collect(); err != nil {
		return err
	}
	mine := append([]uint64(nil), m.dirty...)
	head, err := transfer.ApplyDelta(data, resyncHead, m.Memory.Pages(), &m.memo, func(page int, b []byte) {
		copy(m.Memory.Page(page), b)
		mine[page/64] &^= 1 << (page % 64)
		m.wrote(page)
	})
	if err != nil {
		return err
	}
	var s kvm.State
	if _, err := s.Decode(head[(3+kvm.Kinds)*8:]); err != nil {
		return err
	}
	left := slices.DeleteFunc(mem.PageSet(mine), m.Memory.MayBeTable)
	if len(left) > 0 {
		return m.diverged("pages", fmt.Sprintf("%d pages were written here but not there, the first are pages %#x",
			len(left), left[:min(8, len(left))]))
	}
	if err := m.cpu.SetState(&s); err != nil {
		return err
	}
	c := m.cpu.Counters()
	c.Traps, c.Base, c.Reads = word(head, 0), word(head, 1), word(head, 2)
	for i := range c.Kinds {
		c.Kinds[i] = word(head, 3+i)
	}
	if err := m.cpu.Settle(); err != nil {
		return err
	}
	// The pages just written are in KVM's log only if the guest wrote them;
	// ours are marked nowhere. Forget what was collected: both copies begin
	// anew here.
	clear(m.dirty)
	m.harvest = 0
	m.resynced(&s)
	return nil
}

func word(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
