package chipset

import (
	"fmt"
	"slices"
	"testing"
)

// initPIC programs the pair as Linux does: vectors 30h and 38h.
func initPIC(level uint16) *PIC {
	p := NewPIC(level)
	for _, w := range []struct {
		port uint16
		v    uint8
	}{
		{0x20, 0x11},
		{0x21, 0x30},
		{0x21, 4},
		{0x21, 1},
		{0xa0, 0x11},
		{0xa1, 0x38},
		{0xa1, 2},
		{0xa1, 1},
	} {
		p.Write(w.port, w.v)
	}
	return p
}

// acks takes all interrupts that are pending, without an EOI.
func acks(p *PIC) []uint8 {
	var out []uint8
	for p.Pending() {
		out = append(out, p.Ack())
	}
	return out
}

const (
	eoi    = 0x20 // OCW2: non-specific end of interrupt
	rotate = 0xa0 // the same, with rotation
)

// picTests let the pair of initPIC do something and tell what came out.
var picTests = []struct {
	name string
	run  func(p *PIC) []uint8
	want []uint8
}{
	{"an edge interrupts once", func(p *PIC) []uint8 {
		p.Set(3, true)
		v := acks(p)
		p.Write(0x20, eoi)
		return append(v, acks(p)...)
	}, []uint8{0x33}},
	{"a level interrupts until it goes away", func(p *PIC) []uint8 {
		p.Set(5, true)
		v := acks(p)
		p.Write(0x20, eoi)
		v = append(v, acks(p)...)
		p.Set(5, false)
		p.Write(0x20, eoi)
		return append(v, acks(p)...)
	}, []uint8{0x35, 0x35}},
	{"higher priority nests, lower waits for the EOI", func(p *PIC) []uint8 {
		p.Set(4, true)
		v := acks(p)
		p.Set(6, true)
		p.Set(1, true)
		v = append(v, acks(p)...)
		p.Write(0x20, eoi) // ends 1
		v = append(v, acks(p)...)
		p.Write(0x20, eoi) // ends 4
		return append(v, acks(p)...)
	}, []uint8{0x34, 0x31, 0x36}},
	{"specific EOI", func(p *PIC) []uint8 {
		p.Set(1, true)
		v := acks(p)
		p.Set(0, true)
		v = append(v, acks(p)...)
		p.Write(0x20, 0x61) // ends 1, while 0 is in service
		return append(v, p.Master.ISR)
	}, []uint8{0x31, 0x30, 1}},
	{"masked", func(p *PIC) []uint8 {
		p.Write(0x21, 1<<3)
		p.Set(3, true)
		v := append(acks(p), p.Read(0x20), p.Read(0x21))
		p.Write(0x21, 0)
		return append(v, acks(p)...)
	}, []uint8{1 << 3, 1 << 3, 0x33}},
	{"the slave comes through pin 2", func(p *PIC) []uint8 {
		p.Set(12, true)
		v := []uint8{p.Read(0x20)}
		v = append(v, acks(p)...)
		return append(v, p.Master.ISR, p.Slave.ISR)
	}, []uint8{1 << 2, 0x3c, 1 << 2, 1 << 4}},
	{"the slave's next waits for both EOIs", func(p *PIC) []uint8 {
		p.Set(12, true)
		v := acks(p)
		p.Set(13, true)
		p.Write(0x20, eoi)
		v = append(v, acks(p)...)
		p.Write(0xa0, eoi)
		return append(v, acks(p)...)
	}, []uint8{0x3c, 0x3d}},
	{"special fully nested mode", func(p *PIC) []uint8 {
		p.Write(0x20, 0x11)
		p.Write(0x21, 0x30)
		p.Write(0x21, 4)
		p.Write(0x21, 0x11)
		p.Set(12, true)
		v := acks(p)
		p.Set(8, true) // higher in the slave, while pin 2 is in service
		return append(v, acks(p)...)
	}, []uint8{0x3c, 0x38}},
	{"spurious, master", func(p *PIC) []uint8 {
		return []uint8{p.Ack(), p.Master.ISR}
	}, []uint8{0x37, 0}},
	{"spurious, slave: the master has it in service", func(p *PIC) []uint8 {
		p.Write(0xa1, 0)
		p.Master.IRR |= 1 << cascadePin
		return []uint8{p.Ack(), p.Master.ISR, p.Slave.ISR}
	}, []uint8{0x3f, 1 << 2, 0}},
	{"automatic EOI", func(p *PIC) []uint8 {
		p.Write(0x20, 0x11)
		p.Write(0x21, 0x30)
		p.Write(0x21, 4)
		p.Write(0x21, 3)
		p.Set(4, true)
		v := acks(p)
		p.Set(6, true)
		return append(append(v, acks(p)...), p.Master.ISR)
	}, []uint8{0x34, 0x36, 0}},
	{"rotation on EOI", func(p *PIC) []uint8 {
		p.Set(3, true)
		v := acks(p)
		p.Write(0x20, rotate) // 3 is lowest now
		p.Pulse(3)
		p.Pulse(4)
		v = append(v, acks(p)...)
		p.Write(0x20, eoi)
		return append(v, acks(p)...)
	}, []uint8{0x33, 0x34, 0x33}},
	{"set priority", func(p *PIC) []uint8 {
		p.Write(0x20, 0xc4) // 4 is lowest, 5 highest
		p.Pulse(0)
		p.Pulse(6)
		return []uint8{p.Ack()}
	}, []uint8{0x36}},
	{"special mask mode", func(p *PIC) []uint8 {
		p.Set(1, true)
		v := acks(p)
		p.Write(0x20, 0x68)
		p.Write(0x21, 1<<1)
		p.Set(6, true)
		return append(v, acks(p)...)
	}, []uint8{0x31, 0x36}},
	{"poll", func(p *PIC) []uint8 {
		p.Write(0x20, 0x0c)
		v := []uint8{p.Read(0x20)}
		p.Set(3, true)
		p.Write(0x20, 0x0c)
		return append(v, p.Read(0x20), p.Master.ISR)
	}, []uint8{0, 0x83, 1 << 3}},
	{"ISR and IRR are read by OCW3", func(p *PIC) []uint8 {
		p.Set(3, true)
		p.Ack()
		p.Set(6, true)
		p.Write(0x20, 0x0b)
		isr := p.Read(0x20)
		p.Write(0x20, 0x0a)
		return []uint8{isr, p.Read(0x20)}
	}, []uint8{1 << 3, 1 << 6}},
	{"initialisation forgets edges and the mask", func(p *PIC) []uint8 {
		p.Write(0x21, 0xff)
		p.Set(3, true)
		p.Write(0x20, 0x11)
		return []uint8{p.Read(0x21), p.Master.IRR}
	}, []uint8{0, 0}},
	{"ELCR: some pins stay edge-triggered", func(p *PIC) []uint8 {
		p.Write(0x4d0, 0xff)
		p.Write(0x4d1, 0xff)
		return []uint8{p.Read(0x4d0), p.Read(0x4d1)}
	}, []uint8{0xf8, 0xde}},
}

func TestPIC(t *testing.T) {
	for _, c := range picTests {
		t.Run(c.name, func(t *testing.T) {
			if got := c.run(initPIC(1 << 5)); !slices.Equal(got, c.want) {
				t.Errorf("got %x, want %x", got, c.want)
			}
		})
	}
}

func TestPICWithdrawn(t *testing.T) {
	p := initPIC(1 << 10)
	for _, pin := range []int{3, 10, 12} {
		p.Set(pin, true)
		p.Set(pin, false)
		if p.Pending() {
			t.Errorf("pin %d is low again, and still interrupts", pin)
		}
	}
}

func ExamplePIC() {
	p := NewPIC(0)
	p.Write(0x20, 0x11) // ICW1: an ICW4 follows
	p.Write(0x21, 0x20) // ICW2: vectors from 20h
	p.Write(0x21, 0x04) // ICW3: the slave is on pin 2
	p.Write(0x21, 0x01) // ICW4
	p.Pulse(0)
	fmt.Printf("%#x\n", p.Ack())
	// Output: 0x20
}
