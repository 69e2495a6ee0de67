package chipset

import "testing"

// on returns an enabled APIC with spurious vector ffh.
func on() *APIC {
	a := NewAPIC()
	a.Write(regSVR, 0x1ff, 0)
	return a
}

func TestAPICPriorities(t *testing.T) {
	a := on()
	a.Deliver(0x41, false)
	a.Deliver(0x45, false)
	a.Deliver(0x31, false)
	if v := a.Ack(); v != 0x45 {
		t.Fatalf("first %#x, want the highest", v)
	}
	if a.Pending() {
		t.Error("0x41 is of the class that is in service")
	}
	a.Deliver(0x51, false)
	if !a.Pending() || a.Ack() != 0x51 {
		t.Error("a higher class doesn't nest")
	}
	if ppr := a.Read(regPPR, 0); ppr != 0x50 {
		t.Errorf("PPR %#x", ppr)
	}
	a.Write(regEOI, 0, 0)
	a.Write(regEOI, 0, 0)
	if v := a.Ack(); v != 0x41 {
		t.Errorf("after the EOIs %#x", v)
	}
	a.Write(regEOI, 0, 0)
	a.Write(regTPR, 0x3f, 0)
	if a.Pending() {
		t.Error("TPR 3f lets 31 through")
	}
	if v := a.Ack(); v != 0xff || a.ISR.highest() != -1 {
		t.Errorf("spurious vector %#x, or something is in service", v)
	}
	if ppr := a.Read(regPPR, 0); ppr != 0x3f {
		t.Errorf("PPR %#x, want TPR", ppr)
	}
	a.Write(regTPR, 0x20, 0)
	if v := a.Ack(); v != 0x31 {
		t.Errorf("last %#x", v)
	}
}

func TestAPICRegistersOfVectors(t *testing.T) {
	a := on()
	a.Deliver(0x41, true)
	a.Deliver(0xef, false)
	if a.Read(regIRR+0x20, 0) != 2 || a.Read(regIRR+0x70, 0) != 1<<15 || a.Read(regTMR+0x20, 0) != 2 {
		t.Error("IRR or TMR")
	}
	a.Ack()
	if a.Read(regISR+0x70, 0) != 1<<15 || a.Read(regIRR+0x70, 0) != 0 {
		t.Error("ISR")
	}
}

func TestAPICSoftwareDisabled(t *testing.T) {
	a := NewAPIC()
	if !a.ExtINT() {
		t.Error("LINT0 isn't open after reset")
	}
	a.Deliver(0x41, false)
	if a.Pending() || a.IRR.highest() != -1 {
		t.Error("a disabled APIC took an interrupt")
	}
	a.Write(regSVR, 0x1ff, 0)
	a.Write(regLVT+0x30, 0x700, 0)
	a.Write(regSVR, 0xff, 0)
	if a.Read(regLVT, 0)&lvtMasked == 0 {
		t.Error("disabling it doesn't mask the vector table")
	}
	if !a.ExtINT() {
		t.Error("disabling it disconnects the PIC")
	}
	a.Write(regLVT, 0xec, 0)
	if a.Read(regLVT, 0)&lvtMasked == 0 {
		t.Error("a disabled APIC unmasks its timer")
	}
}

func TestAPICTimerOneShot(t *testing.T) {
	a := on()
	a.Write(regDivide, 3, 0) // by 16
	a.Write(regLVT, 0xec, 0)
	a.Write(regInitialCount, 1000, 100)
	if at, armed := a.Deadline(); !armed || at != 16100 {
		t.Fatalf("deadline %d %v", at, armed)
	}
	for now, want := range map[uint64]uint32{100: 1000, 101: 1000, 116: 999, 8100: 500, 16099: 1, 16100: 0, 20000: 0} {
		if got := a.Read(regCurrentCount, now); got != want {
			t.Errorf("count at %d: %d, want %d", now, got, want)
		}
	}
	if a.Advance(16099) || !a.Advance(16100) || a.Ack() != 0xec {
		t.Error("didn't fire exactly at its deadline")
	}
	if _, armed := a.Deadline(); armed {
		t.Error("still armed")
	}
	a.Write(regInitialCount, 1000, 20000)
	a.Write(regInitialCount, 0, 20001)
	if _, armed := a.Deadline(); armed {
		t.Error("armed after a count of 0")
	}
}

func TestAPICTimerDividers(t *testing.T) {
	for v, want := range map[uint32]uint64{0: 2, 1: 4, 2: 8, 3: 16, 8: 32, 9: 64, 10: 128, 11: 1} {
		a := on()
		a.Write(regLVT, 0xec, 0)
		a.Write(regDivide, v, 0)
		a.Write(regInitialCount, 1000, 0)
		if at, _ := a.Deadline(); at != 1000*want {
			t.Errorf("divider %#x: %d ns a tick, want %d", v, at/1000, want)
		}
	}
}

func TestAPICTimerPeriodic(t *testing.T) {
	a := on()
	a.Write(regDivide, 11, 0)
	a.Write(regLVT, lvtPeriodic|0xec, 0)
	a.Write(regInitialCount, 1000, 0)
	for _, c := range []struct{ now, next uint64 }{{1000, 2000}, {2500, 3000}, {9000, 10000}} {
		if !a.Advance(c.now) || a.Advance(c.now) {
			t.Errorf("at %d: want exactly one interrupt", c.now)
		}
		if at, _ := a.Deadline(); at != c.next {
			t.Errorf("after %d the deadline is %d, want %d", c.now, at, c.next)
		}
	}
	if got := a.Read(regCurrentCount, 9400); got != 600 {
		t.Errorf("count %d", got)
	}
}

func TestAPICTimerMasked(t *testing.T) {
	a := on()
	a.Write(regDivide, 11, 0)
	a.Write(regLVT, lvtMasked|lvtPeriodic|0xec, 0)
	a.Write(regInitialCount, 1000, 0)
	if _, armed := a.Deadline(); armed {
		t.Error("a masked timer has a deadline")
	}
	a.Write(regLVT, lvtPeriodic|0xec, 3500)
	if at, armed := a.Deadline(); !armed || at != 4000 || a.Pending() {
		t.Errorf("deadline %d %v after unmasking; what passed must not fire", at, armed)
	}
}

func TestAPICTimerDividerWhileRunning(t *testing.T) {
	a := on()
	a.Write(regDivide, 11, 0)
	a.Write(regLVT, 0xec, 0)
	a.Write(regInitialCount, 1000, 0)
	a.Write(regDivide, 0, 400)
	if at, _ := a.Deadline(); at != 400+600*2 {
		t.Errorf("deadline %d", at)
	}
}

func TestAPICSelfIPI(t *testing.T) {
	for _, c := range []struct {
		name      string
		high, low uint32
		want      bool
	}{
		{"physical, own ID", 0, 0x41, true},
		{"physical, another ID", 1 << 24, 0x41, false},
		{"physical, everybody", 0xff << 24, 0x41, true},
		{"logical, flat", 1 << 24, 0x841, true},
		{"logical, another", 2 << 24, 0x841, false},
		{"shorthand self", 9 << 24, 0x40041, true},
		{"shorthand all", 9 << 24, 0x80041, true},
		{"shorthand others", 0, 0xc0041, false},
		{"NMI isn't delivered", 0, 0x40441, false},
		{"INIT isn't delivered", 0, 0x40541, false},
	} {
		a := on()
		a.Write(regLDR, 1<<24, 0)
		a.Write(regICRHigh, c.high, 0)
		a.Write(regICRLow, c.low, 0)
		if got := a.Pending(); got != c.want {
			t.Errorf("%s: delivered %v", c.name, got)
		}
		if a.Read(regICRLow, 0)&(1<<12) != 0 {
			t.Errorf("%s: delivery never ends", c.name)
		}
	}
}

func TestAPICLogicalCluster(t *testing.T) {
	a := on()
	a.Write(regDFR, 0, 0)
	a.Write(regLDR, 0x21<<24, 0)
	for dest, want := range map[uint8]bool{0x21: true, 0x23: true, 0x22: false, 0x11: false, 0xff: true} {
		if got := a.Accepts(dest, true); got != want {
			t.Errorf("destination %#x accepted: %v", dest, got)
		}
	}
}

func TestAPICMSI(t *testing.T) {
	for _, c := range []struct {
		addr uint64
		data uint32
		want bool
	}{
		{0xfee00000, 0x41, true},
		{0xfee00000, 0x141, true}, // lowest priority
		{0xfee01000, 0x41, false}, // another processor
		{0xfee00000, 0x441, false},
		{0xfec00000, 0x41, false},
		{0x1fee00000, 0x41, false},
	} {
		a := on()
		a.MSI(c.addr, c.data)
		if got := a.Pending(); got != c.want {
			t.Errorf("message %#x to %#x: delivered %v", c.data, c.addr, got)
		}
	}
}

func TestAPICErrors(t *testing.T) {
	a := on()
	a.Write(regLVT+0x50, 0xfe, 0)
	a.Write(regICRLow, 0x40005, 0)
	a.MSI(APICBase, 3)
	a.Write(0x3f0, 1, 0)
	if a.Read(regESR, 0) != 0 {
		t.Error("ESR changed before it was written")
	}
	a.Write(regESR, 0, 0)
	if got := a.Read(regESR, 0); got != errSendVector|errReceiveVector|errRegister {
		t.Errorf("ESR %#x", got)
	}
	if a.Ack() != 0xfe {
		t.Error("no error interrupt")
	}
	a.Write(regESR, 0, 0)
	if got := a.Read(regESR, 0); got != 0 {
		t.Errorf("ESR %#x after a second write", got)
	}
}

func TestAPICFixedRegisters(t *testing.T) {
	a := on()
	for off, want := range map[uint32]uint32{regID: 0, regVersion: 0x50014, regDFR: 0xffffffff, regLVT + 0x30: 0x700, regLVT: lvtMasked} {
		if got := a.Read(off, 0); got != want {
			t.Errorf("register %#x is %#x, want %#x", off, got, want)
		}
	}
	a.Write(regLVT, 0xffffffff, 0)
	if got := a.Read(regLVT, 0); got != lvtBits[lvtTimer] {
		t.Errorf("timer entry %#x", got)
	}
	if err := a.Validate(); err != nil {
		t.Error(err)
	}
}
