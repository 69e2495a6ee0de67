package kvm

import (
	"fmt"
	"unsafe"
)

// PageTable returns CR3: where the guest's page tables begin. Unlike State it
// only reads, so that an execution isn't changed by being looked at.
func (c *VCPU) PageTable() (uint64, error) {
	var s Sregs
	if err := ioctlPtr(c.fd, getSregs, unsafe.Pointer(&s)); err != nil {
		return 0, fmt.Errorf("read the virtual CPU's system registers: %w", err)
	}
	return s.CR3, nil
}
