package machine

import (
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/locate"
	"github.com/duet-ft/duet/hvd/mem"
)

// maxSize is that of an instruction, in bytes.
const maxSize = 15

// instruction is one that is about to be executed.
type instruction struct {
	regs kvm.Regs
	code []byte // shorter than maxSize where the next page isn't there
	long bool   // 64-bit code
	tf   bool   // it would set the trap flag
}

// instruction is the one at RIP.
func (m *Machine) instruction(s *kvm.Sregs) instruction {
	i := instruction{regs: *m.cpu.Regs(), long: s.CS.L != 0, code: make([]byte, maxSize)}
	n := min(maxSize, int(mem.PageSize-i.regs.RIP%mem.PageSize))
	switch {
	case m.ReadVirtual(i.regs.RIP, i.code[:n]) != nil:
		i.code = nil
	case n < maxSize && m.ReadVirtual(i.regs.RIP+uint64(n), i.code[n:]) != nil:
		i.code = i.code[:n]
	}
	i.tf = m.setsTF(&i)
	return i
}

func (i *instruction) branch() bool { return locate.IsBranch(i.code, i.long) }

// opcode is the instruction behind its operand size prefixes; two bytes at least.
func (i *instruction) opcode() (op [2]byte, short, wide bool) {
	code := i.code
	for len(code) > 0 {
		switch b := code[0]; {
		case b == 0x66:
			short = true
		case i.long && b&0xf0 == 0x40:
			wide = b&8 != 0
		default:
			copy(op[:], code)
			return op, short, wide
		}
		code = code[1:]
	}
	return op, short, wide
}

const (
	opPUSHF = 0x9c
	opPOPF  = 0x9d
	opIRET  = 0xcf
	opTwo   = 0x0f // followed by
	opCALL  = 0x05 // SYSCALL
	opRET   = 0x07 // SYSRET
)

func (i *instruction) syscall() bool {
	op, _, _ := i.opcode()
	return op[0] == opTwo && op[1] == opCALL
}

type address struct{ virtual, physical uint64 }

// syscallEntry is where a SYSCALL leads to in long mode; ok is false elsewhere, and
// where that page isn't there.
func (m *Machine) syscallEntry(i *instruction) (at address, ok bool, err error) {
	s, err := m.Registers()
	if err != nil || s.Sregs.EFER&longModeActive == 0 {
		return at, false, err
	}
	at.virtual = s.LSTAR()
	if !i.long {
		at.virtual = s.CSTAR()
	}
	at.physical, ok = m.cpu.Translate(at.virtual)
	return at, ok, nil
}

const longModeActive = 0x400 // of EFER

// setsTF says whether the instruction loads RFLAGS with the trap flag set: POPF,
// IRET and SYSRET may. Stepping over it would lose that.
func (m *Machine) setsTF(i *instruction) bool {
	op, short, wide := i.opcode()
	at := i.regs.RSP + 1 // TF is bit 0 of the flags' second byte
	switch {
	case op[0] == opPOPF:
	case op[0] == opIRET && wide:
		at += 16
	case op[0] == opIRET && short:
		at += 4
	case op[0] == opIRET:
		at += 8
	case op[0] == opTwo && op[1] == opRET:
		return i.regs.R11&flagTF != 0
	default:
		return false
	}
	var b [1]byte
	return m.ReadVirtual(at, b[:]) == nil && b[0]&(flagTF>>8) != 0
}

// forgetTF puts right what a step over i did to the trap flag, and has stored of
// it. handler says that i raised an exception, at whose handler the guest is now.
func (m *Machine) forgetTF(handler bool, i instruction, h *handlers) error {
	r := *m.cpu.Regs()
	at := r.RSP + 1
	if handler {
		at += rflagsAt
		if v := h.vector[r.RIP]; v < 32 && withErrorCode>>v&1 != 0 {
			at += 8
		}
	} else {
		switch op, _, _ := i.opcode(); {
		case i.tf:
			r.RFLAGS |= flagTF
			return m.cpu.SetGeneral(&r)
		case op[0] == opPUSHF:
		default:
			return nil
		}
	}
	var b [1]byte
	return m.virtual(at, b[:], func(physical uint64, _ []byte) error {
		v, err := m.Memory.View(physical, 1)
		if err == nil {
			v[0] &^= flagTF >> 8
		}
		return err
	})
}
