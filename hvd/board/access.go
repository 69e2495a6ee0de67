package board

import (
	"github.com/duet-ft/duet/hvd/chipset"
	"github.com/duet-ft/duet/hvd/virtio"
)

const (
	uartBase = 0x3f8
	pageSize = 0x1000

	// ioLowest is the lowest port that a BAR may have: those below are the
	// board's own, as the ACPI tables say.
	ioLowest = 0x1000
)

func isPCI(port uint16) bool { return port >= 0xcf8 && port <= 0xcff }

func validSize(size int) bool { return size == 1 || size == 2 || size == 4 || size == 8 }

// ones is what a read of nothing returns.
func ones(size int) uint64 {
	if size >= 8 {
		return ^uint64(0)
	}
	return 1<<(8*uint(size)) - 1
}

// PortIn is an IN instruction of size 1, 2 or 4 bytes.
func (b *Board) PortIn(port uint16, size int) uint32 {
	d := b.d
	if !validSize(size) || size > 4 {
		return ^uint32(0)
	}
	if t, off := d.ioFunction(port); t != nil {
		return t.ReadIO(off, size)
	}
	if isPCI(port) && (size != 1 || port != chipset.ResetPort) {
		return d.pci.Read(port, size)
	}
	if port == chipset.PMTimer && size == 4 {
		return d.pm.ReadTimer(d.now)
	}
	var v uint32
	for i := range size {
		v |= uint32(d.portIn(port+uint16(i))) << (8 * i)
	}
	return v
}

// PortOut is an OUT instruction of size 1, 2 or 4 bytes.
func (b *Board) PortOut(port uint16, size int, v uint32) {
	d := b.d
	if !validSize(size) || size > 4 {
		return
	}
	if t, off := d.ioFunction(port); t != nil {
		t.WriteIO(off)
		return
	}
	if isPCI(port) && (size != 1 || port != chipset.ResetPort) {
		d.pci.Write(port, size, v)
		return
	}
	for i := range size {
		d.portOut(port+uint16(i), uint8(v>>(8*i)))
	}
}

// ioFunction is the virtio function whose I/O BAR holds a port.
func (d *devices) ioFunction(port uint16) (*virtio.Transport, uint16) {
	for _, t := range d.functions {
		if base, on := t.IOBase(); on && port >= base && port-base < virtio.IOSize && base >= ioLowest {
			return t, port - base
		}
	}
	return nil, 0
}

// portIn reads one byte of the devices that are eight bits wide.
func (d *devices) portIn(port uint16) uint8 {
	switch {
	case port == 0x20, port == 0x21, port == 0xa0, port == 0xa1, port == 0x4d0, port == 0x4d1:
		return d.pic.Read(port)
	case port >= 0x40 && port <= 0x43, port == 0x61:
		return d.pit.Read(port, d.now)
	case port == 0x70, port == 0x71:
		return d.rtc.Read(port, d.now)
	case port >= uartBase && port < uartBase+8:
		v := d.uart.Read(port - uartBase)
		d.updateUART()
		return v
	}
	return d.pm.Read(port)
}

// portOut writes one byte of the devices that are eight bits wide.
func (d *devices) portOut(port uint16, v uint8) {
	switch {
	case port == 0x20, port == 0x21, port == 0xa0, port == 0xa1, port == 0x4d0, port == 0x4d1:
		d.pic.Write(port, v)
	case port >= 0x40 && port <= 0x43, port == 0x61:
		d.pit.Write(port, v, d.now)
	case port == 0x70, port == 0x71:
		d.rtc.Write(port, v, d.now)
	case port >= uartBase && port < uartBase+8:
		d.writeUART(port-uartBase, v)
	default:
		switch d.pm.Write(port, v) {
		case chipset.PowerOff:
			d.effects = append(d.effects, Effect{Kind: PowerOff})
		case chipset.PowerReset:
			d.effects = append(d.effects, Effect{Kind: Reset})
		}
		d.updateSCI()
	}
}

func (d *devices) writeUART(reg uint16, v uint8) {
	if d.uart.Strobes(reg) {
		d.pic.Set(irqUART, false)
	}
	if tx, sent := d.uart.Write(reg, v); sent {
		d.console(tx)
	}
	d.updateUART()
}

func (d *devices) updateUART() { d.pic.Set(irqUART, d.uart.Interrupt()) }
func (d *devices) updateSCI()  { d.pic.Set(irqACPI, d.pm.SCI()) }

// MMIORead is a read of size 1, 2, 4 or 8 bytes of guest physical memory that
// isn't memory.
func (b *Board) MMIORead(addr uint64, size int) uint64 {
	d := b.d
	if !validSize(size) {
		return ^uint64(0)
	}
	if addr-chipset.APICBase < pageSize {
		return uint64(d.apic.Read(uint32(addr-chipset.APICBase), d.now)) & ones(size)
	}
	if t, off := d.memFunction(addr); t != nil {
		return t.ReadMem(off, size)
	}
	return ones(size)
}

// MMIOWrite is such a write.
func (b *Board) MMIOWrite(addr uint64, size int, v uint64) {
	d := b.d
	if !validSize(size) {
		return
	}
	if addr-chipset.APICBase < pageSize {
		if size == 4 { // what the APIC does with other sizes isn't defined
			d.apic.Write(uint32(addr-chipset.APICBase), uint32(v), d.now)
		}
		return
	}
	if t, off := d.memFunction(addr); t != nil {
		t.WriteMem(off, size, v)
	}
}

// memFunction is the virtio function whose memory BAR holds an address.
func (d *devices) memFunction(addr uint64) (*virtio.Transport, uint32) {
	for _, t := range d.functions {
		if base, on := t.MemBase(); on && addr >= base && addr-base < virtio.MemSize {
			return t, uint32(addr - base)
		}
	}
	return nil, 0
}
