package locate

import (
	"encoding/binary"
	"slices"

	"github.com/zeebo/xxh3"

	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/vcpu"
)

// Stepper is the Target that counts by single-stepping: it makes one
// instruction after the other and looks at each before. Under QEMU's TCG some
// 18,000 a second; no host lacks what it needs.
//
// The trap flag shows in what PUSHF, SYSCALL, interrupts and faults store, so a
// Stepper that steps by itself is for code without them: for tests, and as the
// oracle of a Counter. Driven by hvd/machine's steps, it is for any code.
type Stepper struct {
	cpu *vcpu.CPU
	mem *mem.Memory
	by  Stepping

	count, overflow uint64
	bp              uint64
	bpOn            bool

	// Late, if set, says by how many events an overflow comes late, as a real
	// counter's does.
	Late func() uint64
}

// Stepping is a way to make single instructions.
type Stepping interface {
	// Step makes one, or delivers an interrupt or exception; it ends with Stepped
	// or Exited.
	Step() (Why, error)
	// Branches is the number of conditional branches made since the last counted
	// exit.
	Branches() uint64
}

// NewStepper takes control of a CPU that stands at an exit, settled.
func NewStepper(cpu *vcpu.CPU, m *mem.Memory) *Stepper {
	return &Stepper{cpu: cpu, mem: m, overflow: never}
}

// NewStepperBy takes control of a CPU that by steps, settled.
func NewStepperBy(cpu *vcpu.CPU, m *mem.Memory, by Stepping) *Stepper {
	return &Stepper{cpu: cpu, mem: m, by: by, overflow: never}
}

// never is a count that isn't reached.
const never = ^uint64(0)

// Count is the conditional branches made so far.
func (s *Stepper) Count() (uint64, error) {
	if s.by != nil {
		return s.by.Branches(), nil
	}
	return s.count, nil
}

// Overflow makes Run end at count n.
func (s *Stepper) Overflow(n uint64) error {
	s.overflow = n
	return nil
}

// SetBreakpoint makes Run end before rip.
func (s *Stepper) SetBreakpoint(rip uint64, on bool) error {
	s.bp, s.bpOn = rip, on
	return nil
}

// Regs are the registers now.
func (s *Stepper) Regs() (Regs, error) { return registers(s.cpu, s.code()) }

// Run makes instructions until something ends it.
func (s *Stepper) Run() (Why, error) {
	end := s.overflow
	if s.Late != nil && end != never {
		end += s.Late()
	}
	for {
		if s.bpOn && s.cpu.Regs().RIP == s.bp {
			return Broke, nil
		}
		if n, err := s.Count(); err != nil || n >= end {
			return Overflowed, err
		}
		if s.cpu.Kicked() {
			return 0, kvm.ErrInterrupted
		}
		if why, err := s.Step(); err != nil || why == Exited {
			return why, err
		}
	}
}

// Step makes one instruction.
func (s *Stepper) Step() (Why, error) {
	if s.by != nil {
		return s.by.Step()
	}
	long, _, err := s.cpu.Mode()
	if err != nil {
		return 0, err
	}
	branch := IsBranch(s.code(), long)
	exited, err := s.cpu.Step()
	if err != nil {
		return 0, err
	}
	if branch {
		s.count++
	}
	if exited {
		return Exited, nil
	}
	return Stepped, nil
}

// maxCode is the longest instruction, in bytes.
const maxCode = 15

// code is what lies at RIP, up to the longest instruction; shorter where the
// next page isn't there.
func (s *Stepper) code() []byte {
	rip := s.cpu.Regs().RIP
	var code []byte
	for len(code) < maxCode {
		at := rip + uint64(len(code))
		n := min(maxCode-len(code), int(mem.PageSize-at%mem.PageSize))
		physical, ok := s.cpu.Translate(at)
		if !ok {
			break
		}
		b, err := s.mem.View(physical, uint64(n))
		if err != nil {
			break
		}
		code = append(code, b...)
	}
	return code
}

// registers tells a settled CPU's registers.
func registers(cpu *vcpu.CPU, code []byte) (Regs, error) {
	long, shadow, err := cpu.Mode()
	if err != nil {
		return Regs{}, err
	}
	r := cpu.Regs()
	pending, err := cpu.EventPending()
	if err != nil {
		return Regs{}, err
	}
	return Regs{
		RIP: r.RIP, RCX: r.RCX, Hash: hash(cpu.RegsBytes()), IF: r.RFLAGS&flagIF != 0, Shadow: shadow || pending,
		Repeated: IsRepeated(code, long),
	}, nil
}

const flagIF = 1 << 9

// hash is over all general registers; RFLAGS, the last one, without RF and TF:
// they depend on how the host got here.
func hash(regs []byte) uint64 {
	b := slices.Clone(regs)
	flags := b[len(b)-8:]
	binary.LittleEndian.PutUint64(flags, binary.LittleEndian.Uint64(flags)&^0x10100)
	return xxh3.Hash(b)
}
