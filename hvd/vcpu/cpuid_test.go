package vcpu

import (
	"encoding/binary"
	"testing"

	"github.com/duet-ft/duet/hvd/kvm"
)

// TestLeaves checks what is hidden from guests, and what more under QEMU's TCG.
func TestLeaves(t *testing.T) {
	all := kvm.CPUID{Function: 1, EAX: ^uint32(0), EBX: ^uint32(0), ECX: ^uint32(0), EDX: ^uint32(0)}
	host := []kvm.CPUID{all, {Function: 0x40000000, EAX: 1}, {Function: 0x40000001, EAX: ^uint32(0), EDX: 1}, {Function: 7, Index: 1, EAX: 1}}
	for _, tcg := range []bool{false, true} {
		got := leaves(host, tcg)
		if len(got) != 3 || got[0].Function != 0x40000000 || got[1].Function != 0x40000001 || got[2].Function != 1 {
			t.Fatalf("a guest sees the leaves %+v", got)
		}
		if l := got[0]; string(binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(
			binary.LittleEndian.AppendUint32(nil, l.EBX), l.ECX), l.EDX)) != "KVMKVMKVM\x00\x00\x00" || l.EAX != 0x40000001 {
			t.Errorf("a guest sees the hypervisor %+v", l)
		}
		if l := got[1]; l.EAX != 1<<6 || l.EBX|l.ECX|l.EDX != 0 {
			t.Errorf("a guest sees the features of KVM %+v", l)
		}
		const (
			monitor, rdrand, xsave = 1 << 3, 1 << 30, 1 << 26
			sse42                  = 1 << 20
		)
		if c := got[2].ECX; c&(monitor|rdrand|xsave) != 0 || c&sse42 == 0 || c&ecx1Hypervisor == 0 || (c&ecx1CMPXCHG16B == 0) != tcg {
			t.Errorf("TCG %t: leaf 1 has ECX %#x", tcg, c)
		}
		if apic := got[2].EBX >> 16; apic != 1 {
			t.Errorf("a guest sees the APIC ID and number of CPUs %#x", apic)
		}
	}
	if host[0] != all {
		t.Error("the host's leaves were changed")
	}
}
