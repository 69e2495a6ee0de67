package chipset

import "testing"

func TestEOIFlagBits(t *testing.T) {
	a := on()
	for _, c := range []struct {
		v    uint64
		ok   bool
		addr uint64
		on   bool
	}{
		{0x1001, true, 0x1000, true},
		{0x1005, true, 0x1004, true},
		{0x1003, false, 0x1004, true}, // bit 1 is reserved
		{0x1002, false, 0x1004, true},
		{0x2000, true, 0x2000, false},
		{^uint64(2), true, ^uint64(3), true},
		{0, true, 0, false},
	} {
		ok := a.SetEOIFlag(c.v)
		if addr, on := a.EOIFlagAt(); ok != c.ok || addr != c.addr || on != c.on {
			t.Errorf("%#x: %t, then the flag is at %#x, %t", c.v, ok, addr, on)
		}
	}
}

func TestOneInService(t *testing.T) {
	serve := func(vectors ...uint8) func(*APIC) {
		return func(a *APIC) {
			for _, v := range vectors {
				a.Deliver(v, false)
				a.Ack()
			}
		}
	}
	for _, c := range []struct {
		name string
		do   func(a *APIC)
		want bool
	}{
		{"idle", func(*APIC) {}, false},
		{"waiting", func(a *APIC) { a.Deliver(0x41, false) }, false},
		{"in service", serve(0x41), true},
		{"level", func(a *APIC) { a.Deliver(0x41, true); a.Ack() }, true},
		{"nested", serve(0x41, 0x51), false},
		{"outer one of two", func(a *APIC) { serve(0x41, 0x51)(a); a.EOI() }, true},
		{"ended", func(a *APIC) { serve(0x41)(a); a.EOI() }, false},
		{"software-disabled", func(a *APIC) { serve(0x41)(a); a.Write(regSVR, 0xff, 0) }, false},
	} {
		a := on()
		c.do(a)
		if got := a.OneInService(); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}

func TestEOIFlagOfState(t *testing.T) {
	for name, spoil := range map[string]func(*APIC){
		"reserved bit": func(a *APIC) { a.EOIFlag = 0x1003 },
		"no flag":      func(a *APIC) { a.Offered = true },
	} {
		a := on()
		if spoil(a); a.Validate() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
