package vcpu

import "github.com/duet-ft/duet/hvd/kvm"

// Debug runs the guest like Enter, with each INT3 an exit (kvm.ExitDebug) and,
// with step, for one instruction at the most: kvm.ExitDebug again, unless the
// instruction makes a counted exit. What is stepped isn't interrupted by a Kick.
// A guest that single-steps itself gets its own trap at the next entry.
func (c *CPU) Debug(step bool) (err error) {
	if !c.tcg { // there, INT3 makes no exit
		if err := c.Breakpoints(true); err != nil {
			return err
		}
		defer func() {
			if e := c.Breakpoints(false); err == nil {
				err = e
			}
		}()
	}
	if !step {
		return c.Enter()
	}
	one := c.Step
	if c.Regs().RFLAGS&flagTF != 0 {
		one = c.ownStep
	}
	exited, err := one()
	if err != nil || !exited {
		return err
	}
	early, err := c.skipShadow()
	if early {
		c.OverrideExitReason(kvm.ExitDebug) // nothing but steps was made
	}
	return err
}
