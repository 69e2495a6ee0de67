package kvm

// Regs is struct kvm_regs.
type Regs struct {
	RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP            uint64
	R8, R9, R10, R11, R12, R13, R14, R15, RIP, RFLAGS uint64
}

// Segment is struct kvm_segment.
type Segment struct {
	Base                                           uint64
	Limit                                          uint32
	Selector                                       uint16
	Type, Present, DPL, DB, S, L, G, AVL, Unusable uint8
	_                                              uint8
}

// Table is struct kvm_dtable.
type Table struct {
	Base  uint64
	Limit uint16
	_     [3]uint16
}

// Sregs is struct kvm_sregs.
type Sregs struct {
	CS, DS, ES, FS, GS, SS, TR, LDT Segment
	GDT, IDT                        Table
	CR0, CR2, CR3, CR4, CR8         uint64
	EFER, APICBase                  uint64
	Interrupts                      [4]uint64
}

// CPUID is one leaf, struct kvm_cpuid_entry2.
type CPUID struct {
	Function, Index, Flags uint32
	EAX, EBX, ECX, EDX     uint32
	_                      [3]uint32
}

// maxCPUID bounds the leaves asked of the kernel, and those a guest gets.
const maxCPUID = 256

// StateMSRs are the MSRs that are part of a guest's state, beside those that
// live in Sregs.
var StateMSRs = [...]uint32{
	0x174, 0x175, 0x176, // SYSENTER_CS, _ESP, _EIP
	0x1d9,                                          // DEBUGCTL
	0x277,                                          // PAT
	0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, // STAR, LSTAR, CSTAR, SFMASK
	0xc0000102, // KERNEL_GS_BASE
	0xc0000103, // TSC_AUX
}

// State is the state of a virtual CPU between two instructions. It has no
// pending port or memory access: VCPU.Settle has finished it.
//
// Layout when it travels (little endian, all of it fixed): the fields in this
// order, as the kernel lays them out.
type State struct {
	Sregs  Sregs
	Regs   Regs
	XSAVE  [4096]byte // struct kvm_xsave
	XCR0   uint64
	MSRs   [len(StateMSRs)]uint64
	Events [64]byte  // struct kvm_vcpu_events
	Debug  [128]byte // struct kvm_debugregs
}

// LSTAR is where SYSCALL of 64-bit code leads to.
func (s *State) LSTAR() uint64 { return s.MSRs[6] }

// CSTAR is where SYSCALL of 32-bit code leads to in long mode.
func (s *State) CSTAR() uint64 { return s.MSRs[7] }

// StateSize is the length of State.Append's encoding.
const StateSize = 312 + 144 + 4096 + 8 + 8*len(StateMSRs) + 64 + 128

// Offsets in struct kvm_vcpu_events.
const (
	eventInjected   = 0  // exception.injected u8
	eventVector     = 1  // exception.nr u8
	eventPending    = 3  // exception.pending u8
	eventErrorCode  = 4  // exception.error_code u32
	eventInterrupt  = 8  // interrupt.injected u8
	eventShadow     = 11 // interrupt.shadow u8
	eventNMI        = 12 // nmi.injected u8
	eventFlags      = 20 // flags u32
	eventHasPayload = 55 // exception_has_payload u8
	eventPayload    = 56 // exception_payload u64

	validPayload = 0x10 // KVM_VCPUEVENT_VALID_PAYLOAD of flags
)

// canonical clears what KVM leaves behind without meaning, so that equal
// states have equal bytes.
func (s *State) canonical() {
	if s.Events[eventInjected] == 0 && s.Events[eventPending] == 0 {
		clear(s.Events[eventErrorCode : eventErrorCode+4])
	}
	// KVM on SVM truncates SYSENTER_ESP and _EIP to 32 bits when they are set
	// and the guest's CPU is an AMD one, which never uses them in long mode.
	s.MSRs[1] &= 1<<32 - 1
	s.MSRs[2] &= 1<<32 - 1
}
