package board

import (
	"fmt"

	"github.com/duet-ft/duet/hvd/chipset"
	"github.com/duet-ft/duet/hvd/mem"
)

// EOI without an exit (see hvd/chipset): here is what touches the guest's memory.
// Both copies look at the flag where a counted exit has come, and set it or take it
// back where the guest is entered again. Exits that the host causes see none of it.

// EOIFlag is the MSR with which the guest names the flag (MSR_KVM_PV_EOI_EN).
func (b *Board) EOIFlag() uint64 { return b.d.apic.EOIFlag }

// SetEOIFlag is a write to that MSR. It is false, and changes nothing, where KVM
// has the guest take a fault: reserved bits, or a flag outside of memory. An EOI
// that was offered has to come by an exit then.
func (b *Board) SetEOIFlag(v uint64) bool {
	a := *b.d.apic
	if !a.SetEOIFlag(v) || checkFlag(&a, b.mem) != nil {
		return false
	}
	b.offer(false)
	return b.d.apic.SetEOIFlag(v)
}

// checkFlag checks that the guest's flag is in memory.
func checkFlag(a *chipset.APIC, m *mem.Memory) error {
	at, on := a.EOIFlagAt()
	if !on {
		return nil
	}
	if _, err := m.View(at, 1); err != nil {
		return fmt.Errorf("the guest's EOI flag: %w", err)
	}
	return nil
}

// NamesFlag says whether the guest has named a flag.
func (b *Board) NamesFlag() bool {
	_, on := b.d.apic.EOIFlagAt()
	return on
}

// TakeEOI is to be called at each position, before anything else is done there: it
// ends the interrupt in service if the guest has cleared the flag.
func (b *Board) TakeEOI() {
	a := b.d.apic
	if !a.Offered {
		return
	}
	at, _ := a.EOIFlagAt()
	if v, err := b.mem.View(at, 1); err == nil && v[0]&1 == 0 {
		a.Offered = false
		a.EOI()
	}
}

// OfferEOI is to be called where the guest is entered from a position: it sets the
// flag if the guest may use it, and takes it back if not. taken says that an
// interrupt was taken right there (Ack), behind that more are due soon.
//
// Where others are due or wait, the guest has to leave as soon as it can take the
// next one, by an interrupt window: leave. An exit for the EOI, which comes before
// that in the same handler, can be spared then.
func (b *Board) OfferEOI(taken, behind bool) (leave bool) {
	a := b.d.apic
	if !b.NamesFlag() || !a.OneInService() {
		b.offer(false)
		return false
	}
	waits := a.Requested()
	leave = taken && (waits || behind)
	b.offer(leave || !waits)
	return leave
}

// offer sets the flag, or takes it back.
func (b *Board) offer(on bool) {
	a := b.d.apic
	if on == a.Offered {
		return
	}
	at, _ := a.EOIFlagAt()
	v := []byte{0}
	if on {
		v[0] = 1
	}
	if b.mem.Write(at, v) == nil { // as it always is, see checkFlag
		a.Offered = on
	}
}
