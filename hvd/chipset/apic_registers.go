package chipset

// Offsets of the local APIC's registers (SDM volume 3, table "Local APIC
// Register Address Map"). Each is 32 bits wide, on a boundary of 16 bytes.
const (
	regID           = 0x020
	regVersion      = 0x030
	regTPR          = 0x080
	regPPR          = 0x0a0
	regEOI          = 0x0b0
	regLDR          = 0x0d0
	regDFR          = 0x0e0
	regSVR          = 0x0f0
	regISR          = 0x100
	regTMR          = 0x180
	regIRR          = 0x200
	regESR          = 0x280
	regICRLow       = 0x300
	regICRHigh      = 0x310
	regLVT          = 0x320
	regInitialCount = 0x380
	regCurrentCount = 0x390
	regDivide       = 0x3e0

	// apicVersion: an integrated APIC with six entries in the vector table.
	apicVersion = 5<<16 | 0x14
)

// Read returns the register at an offset in the page.
func (a *APIC) Read(off uint32, now uint64) uint32 {
	switch {
	case off&0xf != 0:
		return 0
	case off >= regISR && off < regTMR:
		return a.ISR[(off-regISR)>>4]
	case off >= regTMR && off < regIRR:
		return a.TMR[(off-regTMR)>>4]
	case off >= regIRR && off < regESR:
		return a.IRR[(off-regIRR)>>4]
	case off >= regLVT && off < regInitialCount:
		return a.LVT[(off-regLVT)>>4]
	}
	switch off {
	case regID:
		return a.ID
	case regVersion:
		return apicVersion
	case regTPR:
		return uint32(a.TPR)
	case regPPR:
		return uint32(a.PPR())
	case regLDR:
		return a.LDR
	case regDFR:
		return a.DFR
	case regSVR:
		return a.SVR
	case regESR:
		return a.ESR
	case regICRLow, regICRHigh:
		return a.ICR[off>>4&1]
	case regInitialCount:
		return a.InitialCount
	case regCurrentCount:
		return a.currentCount(now)
	case regDivide:
		return a.Divide
	case regEOI: // write-only
		return 0
	}
	a.fail(errRegister)
	return 0
}

// Write stores to the register at an offset in the page.
func (a *APIC) Write(off, v uint32, now uint64) {
	if off&0xf != 0 {
		return
	}
	if off >= regLVT && off < regInitialCount {
		a.Advance(now) // what was due under the old entry
		a.writeLVT(int(off-regLVT)>>4, v)
		return
	}
	switch off {
	case regID:
		a.ID = v & 0xff000000
	case regTPR:
		a.TPR = uint8(v)
	case regEOI:
		a.EOI()
	case regLDR:
		a.LDR = v & 0xff000000
	case regDFR:
		a.DFR = v | 0x0fffffff
	case regSVR:
		a.writeSVR(v)
	case regESR:
		a.ESR, a.Errors = a.Errors, 0
	case regICRLow:
		a.ICR[0] = v & 0xccfff
		a.send(v)
	case regICRHigh:
		a.ICR[1] = v & 0xff000000
	case regInitialCount:
		a.Advance(now)
		a.InitialCount = v
		a.startTimer(v, now)
	case regDivide:
		a.Advance(now)
		left := a.currentCount(now)
		a.Divide = v & 0xb
		if a.Expires != 0 {
			a.startTimer(left, now)
		}
	case regVersion, regPPR, regCurrentCount: // read-only
	default:
		if off < regISR || off >= regESR {
			a.fail(errRegister)
		}
	}
}

// writeLVT stores an entry of the local vector table. While the APIC is
// software-disabled the entries stay masked, all but LINT0.
//
// On the hardware LINT0 is masked as well. Linux disables the APIC for a moment
// while it sets it up, and leaves LINT0 masked if it finds it so: it counts on
// an I/O APIC for the timer's interrupt then. There is none here, and the PIC
// must stay connected.
func (a *APIC) writeLVT(i int, v uint32) {
	a.LVT[i] = v & lvtBits[i]
	if !a.enabled() && i != lvtLINT0 {
		a.LVT[i] |= lvtMasked
	}
}

func (a *APIC) writeSVR(v uint32) {
	a.SVR = v & 0x3ff
	if !a.enabled() {
		for i := range a.LVT {
			if i != lvtLINT0 { // see writeLVT
				a.LVT[i] |= lvtMasked
			}
		}
	}
}

// send is a write to the interrupt command register. There is one processor:
// only what it sends to itself arrives.
func (a *APIC) send(v uint32) {
	mode := v >> 8 & 7
	if mode != modeFixed && mode != modeLowest {
		return
	}
	vector := uint8(v)
	if vector < 16 {
		a.fail(errSendVector)
		return
	}
	toSelf := false
	switch v >> 18 & 3 { // shorthand
	case 0:
		toSelf = a.Accepts(uint8(a.ICR[1]>>24), v>>11&1 == 1)
	case 1, 2: // self; all including self
		toSelf = true
	}
	if toSelf {
		a.Deliver(vector, false)
	}
}
