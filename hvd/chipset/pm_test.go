package chipset

import "testing"

func TestPMReset(t *testing.T) {
	for _, c := range []struct {
		name string
		run  func(p *PM) PowerAction
		want PowerAction
	}{
		{"SLP_EN", func(p *PM) PowerAction { return p.Write(PM1Control+1, 0x20) }, PowerOff},
		{"SLP_TYP alone", func(p *PM) PowerAction { return p.Write(PM1Control+1, 0x1c) }, PowerNone},
		{"keyboard controller", func(p *PM) PowerAction { return p.Write(KBDCommand, 0xfe) }, PowerReset},
		{"another keyboard command", func(p *PM) PowerAction { return p.Write(KBDCommand, 0xad) }, PowerNone},
		{"cf9 prepared", func(p *PM) PowerAction { return p.Write(ResetPort, 2) }, PowerNone},
		{"cf9", func(p *PM) PowerAction { p.Write(ResetPort, 2); return p.Write(ResetPort, 6) }, PowerReset},
		{"cf9 again", func(p *PM) PowerAction { p.Write(ResetPort, 6); return p.Write(ResetPort, 6) }, PowerNone},
	} {
		if got := c.run(NewPM()); got != c.want {
			t.Errorf("%s: action %d, want %d", c.name, got, c.want)
		}
	}
}

func TestPMButton(t *testing.T) {
	p := NewPM()
	p.PressButton()
	if p.SCI() || p.Read(PM1Event+1) != 1 {
		t.Error("an interrupt that isn't enabled, or no status")
	}
	p.Write(PM1Event+3, 1)
	if !p.SCI() {
		t.Error("no interrupt")
	}
	p.Write(PM1Event, 0xff) // other bits
	if !p.SCI() {
		t.Error("cleared by other bits")
	}
	p.Write(PM1Event+1, 1)
	if p.SCI() || p.Read(PM1Event+1) != 0 {
		t.Error("not cleared by writing a one")
	}
	if p.Read(PM1Control)&pmSCIEnable == 0 {
		t.Error("not in ACPI mode")
	}
}

func TestPMTimer(t *testing.T) {
	p := NewPM()
	for _, c := range []struct {
		now  uint64
		want uint32
	}{
		{1_000_000, 3579},
		{1_000_000, 3580}, // time stands still
		{1_000_279, 3581}, // or nearly so
		{2_000_000, 7159},
		{5_000_000_000, 17897725 & pmTimerMask}, // wrapped
		{1 << 63, 0xd2df60},
	} {
		if got := p.ReadTimer(c.now); got != c.want {
			t.Errorf("at %d: %#x, want %#x", c.now, got, c.want)
		}
	}
}
