package chipset

// PCISlots is how many devices fit on the bus; slot 0 is the host bridge.
const PCISlots = 32

// PCIFunction is a device's configuration space of 256 bytes.
type PCIFunction interface {
	// ConfigRead returns size (1, 2 or 4) bytes at off, which lie within one
	// aligned group of four.
	ConfigRead(off, size int) uint32
	// ConfigWrite stores such bytes.
	ConfigWrite(off, size int, v uint32)
}

// PCI is configuration mechanism #1 (PCI 3.0 section 3.2.2.3.2) with one bus,
// and the host bridge that Linux knows as an Intel 440FX.
type PCI struct {
	Address uint32 // port cf8h

	slots [PCISlots]PCIFunction
}

// NewPCI returns a bus with nothing but its host bridge.
func NewPCI() *PCI {
	p := &PCI{}
	p.slots[0] = hostBridge{}
	return p
}

// Attach puts a device into slot 1 to 31.
func (p *PCI) Attach(slot int, f PCIFunction) { p.slots[slot] = f }

const pciEnable = 1 << 31

// target is the function that Address names, and the register in it.
func (p *PCI) target(port uint16) (PCIFunction, int) {
	if p.Address&pciEnable == 0 || p.Address>>16&0xff != 0 || p.Address>>8&7 != 0 {
		return nil, 0
	}
	return p.slots[p.Address>>11&31], int(p.Address&0xfc) + int(port&3)
}

// Read returns size bytes at a port from cf8h to cffh.
func (p *PCI) Read(port uint16, size int) uint32 {
	if port == 0xcf8 && size == 4 {
		return p.Address
	}
	if port < 0xcfc || int(port&3)+size > 4 {
		return ones(size)
	}
	f, off := p.target(port)
	if f == nil {
		return ones(size)
	}
	return f.ConfigRead(off, size) & ones(size)
}

// Write stores size bytes to a port from cf8h to cffh.
func (p *PCI) Write(port uint16, size int, v uint32) {
	if port == 0xcf8 && size == 4 {
		p.Address = v
		return
	}
	if port < 0xcfc || int(port&3)+size > 4 {
		return
	}
	if f, off := p.target(port); f != nil {
		f.ConfigWrite(off, size, v&ones(size))
	}
}

// ones is what a read of nothing returns: size bytes of 0xff.
func ones(size int) uint32 { return uint32(1<<(8*uint(size)) - 1) }

// hostBridge is an Intel 82441FX without any of its registers.
type hostBridge struct{}

func (hostBridge) ConfigRead(off, size int) uint32 {
	var v uint32
	switch off &^ 3 {
	case 0x00:
		v = 0x1237_8086
	case 0x04:
		v = 0x0000_0006 // command: memory, bus master
	case 0x08:
		v = 0x0600_0002 // class: host bridge; revision 2
	}
	return v >> (8 * (off & 3)) & ones(size)
}

func (hostBridge) ConfigWrite(int, int, uint32) {}

// Validate has nothing to check: any address may be restored.
func (p *PCI) Validate() error { return nil }
