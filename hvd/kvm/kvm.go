// Package kvm talks to the kernel's KVM: virtual machines, their virtual CPU,
// memory and dirty log, and the run page that the kernel shares with us.
//
// # Place
//
// The only package that issues KVM's ioctls, and with hvd/mem the only one
// with unsafe, in the files named *_unsafe.go. hvd/vcpu runs the CPU with it.
// It imports nothing of ours.
//
// # What Duet asks of KVM
//
// One virtual CPU, no in-kernel interrupt controller (every device is in user
// space), a memory slot per contiguous region, dirty logging with manual
// clearing, an MSR filter that denies by default, and what image/kernel's
// patches add: time-stamps derived in the kernel and counted traps.
//
//	run page (KVM's struct kvm_run; offsets in bytes)
//	0     request_interrupt_window u8
//	1     immediate_exit           u8
//	8     exit_reason              u32
//	12    ready_for_interrupt_injection u8
//	13    if_flag                  u8
//	16    cr8                      u64
//	24    apic_base                u64
//	32    exit data, by reason (the kernel's api.rst, section 5)
//	288   kvm_valid_regs           u64
//	304   sync regs: struct kvm_regs
//	3072  Duet's page part, see Counters
//
// Sources: Documentation/virt/kvm/api.rst of Linux 6.12; image/kernel/patches.
package kvm

import (
	"errors"
	"fmt"
)

// ErrInterrupted says that Run came back because of a signal or because of
// SetImmediateExit, not because of the guest.
var ErrInterrupted = errors.New("interrupted")

// Exit reasons of KVM_RUN that Duet knows.
const (
	ExitUnknown       = 0
	ExitIO            = 2
	ExitDebug         = 4
	ExitHLT           = 5
	ExitMMIO          = 6
	ExitIRQWindowOpen = 7
	ExitShutdown      = 8
	ExitFailEntry     = 9
	ExitSetTPR        = 11
	ExitInternalError = 17
	ExitReadMSR       = 29
	ExitWriteMSR      = 30
	ExitTSC           = 0x52 // Duet: a time-stamp read that needs an anchor
	ExitTrap          = 0x53 // Duet: a counted trap reached the stop
)

// Flags of Duet's own capability. Those in Counted make up a set: which of them
// are in force may change between two runs, see Counters.Set.
const (
	FlagTSC     = 1  // derive time-stamps in the kernel
	FlagCR3     = 2  // count MOV to CR3
	FlagPF      = 4  // count the guest's page faults
	FlagPFWalk  = 8  // hide page faults which the guest's tables permit
	FlagSyscall = 16 // count SYSCALL and SYSRET
	FlagSet     = 32 // Counters.Set chooses; without it all flags are always on
	FlagWrite   = 64 // count a page's first write since the dirty log was cleared

	Counted = FlagCR3 | FlagPF | FlagSyscall | FlagWrite
)

// Indices of Counters.Kinds.
const (
	KindCR3 = iota
	KindPF
	KindTSC
	KindHidden // page faults that FlagPFWalk hid; they aren't traps
	KindSyscall
	KindSysret
	KindWrite
	Kinds
)

const (
	capDuet             = 0x5252
	capManualDirtyLog   = 168
	capUserSpaceMSR     = 188
	capExceptionPayload = 164
	msrExitReasonFilter = 4

	pageOfDuet = 3072
)

// Counters is Duet's part of the run page, shared with the kernel. The virtual
// CPU must be stopped while it is written, but for Stop.
type Counters struct {
	Traps uint64 // counted traps so far
	Stop  uint64 // leave the guest once Traps >= Stop
	Base  uint64 // anchor of the time-stamp
	Step  uint64 // what each read adds
	Reads uint64 // reads since the anchor
	Cap   uint64 // the most that reads may add
	Fresh uint64 // host time-stamp from which a read needs a new anchor; 0: never
	Kinds [Kinds]uint64
	Set   uint64 // flags of Counted that are in force from the next run on
}

// Derived is the value that the last time-stamp read gave, or the anchor.
func (c *Counters) Derived() uint64 { return c.Base + min(c.Reads*c.Step, c.Cap) }

// Next counts one more read and returns its value, as the kernel does.
func (c *Counters) Next() uint64 {
	c.Reads++
	return c.Derived()
}

// IO is a port access (ExitIO).
type IO struct {
	In    bool
	Size  int // bytes an item: 1, 2 or 4
	Port  uint16
	Count int    // items, more than one for string instructions
	Data  []byte // Size*Count bytes in the run page: out data, or to be filled
}

// MMIO is a memory access outside of memory (ExitMMIO).
type MMIO struct {
	Addr  uint64
	Write bool
	Data  []byte // 1 to 8 bytes in the run page
}

// MSR is an access to a filtered or unknown MSR.
type MSR struct {
	Index uint32
	Data  uint64
}

// unusable turns what KVM says about a missing or unfit host into a line for
// people.
func unusable(what string, err error) error {
	return fmt.Errorf("this host can't run virtual machines: %s: %w", what, err)
}
