package chipset

import "math/bits"

// The guest can end an interrupt without an exit (Linux's
// Documentation/virt/kvm/x86/msr.rst, MSR_KVM_PV_EOI_EN): it names a flag in its
// memory, and where it finds the flag set it clears it instead of writing to the
// EOI register.
//
//	          guest is entered                  guest has left
//	idle   -> one interrupt in service,      -> flag clear: an EOI
//	          no other one waits: flag set      flag set: nothing, it stays
//	set    -> another one waits:
//	          flag taken back
//
// With a single interrupt in service and none waiting, nothing but the APIC's own
// state hangs on the EOI: it is early enough to see it when the guest leaves next.
// Else it is what lets the next interrupt in, and has to be an exit, unless another
// exit is sure to come where that one can be taken.
//
// The flag is in memory, which isn't the APIC's: its owner sets it, and calls EOI
// when the guest has cleared it.

// Bits of the MSR; the rest is the flag's address.
const (
	eoiOn       = 1 << 0
	eoiReserved = 1 << 1 // the address is a multiple of 4
)

// SetEOIFlag takes what the guest writes to the MSR, and says whether that is
// possible; an impossible value changes nothing. Whether the address is memory is
// for the caller to see. The guest must have left, and Offered be false.
func (a *APIC) SetEOIFlag(v uint64) bool {
	if v&eoiReserved != 0 {
		return false
	}
	a.EOIFlag = v
	return true
}

// EOIFlagAt is where the flag is, one byte of which bit 0 counts; on says whether
// the guest has named one.
func (a *APIC) EOIFlagAt() (addr uint64, on bool) {
	return a.EOIFlag &^ (eoiOn | eoiReserved), a.EOIFlag&eoiOn != 0
}

// OneInService says whether the guest serves one interrupt, and no other one beneath
// it.
func (a *APIC) OneInService() bool {
	n := 0
	for _, w := range a.ISR {
		n += bits.OnesCount32(w)
	}
	return n == 1 && a.enabled()
}

// EOI ends the interrupt in service that has the highest priority.
func (a *APIC) EOI() {
	if i := a.ISR.highest(); i >= 0 {
		a.ISR.clear(uint8(i))
	}
}
