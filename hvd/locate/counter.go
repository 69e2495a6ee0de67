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
	return CounterBy(cpu, m, nil, events, base), err
}

// CounterBy is a counter of a CPU that by steps, or steps by itself with nil. base
// is what events read at the last counted exit.
func CounterBy(cpu *vcpu.CPU, m *mem.Memory, by Stepping, events *kvm.EventCounter, base uint64) *Counter {
	return &Counter{Stepper: *NewStepperBy(cpu, m, by), events: events, base: base, until: never}
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

// Disarm makes the processor interrupt the guest no more.
func (c *Counter) Disarm() error {
	c.until = never
	return c.events.Arm(0)
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
		case errors.Is(err, kvm.ErrInterrupted) && c.cpu.Kicked():
			return 0, err
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
	if c.by != nil {
		return c.by.Step()
	}
	exited, err := c.cpu.Step()
	if exited {
		return Exited, err
	}
	return Stepped, err
}
