package chipset

import (
	"errors"
	"math/bits"
)

// APICBase is where the local APIC's page of registers is.
const APICBase = 0xfee00000

// Local vector table entries, by their place in APIC.LVT.
const (
	lvtTimer = iota
	lvtThermal
	lvtPerf
	lvtLINT0
	lvtLINT1
	lvtError
)

const (
	lvtMasked   = 1 << 16
	lvtPeriodic = 1 << 17

	modeFixed  = 0
	modeLowest = 1
	modeExtINT = 7

	svrEnable = 1 << 8

	errSendVector    = 1 << 5
	errReceiveVector = 1 << 6
	errRegister      = 1 << 7
)

// lvtBits are the bits of each entry that a guest can write. The timer's TSC
// deadline mode isn't there: CPUID must not offer it.
var lvtBits = [6]uint32{
	lvtTimer: 0x300ff, lvtThermal: 0x107ff, lvtPerf: 0x107ff,
	lvtLINT0: 0x1a7ff, lvtLINT1: 0x1a7ff, lvtError: 0x100ff,
}

// vectors is a set of interrupt vectors, as in the registers IRR, ISR and TMR.
type vectors [8]uint32

func (s *vectors) set(v uint8)   { s[v>>5] |= 1 << (v & 31) }
func (s *vectors) clear(v uint8) { s[v>>5] &^= 1 << (v & 31) }

// highest is the highest vector of the set, or -1.
func (s *vectors) highest() int {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] != 0 {
			return 32*i + 31 - bits.LeadingZeros32(s[i])
		}
	}
	return -1
}

// APIC is the local APIC of the one processor, in xAPIC mode (Intel SDM volume
// 3, chapter "Advanced Programmable Interrupt Controller"). There is no I/O
// APIC. Interrupts come as messages (Deliver), from the timer, from the guest
// itself (ICR), and through LINT0 from the PIC (see ExtINT). NMI, SMI, INIT and
// start-up messages go nowhere, and LINT1 isn't connected.
type APIC struct {
	ID            uint32 // in bits 31:24
	TPR           uint8
	LDR, DFR      uint32
	SVR           uint32
	IRR, ISR, TMR vectors
	ESR           uint32 // what a read returns
	Errors        uint32 // seen since the last write to ESR
	ICR           [2]uint32
	LVT           [6]uint32
	InitialCount  uint32
	Divide        uint32
	Expires       uint64 // when the timer's count reaches zero; 0: it is stopped
	EOIFlag       uint64 // the MSR that names the flag; see apic_eoi.go
	Offered       bool   // the flag was set when the guest was entered last
}

// NewAPIC returns the APIC as a firmware leaves it: software-disabled, and
// LINT0 open for the PIC (virtual wire mode).
func NewAPIC() *APIC {
	a := &APIC{DFR: 0xffffffff, SVR: 0xff}
	for i := range a.LVT {
		a.LVT[i] = lvtMasked
	}
	a.LVT[lvtLINT0] = modeExtINT << 8
	return a
}

// Validate checks a restored state.
func (a *APIC) Validate() error {
	for i, v := range a.LVT {
		if v&^lvtBits[i] != 0 {
			return errors.New("APIC: reserved bits in the local vector table")
		}
	}
	if a.EOIFlag&eoiReserved != 0 || a.Offered && a.EOIFlag&eoiOn == 0 {
		return errors.New("APIC: an EOI is offered without a flag")
	}
	return nil
}

func (a *APIC) enabled() bool { return a.SVR&svrEnable != 0 }

// ExtINT says whether LINT0 lets the PIC's interrupts through.
func (a *APIC) ExtINT() bool { return a.LVT[lvtLINT0]&(lvtMasked|0x700) == modeExtINT<<8 }

// PPR is the processor priority: what runs, or what TPR forbids.
func (a *APIC) PPR() uint8 {
	if v := a.ISR.highest(); v >= 0 && uint8(v)&0xf0 > a.TPR&0xf0 {
		return uint8(v) & 0xf0
	}
	return a.TPR
}

// Pending says whether an interrupt of the APIC's own waits that its
// priorities let through.
func (a *APIC) Pending() bool {
	v := a.IRR.highest()
	return v >= 0 && a.enabled() && uint8(v)&0xf0 > a.PPR()&0xf0
}

// Requested says whether a request waits, even one that its priorities hold
// back.
func (a *APIC) Requested() bool { return a.enabled() && a.IRR.highest() >= 0 }

// Ack puts the highest request in service and returns its vector, or the
// spurious vector, which is not in service, if none is pending (any more).
func (a *APIC) Ack() uint8 {
	if !a.Pending() {
		return uint8(a.SVR)
	}
	v := uint8(a.IRR.highest())
	a.IRR.clear(v)
	a.ISR.set(v)
	return v
}

// Deliver takes an interrupt message for this processor. A software-disabled
// APIC ignores it.
func (a *APIC) Deliver(vector uint8, level bool) {
	switch {
	case !a.enabled():
		return
	case vector < 16:
		a.fail(errReceiveVector)
		return
	}
	a.IRR.set(vector)
	if level {
		a.TMR.set(vector)
	} else {
		a.TMR.clear(vector)
	}
}

// Accepts says whether a message's destination means this processor.
func (a *APIC) Accepts(dest uint8, logical bool) bool {
	id := uint8(a.LDR >> 24)
	switch {
	case dest == 0xff:
		return true
	case !logical:
		return dest == uint8(a.ID>>24)
	case a.DFR>>28 == 0xf: // flat
		return dest&id != 0
	}
	return dest>>4 == id>>4 && dest&id&0xf != 0
}

// MSI takes what a device wrote to the page of interrupt messages: the address
// says which processor, the data what to do (SDM volume 3, "Message Signalled
// Interrupts"). Only fixed and lowest-priority messages are delivered.
func (a *APIC) MSI(addr uint64, data uint32) {
	mode := data >> 8 & 7
	if addr>>20 != APICBase>>20 || mode != modeFixed && mode != modeLowest {
		return
	}
	if a.Accepts(uint8(addr>>12), addr&4 != 0) {
		a.Deliver(uint8(data), data>>15&1 == 1)
	}
}

// fail records an error, and raises the error interrupt.
func (a *APIC) fail(e uint32) {
	a.Errors |= e
	if l := a.LVT[lvtError]; l&lvtMasked == 0 && a.enabled() {
		if uint8(l) < 16 {
			a.Errors |= errReceiveVector
			return
		}
		a.IRR.set(uint8(l))
		a.TMR.clear(uint8(l))
	}
}

// Deadline is when the timer interrupts next.
func (a *APIC) Deadline() (ns uint64, armed bool) {
	return a.Expires, a.Expires != 0 && a.LVT[lvtTimer]&lvtMasked == 0
}

// Advance does what the timer has to do by now, and says whether it
// interrupted. A masked timer counts silently.
func (a *APIC) Advance(now uint64) (fired bool) {
	if a.Expires == 0 || now < a.Expires {
		return false
	}
	l := a.LVT[lvtTimer]
	if period := uint64(a.InitialCount) << a.shift(); l&lvtPeriodic != 0 && period != 0 {
		a.Expires = addSat(a.Expires, (now-a.Expires)/period*period)
		a.Expires = addSat(a.Expires, period)
	} else {
		a.Expires = 0
	}
	if l&lvtMasked != 0 {
		return false
	}
	a.Deliver(uint8(l), false)
	return true
}

// shift is the divider as a power of two: 1 to 7 for 0 to 6, and 0 for 7.
func (a *APIC) shift() uint32 { return ((a.Divide&3 | a.Divide>>1&4) + 1) & 7 }

// currentCount is the timer's count, rounded up: it is zero when it fired.
func (a *APIC) currentCount(now uint64) uint32 {
	if a.Expires <= now {
		return 0
	}
	left := a.Expires - now
	s := a.shift()
	return uint32(min((left-1)>>s+1, uint64(a.InitialCount)))
}

// startTimer lets the timer count n from now on.
func (a *APIC) startTimer(n uint32, now uint64) {
	a.Expires = 0
	if n != 0 {
		a.Expires = addSat(now, uint64(n)<<a.shift())
	}
}
