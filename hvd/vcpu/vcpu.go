// Package vcpu runs the one virtual CPU of a machine from counted exit to
// counted exit, the same on every host.
//
// # Place
//
// hvd/machine hands it interrupts and answers its exits. It imports hvd/kvm
// and hvd/mem.
//
// # Counted exits
//
// Exits that the guest makes itself count: port and memory accesses, HLT, an
// interrupt window that was asked for, MSR accesses, and a counted trap at
// which it was told to stop. What the host causes doesn't: a signal (Go's own
// scheduler sends some), an immediate exit, a debug exit. Those are hidden
// here, unless Kick asked for one.
//
// # Interrupt shadows under TCG
//
// QEMU's TCG loses the shadow of STI, MOV SS and POP SS over an asynchronous
// #VMEXIT, so that the interrupt-window exit comes one instruction early now and
// then. There, at a window exit directly behind one of them, one instruction is
// single-stepped; see shadow.go. Elsewhere nothing is.
package vcpu

import (
	"errors"
	"sync/atomic"

	"github.com/klauspost/cpuid/v2"
	"golang.org/x/sys/unix"

	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/mem"
)

// UnderTCG says that this host itself is emulated by QEMU's TCG.
func UnderTCG() bool { return cpuid.CPU.HypervisorVendorString == "TCGTCGTCGTCG" }

// CPU is a virtual CPU. Its methods belong to one thread, but for Kick and
// RequestStop.
type CPU struct {
	*kvm.VCPU
	mem     *mem.Memory
	tcg     bool
	thread  atomic.Int64 // the thread inside Enter, or 0
	kicked  atomic.Bool
	Stepped uint64 // instructions stepped because of a lost shadow
}

// New makes the virtual CPU of vm with the given CPUID leaves.
func New(vm *kvm.VM, m *mem.Memory, leaves []kvm.CPUID) (*CPU, error) {
	c, err := vm.NewVCPU()
	if err != nil {
		return nil, err
	}
	if err := c.SetCPUID(leaves); err != nil {
		c.Close()
		return nil, err
	}
	return &CPU{VCPU: c, mem: m, tcg: UnderTCG()}, nil
}

// Kick makes a running Enter return kvm.ErrInterrupted, wherever the guest is;
// without one, the next Enter returns so. Any thread may call it.
func (c *CPU) Kick() {
	// In this order: Enter clears the immediate exit before it clears the kick,
	// so it never goes back to the guest with only the former left behind.
	c.SetImmediateExit(true)
	c.kicked.Store(true)
	if tid := c.thread.Load(); tid != 0 {
		// SIGURG is the signal that Go's scheduler preempts with: its handler
		// ignores one that comes for no reason. The signal is what makes the
		// kernel leave the guest and look at the immediate exit.
		unix.Tgkill(unix.Getpid(), int(tid), unix.SIGURG)
	}
}

// Kicked says whether a Kick has come that no Enter has answered yet.
func (c *CPU) Kicked() bool { return c.kicked.Load() }

// TakeKick is Kicked, and answers it.
func (c *CPU) TakeKick() bool {
	if !c.kicked.Swap(false) {
		return false
	}
	c.SetImmediateExit(false)
	return true
}

// Enter runs the guest to its next counted exit. kvm.ErrInterrupted means that
// a Kick came first. The calling goroutine must be locked to its thread.
func (c *CPU) Enter() error {
	c.thread.Store(int64(unix.Gettid()))
	defer c.thread.Store(0)
	for {
		// Settle clears an immediate exit, so a kick is looked at first.
		err := kvm.ErrInterrupted
		if !c.kicked.Load() {
			err = c.Run()
		}
		switch {
		case err == nil:
			if early, err := c.skipShadow(); err != nil || !early {
				return err
			}
		case !errors.Is(err, kvm.ErrInterrupted):
			return err
		case c.kicked.Swap(false):
			c.SetImmediateExit(false)
			return kvm.ErrInterrupted
		case c.ImmediateExit():
			// A second kick came while the first was being answered.
			c.SetImmediateExit(false)
			return kvm.ErrInterrupted
		}
	}
}
