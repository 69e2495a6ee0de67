package chipset

import "errors"

// cascadePin is the master's pin that the slave's output drives.
const cascadePin = 2

// PIC is the pair of interrupt controllers of a PC (Intel 8259A data sheet).
// Pins 0 to 7 belong to the master, 8 to 15 to the slave.
type PIC struct {
	Master, Slave PICChip
}

// PICChip is one 8259A. A pin is edge-triggered unless its bit in Level is set
// (the ELCR of later chips; the data sheet's LTIM is ignored, as they do).
type PICChip struct {
	Line   uint8 // levels of the pins
	Level  uint8 // pins that are level-triggered
	IRR    uint8 // requests
	IMR    uint8 // masked pins
	ISR    uint8 // in service
	Base   uint8 // ICW2: vector of pin 0
	Lowest uint8 // the pin of lowest priority

	NextICW     uint8 // 2, 3 or 4 while it is being initialised, else 0
	WantICW4    bool  // ICW1 announced an ICW4
	AutoEOI     bool  // ICW4
	NestedAll   bool  // ICW4: special fully nested mode
	RotateAEOI  bool  // OCW2: rotate with automatic EOI
	SpecialMask bool  // OCW3: masked pins in service don't block others
	ReadISR     bool  // OCW3: the command port reads ISR instead of IRR
	Polled      bool  // OCW3: the next read of the command port acknowledges
}

// NewPIC returns the pair as reset leaves it, with the pins in level (bit n is
// pin n) level-triggered, which is what a firmware does for PCI interrupts.
func NewPIC(level uint16) *PIC {
	p := &PIC{}
	p.Master = PICChip{Lowest: 7, Level: uint8(level) & 0xf8}
	p.Slave = PICChip{Lowest: 7, Level: uint8(level>>8) & 0xde}
	return p
}

// Validate checks a restored state.
func (p *PIC) Validate() error {
	for _, c := range []*PICChip{&p.Master, &p.Slave} {
		if c.Lowest > 7 || c.NextICW > 4 {
			return errors.New("PIC: priority or initialisation step out of range")
		}
	}
	return nil
}

// Set drives pin (0 to 15) to a level.
func (p *PIC) Set(pin int, high bool) {
	if pin < 8 {
		p.Master.set(pin, high)
		return
	}
	p.Slave.set(pin&7, high)
	p.cascade()
}

// Pulse drives pin low and high again: one edge, however it was before.
func (p *PIC) Pulse(pin int) {
	p.Set(pin, false)
	p.Set(pin, true)
}

// Pending says whether the master asks for an interrupt acknowledge.
func (p *PIC) Pending() bool {
	_, ok := p.Master.next()
	return ok
}

// Masked says whether the mask register keeps pin (0 to 7) from asking.
func (p *PIC) Masked(pin int) bool { return p.Master.IMR>>pin&1 == 1 }

// Requested says whether an unmasked request waits, even one that an
// interrupt in service holds back.
func (p *PIC) Requested() bool {
	return p.Master.IRR&^p.Master.IMR != 0 || p.Slave.IRR&^p.Slave.IMR != 0
}

// Ack is the interrupt acknowledge cycle: it returns the vector, and puts the
// pin in service. Without a request it is the spurious one of pin 7, which is
// not in service then.
func (p *PIC) Ack() uint8 {
	pin, ok := p.Master.next()
	if !ok {
		return p.Master.Base + 7
	}
	p.Master.accept(pin)
	if pin != cascadePin {
		return p.Master.Base + uint8(pin)
	}
	pin, ok = p.Slave.next()
	if !ok {
		pin = 7
	} else {
		p.Slave.accept(pin)
	}
	p.cascade()
	return p.Slave.Base + uint8(pin)
}

// Read returns a byte from one of the pair's ports.
func (p *PIC) Read(port uint16) uint8 {
	switch port {
	case 0x20, 0x21:
		return p.Master.read(port & 1)
	case 0xa0, 0xa1:
		v := p.Slave.read(port & 1)
		p.cascade()
		return v
	case 0x4d0:
		return p.Master.Level
	case 0x4d1:
		return p.Slave.Level
	}
	return 0xff
}

// Write stores a byte to one of the pair's ports.
func (p *PIC) Write(port uint16, v uint8) {
	switch port {
	case 0x20, 0x21:
		p.Master.write(port&1, v)
	case 0xa0, 0xa1:
		p.Slave.write(port&1, v)
	case 0x4d0: // 0, 1 and 2 are edge-triggered by definition
		p.Master.setLevel(v & 0xf8)
	case 0x4d1: // so are 8 and 13
		p.Slave.setLevel(v & 0xde)
	}
	p.cascade()
}

// cascade lets the slave's output drive the master. It acts as a level, so
// that a request that goes away takes the master's with it.
func (p *PIC) cascade() {
	const bit = 1 << cascadePin
	if _, ok := p.Slave.next(); ok {
		p.Master.IRR |= bit
	} else {
		p.Master.IRR &^= bit
	}
}

// set drives a pin. A pin must stay high until its interrupt is acknowledged:
// a request goes away with it, be it an edge's or a level's. The data sheet's
// spurious interrupt, for a pin that falls just then, can't happen here.
func (c *PICChip) set(pin int, high bool) {
	bit := uint8(1) << pin
	rising := high && c.Line&bit == 0
	switch {
	case !high:
		c.Line &^= bit
		c.IRR &^= bit
		return
	case rising || c.Level&bit != 0:
		c.IRR |= bit
	}
	c.Line |= bit
}

func (c *PICChip) setLevel(level uint8) {
	c.Level = level
	c.IRR = c.IRR&^level | c.Line&level
}

// next is the request of highest priority that nothing in service blocks.
func (c *PICChip) next() (pin int, ok bool) {
	requests := c.IRR &^ c.IMR
	if requests == 0 {
		return 0, false
	}
	blocking := c.ISR
	if c.SpecialMask {
		blocking &^= c.IMR
	}
	if c.NestedAll {
		blocking &^= 1 << cascadePin
	}
	for i := 1; i <= 8; i++ {
		pin := int(c.Lowest+uint8(i)) & 7
		if blocking>>pin&1 == 1 {
			return 0, false
		}
		if requests>>pin&1 == 1 {
			return pin, true
		}
	}
	return 0, false
}

// accept puts a request in service.
func (c *PICChip) accept(pin int) {
	bit := uint8(1) << pin
	c.IRR &^= bit &^ c.Level
	if !c.AutoEOI {
		c.ISR |= bit
	} else if c.RotateAEOI {
		c.Lowest = uint8(pin)
	}
}

func (c *PICChip) read(a0 uint16) uint8 {
	switch {
	case c.Polled:
		c.Polled = false
		pin, ok := c.next()
		if !ok {
			return 0
		}
		c.accept(pin)
		return 0x80 | uint8(pin)
	case a0 == 1:
		return c.IMR
	case c.ReadISR:
		return c.ISR
	}
	return c.IRR
}

func (c *PICChip) write(a0 uint16, v uint8) {
	switch {
	case a0 == 1:
		c.writeData(v)
	case v&0x10 != 0: // ICW1
		*c = PICChip{
			Line: c.Line, Level: c.Level, IRR: c.Line & c.Level, Base: c.Base,
			Lowest: 7, NextICW: 2, WantICW4: v&1 != 0,
		}
	case v&0x08 != 0: // OCW3
		if v&0x40 != 0 {
			c.SpecialMask = v&0x20 != 0
		}
		if v&2 != 0 {
			c.ReadISR = v&1 != 0
		}
		c.Polled = v&4 != 0
	default:
		c.command(v>>5, v&7)
	}
}

// writeData is a write to the odd port: ICW2 to ICW4, or the mask (OCW1).
func (c *PICChip) writeData(v uint8) {
	switch c.NextICW {
	case 2:
		c.Base = v & 0xf8
		c.NextICW = 3
	case 3: // the wiring of the cascade is fixed
		c.NextICW = 0
		if c.WantICW4 {
			c.NextICW = 4
		}
	case 4:
		c.AutoEOI = v&2 != 0
		c.NestedAll = v&0x10 != 0
		c.NextICW = 0
	default:
		c.IMR = v
	}
}

// command is OCW2: ends of interrupt and rotation of the priorities.
func (c *PICChip) command(cmd, pin uint8) {
	switch cmd {
	case 0, 4:
		c.RotateAEOI = cmd == 4
	case 1, 5: // non-specific EOI: the pin of highest priority in service
		for i := uint8(1); i <= 8; i++ {
			p := (c.Lowest + i) & 7
			if c.ISR>>p&1 == 0 || c.SpecialMask && c.IMR>>p&1 == 1 {
				continue
			}
			c.ISR &^= 1 << p
			if cmd == 5 {
				c.Lowest = p
			}
			return
		}
	case 3, 7: // specific EOI
		c.ISR &^= 1 << pin
		if cmd == 7 {
			c.Lowest = pin
		}
	case 6:
		c.Lowest = pin
	}
}
