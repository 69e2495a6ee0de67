package vcpu

import "github.com/duet-ft/duet/hvd/kvm"

// Features of CPUID leaf 1.
const (
	ecx1 = 1<<0 | // SSE3
		1<<9 | // SSSE3
		ecx1CMPXCHG16B |
		1<<19 | 1<<20 | // SSE4.1, SSE4.2
		1<<22 | 1<<23 // MOVBE, POPCNT
	ecx1CMPXCHG16B = 1 << 13
	ecx1Hypervisor = 1 << 31

	edx1Hidden = 1<<7 | 1<<14 | // machine check
		1<<12 | // MTRR
		1<<18 | 1<<21 | 1<<22 | // serial number, debug store, thermal
		1<<28 // hyper-threading
	edx1APIC = 1 << 9

	kvmLeaf  = 0x40000000 // and the next one: features
	kvmPVEOI = 1 << 6

	ebx7 = 1<<0 | // FSGSBASE
		1<<7 | // SMEP
		1<<9 | // ERMS
		1<<20 // SMAP
)

// Leaves picks, of the leaves that a host supports, those that a guest may
// see. Hidden is whatever would let the guest see anything but its own
// execution (DESIGN's list of non-determinism): random numbers, transactional
// memory, MONITOR, the performance counters, what KVM has for guests, its clock
// among it, and XSAVE with its modified-optimisations; without XSAVE the FPU's
// state is what FXSAVE writes, in full, always.
//
// Of KVM's features the guest sees one, which the board has (EOI without an exit).
// A Linux that finds KVM without any other feature registers no clock with it and
// makes no hypercall. It knows that it is a guest, so it loads no microcode and
// looks for no hard lockups.
//
// Under QEMU's TCG CMPXCHG16B is hidden, too: QEMU 7.2 works out its flags from a
// state that isn't up to date, and of a guest in SVM the next exit then saves parts
// of a pointer as RFLAGS, VM and TF among them. What it saves depends on which exits
// came before, so it isn't reproducible either.
//
// Source: AMD64 APM volume 3, appendix E; Intel SDM volume 2, CPUID; Linux's
// Documentation/virt/kvm/x86/cpuid.rst.
func Leaves(host []kvm.CPUID) []kvm.CPUID { return leaves(host, UnderTCG()) }

func leaves(host []kvm.CPUID, tcg bool) []kvm.CPUID {
	seen := []kvm.CPUID{
		{Function: kvmLeaf, EAX: kvmLeaf + 1, EBX: 0x4b4d564b, ECX: 0x564b4d56, EDX: 0x4d}, // "KVMKVMKVM"
		{Function: kvmLeaf + 1, EAX: kvmPVEOI},
	}
	for _, l := range host {
		if l.Function == 1 && tcg {
			l.ECX &^= ecx1CMPXCHG16B
		}
		if keep(&l) {
			seen = append(seen, l)
		}
	}
	return seen
}

// keep masks a leaf and says whether the guest sees it at all.
func keep(l *kvm.CPUID) bool {
	switch l.Function {
	case 0:
		l.EAX = min(l.EAX, 0xd)
	case 1:
		l.EBX = l.EBX&0xffff | 1<<16 // one logical CPU, APIC ID 0
		l.ECX = l.ECX&ecx1 | ecx1Hypervisor
		l.EDX = l.EDX&^edx1Hidden | edx1APIC
	case 2, 4:
		// Caches: the description of the host's.
	case 7:
		if l.Index != 0 {
			return false
		}
		l.EAX, l.EBX, l.ECX, l.EDX = 0, l.EBX&ebx7, 0, 0
	case 3, 5, 6, 8, 9, 0xa, 0xb, 0xc, 0xd:
		if l.Index != 0 {
			return false
		}
		l.EAX, l.EBX, l.ECX, l.EDX = 0, 0, 0, 0
	case 0x80000000:
		l.EAX = min(l.EAX, 0x80000008)
	case 0x80000001:
		l.ECX &= 1<<0 | 1<<8 // LAHF in 64-bit mode, 3DNowPrefetch
		l.EDX &^= 1<<7 | 1<<9 | 1<<12 | 1<<14 | 1<<28
		l.EDX &^= 1 << 27 // RDTSCP
	case 0x80000002, 0x80000003, 0x80000004, 0x80000005, 0x80000006:
	case 0x80000007:
		l.EAX, l.EBX, l.ECX, l.EDX = 0, 0, 0, 1<<8 // invariant time-stamp counter
	case 0x80000008:
		l.EBX, l.ECX, l.EDX = 0, 0, 0
	default:
		return false
	}
	return true
}

// AllowedMSRs are those that the guest reads and writes without an exit, in
// rising order. They hold only what the guest itself put there.
var AllowedMSRs = []uint32{
	0x174, 0x175, 0x176, // SYSENTER
	0x277,                                                      // PAT
	0xc0000080, 0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, // EFER, STAR, LSTAR, CSTAR, SFMASK
	0xc0000100, 0xc0000101, 0xc0000102, 0xc0000103, // FS, GS and kernel GS base, TSC_AUX
}
