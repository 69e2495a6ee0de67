package kvm

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

type msrEntry struct {
	index, _ uint32
	data     uint64
}

type msrList struct {
	n, _    uint32
	entries [len(StateMSRs)]msrEntry
}

type xcrList struct {
	n, flags uint32
	entries  [16]struct {
		xcr, _ uint32
		value  uint64
	}
	_ [16]uint64
}

// State reads the CPU's state. Settle must have been called since the last
// exit.
func (c *VCPU) State(s *State) error {
	msrs := msrList{n: uint32(len(StateMSRs))}
	for i, x := range StateMSRs {
		msrs.entries[i].index = x
	}
	for _, part := range []struct {
		name string
		req  uintptr
		p    unsafe.Pointer
	}{
		// First, because it isn't only a read: it carries out what a pending
		// exception brings along, such as a page fault's address, which goes to
		// CR2 and so to the system registers.
		{"events", getEvents, unsafe.Pointer(&s.Events)},
		{"system registers", getSregs, unsafe.Pointer(&s.Sregs)},
		{"registers", getRegs, unsafe.Pointer(&s.Regs)},
		{"FPU", getXSAVE, unsafe.Pointer(&s.XSAVE)},
		{"debug registers", getDebugRegs, unsafe.Pointer(&s.Debug)},
	} {
		if err := ioctlPtr(c.fd, part.req, part.p); err != nil {
			return fmt.Errorf("read the virtual CPU's %s: %w", part.name, err)
		}
	}
	n, err := c.msrs(getMSRs, &msrs)
	if err != nil {
		return fmt.Errorf("read the virtual CPU's MSRs: %w", err)
	}
	if n != len(StateMSRs) {
		return fmt.Errorf("read the virtual CPU's MSRs: the host lacks MSR %#x", StateMSRs[n])
	}
	for i := range s.MSRs {
		s.MSRs[i] = msrs.entries[i].data
	}
	var x xcrList
	s.XCR0 = 1
	// A CPU without XSAVE has no XCRs.
	if err := ioctlPtr(c.fd, getXCRs, unsafe.Pointer(&x)); err == nil && x.n > 0 {
		s.XCR0 = x.entries[0].value
	}
	s.canonical()
	return nil
}

// msrs says how many of l were read or written. The pointer becomes a number in
// the call of Syscall itself: passed on as one, it would be stale once Go moves
// the stack.
// System reads the system registers alone.
func (c *VCPU) System(s *Sregs) error {
	if err := ioctlPtr(c.fd, getSregs, unsafe.Pointer(s)); err != nil {
		return fmt.Errorf("read the virtual CPU's system registers: %w", err)
	}
	return nil
}

// SetGeneral writes the general registers alone. No exception may be pending.
func (c *VCPU) SetGeneral(r *Regs) error {
	if err := ioctlPtr(c.fd, setRegs, unsafe.Pointer(r)); err != nil {
		return fmt.Errorf("set the virtual CPU's registers: %w", err)
	}
	*c.regs = *r
	return nil
}

func (c *VCPU) msrs(req uintptr, l *msrList) (int, error) {
	n, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(c.fd), req, uintptr(unsafe.Pointer(l)))
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// SetState writes the CPU's state, in the order in which KVM restores it. The
// guest's CPUID must be set before.
func (c *VCPU) SetState(s *State) error {
	msrs := msrList{n: uint32(len(StateMSRs))}
	for i, x := range StateMSRs {
		msrs.entries[i] = msrEntry{index: x, data: s.MSRs[i]}
	}
	// KVM keeps the guest's TLB when neither CR3 nor a paging mode changes. But
	// what comes with this state is other memory, page tables in it: the TLB has
	// to go, so CR3 takes another value first.
	other := s.Sregs
	other.CR3 ^= 1 << 12
	for _, part := range []struct {
		name string
		req  uintptr
		p    unsafe.Pointer
	}{
		{"system registers", setSregs, unsafe.Pointer(&other)},
		{"system registers", setSregs, unsafe.Pointer(&s.Sregs)},
		{"registers", setRegs, unsafe.Pointer(&s.Regs)},
		{"FPU", setXSAVE, unsafe.Pointer(&s.XSAVE)},
	} {
		if err := ioctlPtr(c.fd, part.req, part.p); err != nil {
			return fmt.Errorf("set the virtual CPU's %s: %w", part.name, err)
		}
	}
	if s.XCR0 != 1 {
		x := xcrList{n: 1}
		x.entries[0].value = s.XCR0
		if err := ioctlPtr(c.fd, setXCRs, unsafe.Pointer(&x)); err != nil {
			return fmt.Errorf("set the virtual CPU's XCR0: %w", err)
		}
	}
	if n, err := c.msrs(setMSRs, &msrs); err != nil || n != len(StateMSRs) {
		return fmt.Errorf("set the virtual CPU's MSRs: %d of %d (%v)", n, len(StateMSRs), err)
	}
	if err := ioctlPtr(c.fd, setEvents, unsafe.Pointer(&s.Events)); err != nil {
		return fmt.Errorf("set the virtual CPU's events: %w", err)
	}
	if err := ioctlPtr(c.fd, setDebugRegs, unsafe.Pointer(&s.Debug)); err != nil {
		return fmt.Errorf("set the virtual CPU's debug registers: %w", err)
	}
	c.SetCR8(s.Sregs.CR8)
	return nil
}

// bytes is the state as the kernel lays it out. State has no padding that
// isn't a named field, so every byte of it is defined.
func (s *State) bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(s)), unsafe.Sizeof(*s))
}

// The encoding is the struct itself: this fails to compile when they differ.
var _ [StateSize]byte = [unsafe.Sizeof(State{})]byte{}

// Append encodes s behind dst.
func (s *State) Append(dst []byte) []byte { return append(dst, s.bytes()...) }

// Decode reads what Append wrote from the start of b and returns the rest.
func (s *State) Decode(b []byte) ([]byte, error) {
	if len(b) < StateSize {
		return nil, fmt.Errorf("a CPU state of %d bytes, want %d", len(b), StateSize)
	}
	copy(s.bytes(), b)
	return b[StateSize:], nil
}
