package kvm

import (
	"fmt"
	"unsafe"
)

// Mode says whether the guest executes 64-bit code, and whether the next
// instruction is in the shadow of an STI, MOV SS or POP SS. Settle must have
// been called since the last exit.
func (c *VCPU) Mode() (long, shadow bool, err error) {
	var events [64]byte
	if err := ioctlPtr(c.fd, getEvents, unsafe.Pointer(&events)); err != nil {
		return false, false, fmt.Errorf("read the virtual CPU's events: %w", err)
	}
	var s Sregs
	if err := ioctlPtr(c.fd, getSregs, unsafe.Pointer(&s)); err != nil {
		return false, false, fmt.Errorf("read the virtual CPU's system registers: %w", err)
	}
	return s.CS.L != 0, events[eventShadow] != 0, nil
}

// Break makes Run leave with ExitDebug before the instruction at rip; off takes
// that away. It is debug register 0 of the host's, unseen by the guest.
func (c *VCPU) Break(rip uint64, on bool) error {
	// struct kvm_guest_debug: control and padding, then dr0 to dr7 of 8 bytes.
	d := struct {
		control, _ uint32
		dr         [8]uint64
	}{}
	if on {
		d.control = 1 | 1<<17 // KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP
		d.dr[0], d.dr[7] = rip, 0x402
	}
	if err := ioctlPtr(c.fd, setGuestDebug, unsafe.Pointer(&d)); err != nil {
		return fmt.Errorf("set a breakpoint: %w", err)
	}
	return nil
}
