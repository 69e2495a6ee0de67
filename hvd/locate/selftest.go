package locate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/klauspost/cpuid/v2"

	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/vcpu"
)

// Probe says whether this host's performance counters can locate points: it
// tries them out on a small guest. The error is one line for people.
func Probe(sys *kvm.System) (Event, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	e, err := EventOf(cpuid.CPU.VendorString, uint32(cpuid.CPU.Family), uint32(cpuid.CPU.Model))
	if err != nil {
		return e, err
	}
	events, err := kvm.OpenCounter(e.Config)
	if err != nil {
		return e, err
	}
	defer events.Close()
	if e.SpecLockMap {
		if err := specLockMapOff(); err != nil {
			return e, err
		}
	}
	return e, Check(sys, e.Skid, func(cpu *vcpu.CPU, m *mem.Memory) (Target, error) { return NewCounter(cpu, m, events) })
}

// specLockMapOff looks at the first processor's MSR C0011020h, bit 54.
func specLockMapOff() error {
	f, err := os.Open("/dev/cpu/0/msr")
	if err != nil {
		return fmt.Errorf("can't see whether SpecLockMap is off, without which this processor counts inexactly: %w", err)
	}
	defer f.Close()
	var b [8]byte
	if _, err := io.ReadFull(io.NewSectionReader(f, 0xc0011020, 8), b[:]); err != nil {
		return fmt.Errorf("can't see whether SpecLockMap is off, without which this processor counts inexactly: %w", err)
	}
	if binary.LittleEndian.Uint64(b[:])>>54&1 == 0 {
		return errors.New("this processor counts inexactly: switch SpecLockMap off (MSR C0011020h, bit 54)")
	}
	return nil
}

// The guest of Check, 16-bit code: a loop of two conditional branches, rounds
// times, then an exit.
const (
	checkAt     = 0x1000
	checkRounds = 6000
)

var checkCode = []byte{
	0xb9, checkRounds & 0xff, checkRounds >> 8, // mov cx, rounds
	0xf6, 0xc1, 0x01, // 1: test cl, 1
	0x74, 0x01, // jz 2f
	0x43,       // inc bx
	0x49,       // 2: dec cx
	0x75, 0xf7, // jnz 1b
	0xe6, 0x80, // out 80h, al
}

// Check compares a kind of Target with single-stepping: it must count the same
// branches, and find each of some points.
func Check(sys *kvm.System, skid uint64, make func(*vcpu.CPU, *mem.Memory) (Target, error)) error {
	m, err := mem.New(64 << 10)
	if err != nil {
		return err
	}
	defer m.Close()
	if err := m.Write(checkAt, checkCode); err != nil {
		return err
	}
	vm, err := sys.NewVM(m, 0, vcpu.AllowedMSRs)
	if err != nil {
		return err
	}
	defer vm.Close()
	leaves, err := sys.SupportedCPUID()
	if err != nil {
		return err
	}
	cpu, err := vcpu.New(vm, m, vcpu.Leaves(leaves))
	if err != nil {
		return err
	}
	defer cpu.Close()
	start := func() (Target, error) {
		if err := restart(cpu); err != nil {
			return nil, err
		}
		return make(cpu, m)
	}
	if err := checkCount(start); err != nil {
		return err
	}
	for _, steps := range []int{0, 1, 5, 100, 1001, 5000} {
		if err := restart(cpu); err != nil {
			return err
		}
		if err := checkPoint(NewStepper(cpu, m), steps, skid, start); err != nil {
			return err
		}
	}
	return nil
}

// checkCount runs the guest to its exit.
func checkCount(start func() (Target, error)) error {
	t, err := start()
	if err != nil {
		return err
	}
	why, err := t.Run()
	if err != nil {
		return err
	}
	n, err := t.Count()
	if err == nil && (why != Exited || n != 2*checkRounds) {
		err = fmt.Errorf("the self-test counted %d branches instead of %d", n, 2*checkRounds)
	}
	return err
}

// checkPoint goes some steps by the oracle, and there again by what start makes.
func checkPoint(oracle *Stepper, steps int, skid uint64, start func() (Target, error)) error {
	for range steps {
		if why, err := oracle.Step(); err != nil {
			return err
		} else if why == Exited {
			return fmt.Errorf("the self-test's guest ended before %d steps", steps)
		}
	}
	point, ok, _, err := Settle(oracle, 1)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("the self-test's guest can't be stopped after %d steps", steps)
	}
	t, err := start()
	if err != nil {
		return err
	}
	if err := Seek(t, &Seeker{Want: point, Skid: skid}); err != nil {
		return fmt.Errorf("the self-test, after %d steps: %w", steps, err)
	}
	return nil
}

// restart puts the CPU at the guest's first instruction, in real mode.
func restart(cpu *vcpu.CPU) error {
	var s kvm.State
	if err := cpu.Settle(); err != nil {
		return err
	}
	if err := cpu.State(&s); err != nil {
		return err
	}
	s.Sregs.CS.Base, s.Sregs.CS.Selector = 0, 0
	s.Regs = kvm.Regs{RIP: checkAt, RFLAGS: 0x202}
	if err := cpu.SetState(&s); err != nil {
		return err
	}
	return cpu.Settle()
}
