package locate

import (
	"errors"

	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/vcpu"
)

// Counter is the Target of real hardware: branches are counted by the
// processor, and the breakpoint is one of its debug registers.
type Counter struct {
	Stepper // decodes, for Regs
	events  *kvm.EventCounter
	base    uint64
	until   uint64
}

// NewCounter takes control of a CPU that stands at an exit, settled. The calling
// thread is the one that runs it. events stays the caller's.
func NewCounter(cpu *vcpu.CPU, m *mem.Memory, events *kvm.EventCounter) (*Counter, error) {
	base, err := events.Read()
	return &Counter{Stepper: *NewStepper(cpu, m), events: events, base: base, until: ^uint64(0)}, err
}

// Count is the conditional branches retired so far.
func (c *Counter) Count() (uint64, error) {
	n, err := c.events.Read()
	return n - c.base, err
}

// Overflow makes the processor interrupt the guest at count n.
func (c *Counter) Overflow(n uint64) error {
	count, err := c.Count()
	if err != nil {
		return err
	}
	c.until = n
	return c.events.Arm(n - min(n, count))
}

// SetBreakpoint uses a debug register.
func (c *Counter) SetBreakpoint(rip uint64, on bool) error { return c.cpu.Break(rip, on) }

// Run lets the guest run. Signals for other reasons are passed over.
func (c *Counter) Run() (Why, error) {
	for {
		count, err := c.Count()
		if err != nil || count >= c.until {
			return Overflowed, err
		}
		err = c.cpu.Run()
		switch {
		case errors.Is(err, kvm.ErrInterrupted):
			c.cpu.SetImmediateExit(false)
		case err != nil:
			return 0, err
		case c.cpu.ExitReason() == kvm.ExitDebug:
			return Broke, nil
		default:
			return Exited, nil
		}
	}
}

// Step makes one instruction by single-stepping; the processor counts it.
func (c *Counter) Step() (Why, error) {
	exited, err := c.cpu.Step()
	if exited {
		return Exited, err
	}
	return Stepped, err
}
