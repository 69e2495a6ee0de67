package vcpu

import (
	"errors"
	"fmt"

	"github.com/duet-ft/duet/hvd/kvm"
)

const flagTF = 0x100

// skipShadow undoes a window exit that came inside a shadow: it steps over the
// instruction in it. early says that the window isn't open behind that one
// either (it was CLI, or opens a shadow itself): the guest has to run on.
func (c *CPU) skipShadow() (early bool, err error) {
	for c.tcg && c.ExitReason() == kvm.ExitIRQWindowOpen && c.inShadow() {
		c.SetWindow(false)
		c.Stepped++
		step, own := c.Step, c.Regs().RFLAGS&flagTF != 0
		if own {
			step = c.ownStep
		}
		exited, err := step()
		if err != nil {
			return false, fmt.Errorf("step over an interrupt shadow: %w", err)
		}
		if exited {
			return false, nil // the instruction made an exit of its own: that counts
		}
		if c.DebugBreakpoint() {
			c.SetWindow(true) // the window is still to come
			return false, nil
		}
		if own || !c.Ready() {
			c.SetWindow(true)
			return true, nil
		}
		c.OverrideExitReason(kvm.ExitIRQWindowOpen)
	}
	return false, nil
}

// ownStep is Step for a guest that single-steps itself: its trap behind the
// instruction ends the run, and is given back to it.
func (c *CPU) ownStep() (exited bool, err error) {
	if err := c.InterceptTraps(true); err != nil {
		return false, err
	}
	err = c.once()
	if e := c.InterceptTraps(false); err == nil {
		err = e
	}
	if err != nil || c.ExitReason() != kvm.ExitDebug {
		return err == nil, err
	}
	return false, c.QueueTrap()
}

// Step executes one instruction, however often signals come; exited says that
// it made an exit of its own. A kick that arrives meanwhile stays noted. The
// registers must be those of a guest that doesn't single-step itself.
func (c *CPU) Step() (exited bool, err error) {
	if err := c.SingleStep(true); err != nil {
		return false, err
	}
	err = c.once()
	if e := c.SingleStep(false); err == nil {
		err = e
	}
	return err == nil && c.ExitReason() != kvm.ExitDebug, err
}

// once is Run, however often signals come.
func (c *CPU) once() error {
	for {
		err := c.Run()
		if !errors.Is(err, kvm.ErrInterrupted) {
			return err
		}
		// An immediate exit would keep the instruction from ever running.
		c.SetImmediateExit(false)
	}
}

// inShadow says whether RIP is behind an instruction that opens a shadow: STI
// (fb), POP SS (17), MOV SS from a register (8e d0 to 8e d7). Other bytes may
// look the same; then a step is made for nothing, on both sides.
//
// A guest that single-steps itself takes its trap right behind STI, and its
// handler's end leaves no shadow; MOV SS and POP SS put the trap off, too.
func (c *CPU) inShadow() bool {
	switch last := c.code(-1); {
	case last == 0xfb:
		return c.Regs().RFLAGS&flagTF == 0
	case last == 0x17:
		return true
	case last >= 0xd0 && last <= 0xd7:
		return c.code(-2) == 0x8e
	}
	return false
}

// code is the byte of the guest's code at RIP+off, or -1.
func (c *CPU) code(off int) int {
	at, ok := c.Translate(c.Regs().RIP + uint64(off))
	if !ok {
		return -1
	}
	b, err := c.mem.View(at, 1)
	if err != nil {
		return -1
	}
	return int(b[0])
}
