package kvm

import (
	"encoding/binary"
	"fmt"
	"unsafe"
)

const dr7Fixed = 0x400 // the bit of DR7 that is always set

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
		d.control = debugEnable | debugHardware
		d.dr[0], d.dr[7] = rip, dr7Fixed|2
	}
	if err := ioctlPtr(c.fd, setGuestDebug, unsafe.Pointer(&d)); err != nil {
		return fmt.Errorf("set a breakpoint: %w", err)
	}
	return nil
}

// EventPending says whether an interrupt or exception is still to be delivered
// before the next instruction. Settle must have been called since the last exit.
func (c *VCPU) EventPending() (bool, error) {
	var events [64]byte
	if err := ioctlPtr(c.fd, getEvents, unsafe.Pointer(&events)); err != nil {
		return false, fmt.Errorf("read the virtual CPU's events: %w", err)
	}
	return events[eventInjected]|events[eventPending]|events[eventInterrupt]|events[eventNMI] != 0, nil
}

// InterceptTraps makes a debug trap of the guest's own, such as that of its
// single-stepping, leave with ExitDebug. The guest doesn't get it then; see
// QueueTrap.
func (c *VCPU) InterceptTraps(on bool) error {
	d := struct {
		control, _ uint32
		dr         [8]uint64
	}{}
	if on {
		// KVM_GUESTDBG_USE_HW_BP, with no breakpoint: unlike
		// KVM_GUESTDBG_SINGLESTEP, it leaves the trap flag the guest's.
		d.control, d.dr[7] = debugEnable|debugHardware, dr7Fixed
	}
	if err := ioctlPtr(c.fd, setGuestDebug, unsafe.Pointer(&d)); err != nil {
		return fmt.Errorf("intercept the guest's debug traps: %w", err)
	}
	return nil
}

// QueueTrap gives the guest the trap of its single-stepping at the next entry.
func (c *VCPU) QueueTrap() error {
	var events [64]byte
	if err := ioctlPtr(c.fd, getEvents, unsafe.Pointer(&events)); err != nil {
		return fmt.Errorf("read the virtual CPU's events: %w", err)
	}
	const debugVector, singleStep = 1, 1 << 14 // #DB, DR6.BS
	events[eventPending], events[eventVector], events[eventHasPayload] = 1, debugVector, 1
	binary.LittleEndian.PutUint64(events[eventPayload:], singleStep)
	binary.LittleEndian.PutUint32(events[eventFlags:], binary.LittleEndian.Uint32(events[eventFlags:])|validPayload)
	if err := ioctlPtr(c.fd, setEvents, unsafe.Pointer(&events)); err != nil {
		return fmt.Errorf("give the guest its debug trap back: %w", err)
	}
	return nil
}
