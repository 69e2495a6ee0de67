package machine

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/zeebo/xxh3"

	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/vcpu"
)

// Debugged is how Step and RunTo ended.
type Debugged uint8

// The ways in which they end.
const (
	Exited      Debugged = iota // at a counted exit, as Run does
	Stepped                     // behind one instruction
	AtBreak                     // at one of RunTo's addresses
	Interrupted                 // by a Kick
)

// A debugger must leave no trace in the guest, or its execution isn't the
// recorded one any more. Debug registers are few, and not every KVM has them for
// its guests, so a breakpoint is an instruction in the guest's memory that makes an
// exit, there only while the guest runs: HLT for the kernel, INT3 for programs,
// which may not halt. QEMU's SVM doesn't intercept INT3 (it takes it for an INT n),
// so that programs can't have breakpoints there.
//
// Single-stepping sets the trap flag, which an instruction can store: PUSHF,
// SYSCALL (to R11), and whatever raises an exception (to the stack). The first
// is put right behind the step. SYSCALL isn't stepped, but runs up to a breakpoint
// where it leads to. For the third, all handlers of the guest's IDT have a
// breakpoint during a step, and the frame is put right there. An interrupt is
// delivered without the trap flag, up to its handler's. What POPF, IRET and SYSRET
// load of it is kept; the trap of a guest that single-steps itself is its own.

const (
	flagTF   = 1 << 8
	int3     = 0xcc
	hlt      = 0xf4
	idtEntry = 16
	rflagsAt = 16 // in the frame of an exception without error code
)

// withErrorCode are the exceptions that push one (AMD64 APM volume 2, 8.2).
const withErrorCode = 1<<8 | 1<<10 | 1<<11 | 1<<12 | 1<<13 | 1<<14 | 1<<17 | 1<<21 | 1<<29 | 1<<30

// patches are breakpoints for one run.
type patches struct {
	m       *Machine
	at      [][]byte // a byte each, of the guest's memory
	were    []byte
	virtual map[uint64]bool
	h       *handlers // these have one, too; or nil
}

func (m *Machine) newPatches() *patches { return &patches{m: m, virtual: map[uint64]bool{}} }

// Breakable says whether RunTo stops at an address.
func (m *Machine) Breakable(virtual uint64) bool { return virtual>>63 != 0 || !vcpu.UnderTCG() }

// put places a breakpoint.
func (p *patches) put(virtual, physical uint64) {
	op := byte(hlt)
	if virtual>>63 == 0 && !vcpu.UnderTCG() {
		op = int3
	}
	p.virtual[virtual] = true
	if b, err := p.m.Memory.View(physical, 1); err == nil {
		p.write(b, op)
	}
}

// putHandlers places one at each handler, which the kernel executes, but for that
// at the address from: else it would never get off.
func (p *patches) putHandlers(h *handlers, from uint64) {
	p.h = h
	own := h.place[from]
	p.at, p.were = make([][]byte, 0, len(h.place)), make([]byte, 0, len(h.place))
	for _, b := range h.places {
		if own == nil || &b[0] != &own[0] {
			p.write(b, hlt)
		}
	}
}

func (p *patches) write(b []byte, op byte) {
	if b[0] != op {
		p.at, p.were = append(p.at, b), append(p.were, b[0])
		b[0] = op
	}
}

// remove puts back what was there, but where the guest has written meanwhile.
func (p *patches) remove() {
	for i := len(p.at) - 1; i >= 0; i-- {
		if b := p.at[i]; b[0] == hlt || b[0] == int3 {
			b[0] = p.were[i]
		}
	}
}

// arrived says whether the exit is that of a breakpoint, and takes the CPU back to
// it.
func (p *patches) arrived() (bool, error) {
	c := p.m.cpu
	reason := c.ExitReason()
	if reason != kvm.ExitHLT && (reason != kvm.ExitDebug || !c.DebugBreakpoint()) {
		return false, nil
	}
	r := *c.Regs()
	if _, handler := p.h.at(r.RIP - 1); !handler && !p.virtual[r.RIP-1] {
		// KVM says of an INT3 where it is.
		return reason == kvm.ExitDebug, nil
	}
	r.RIP--
	return true, c.SetGeneral(&r)
}

// handlers are the addresses of the guest's exception and interrupt handlers.
type handlers struct {
	sum    uint64            // of the IDT
	vector map[uint64]int    // by virtual address
	place  map[uint64][]byte // by virtual address: its first byte, in the guest's memory
	places [][]byte          // the values of place
}

// at says of which exception or interrupt the handler there is.
func (h *handlers) at(virtual uint64) (vector int, ok bool) {
	if h == nil {
		return 0, false
	}
	vector, ok = h.vector[virtual]
	return vector, ok
}

// handlersOf reads the guest's IDT, which may have changed since the last time. A
// guest whose IDT can't be read has none.
func (m *Machine) handlersOf(s *kvm.Sregs) *handlers {
	table := m.table[:min(len(m.table), int(s.IDT.Limit)+1)]
	if s.EFER&longModeActive == 0 || m.ReadVirtual(s.IDT.Base, table) != nil {
		return &handlers{}
	}
	if sum := xxh3.HashSeed(table, s.IDT.Base); m.idt == nil || m.idt.sum != sum {
		m.idt = m.readHandlers(table)
		m.idt.sum = sum
	}
	return m.idt
}

func (m *Machine) readHandlers(table []byte) *handlers {
	h := &handlers{vector: map[uint64]int{}, place: map[uint64][]byte{}}
	for v := 0; len(table) >= idtEntry; v, table = v+1, table[idtEntry:] {
		e := table[:idtEntry]
		if e[5]&0x80 == 0 { // not present
			continue
		}
		addr := uint64(binary.LittleEndian.Uint16(e[0:])) | uint64(binary.LittleEndian.Uint16(e[6:]))<<16 |
			uint64(binary.LittleEndian.Uint32(e[8:]))<<32
		at, ok := m.cpu.Translate(addr)
		if !ok {
			continue
		}
		if b, err := m.Memory.View(at, 1); err == nil {
			if h.place[addr] == nil {
				h.places = append(h.places, b)
			}
			h.vector[addr], h.place[addr] = v, b
		}
	}
	return h
}

// ReadVirtual fills b from the guest's memory at a virtual address, by the page
// tables in force.
func (m *Machine) ReadVirtual(addr uint64, b []byte) error {
	return m.virtual(addr, b, func(physical uint64, piece []byte) error { return m.Memory.Read(physical, piece) })
}

func (m *Machine) virtual(addr uint64, b []byte, f func(uint64, []byte) error) error {
	for len(b) > 0 {
		at, ok := m.cpu.Translate(addr)
		if !ok {
			return fmt.Errorf("nothing is mapped at %#x", addr)
		}
		n := min(len(b), int(4096-addr%4096))
		if err := f(at, b[:n]); err != nil {
			return err
		}
		addr, b = addr+uint64(n), b[n:]
	}
	return nil
}

// Registers are the CPU's registers where it is now, possibly between two exits.
func (m *Machine) Registers() (*kvm.State, error) {
	var s kvm.State
	return &s, m.cpu.State(&s)
}

// Step executes one instruction, as Run would with that stop. An interrupt or
// exception that is due is one, too: it ends at its handler. MOV SS and POP SS take
// the next one along.
func (m *Machine) Step(stop uint64) (Debugged, lockstep.Exit, error) {
	if !m.entered {
		m.branches, m.stepped = 0, true
	}
	if exited, err := m.prepare(stop); err != nil {
		return Exited, lockstep.Exit{}, err
	} else if exited {
		exit, err := m.exit(m.cpu.ExitReason())
		return Exited, exit, err
	}
	delivers, err := m.cpu.EventPending()
	if err != nil {
		return Exited, lockstep.Exit{}, err
	}
	var s kvm.Sregs
	if err := m.cpu.System(&s); err != nil {
		return Exited, lockstep.Exit{}, err
	}
	h, i := m.handlersOf(&s), m.instruction(&s)
	p := m.newPatches()
	p.putHandlers(h, i.regs.RIP)
	step := !delivers || len(h.places) == 0
	if !delivers && i.syscall() {
		// The trap flag would go to R11, and be masked: no trap would come.
		if at, ok, err := m.syscallEntry(&i); err != nil {
			return Exited, lockstep.Exit{}, err
		} else if ok {
			p.put(at.virtual, at.physical)
			step = false
		}
	}
	err = m.cpu.Debug(step)
	p.remove()
	d, exit, err := m.debugged(stop, p, err)
	if d == Exited || d == Interrupted || err != nil {
		return d, exit, err
	}
	if step && i.branch() {
		m.branches++
	}
	if step && i.regs.RFLAGS&flagTF == 0 {
		err = m.forgetTF(d == AtBreak, i, h)
	}
	return Stepped, exit, err
}

// RunTo executes to the next exit, as Run would with that stop, or up to an
// instruction at one of the addresses. Where it stands at one, it stays: Step is the
// way off.
func (m *Machine) RunTo(stop uint64, addresses []uint64) (Debugged, lockstep.Exit, error) {
	if exited, err := m.prepare(stop); err != nil {
		return Exited, lockstep.Exit{}, err
	} else if exited {
		exit, err := m.exit(m.cpu.ExitReason())
		return Exited, exit, err
	}
	m.stepped = false
	p := m.newPatches()
	for _, a := range addresses {
		if at, ok := m.cpu.Translate(a); ok {
			p.put(a, at)
		}
	}
	err := m.cpu.Debug(false)
	p.remove()
	return m.debugged(stop, p, err)
}

// debugged says how the CPU's Debug ended and answers a counted exit.
func (m *Machine) debugged(stop uint64, p *patches, err error) (Debugged, lockstep.Exit, error) {
	if errors.Is(err, kvm.ErrInterrupted) {
		return Interrupted, lockstep.Exit{Kind: lockstep.Async}, nil
	}
	if err != nil {
		return Exited, lockstep.Exit{}, err
	}
	if at, err := p.arrived(); at || err != nil {
		// A window exit that came with it, and was skipped, is still wanted.
		m.cpu.SetWindow(m.leaves)
		return AtBreak, lockstep.Exit{}, err
	}
	reason := m.cpu.ExitReason()
	switch {
	case reason != kvm.ExitDebug:
	case m.cpu.Counters().Traps >= stop:
		// A step over the trap at which it is to stop: the step wins in KVM.
		reason = kvm.ExitTrap
		m.cpu.OverrideExitReason(reason)
	default:
		return Stepped, lockstep.Exit{}, nil
	}
	exit, err := m.exit(reason)
	return Exited, exit, err
}
