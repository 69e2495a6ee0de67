package virtio

import "encoding/binary"

// What lies where in the two BARs; see the package comment.
const (
	MemSize = 0x4000 // bytes of BAR0
	IOSize  = 0x40   // ports of BAR1

	memISR    = 0x1000
	memMSIX   = 0x1800
	memPBA    = 0x1c00
	memConfig = 0x2000
	memNotify = 0x3000
	ioISR     = 0x20

	notifyMultiplier = 2
)

// Offsets in configuration space (PCI 3.0 section 6.1).
const (
	cfgCommand   = 0x04
	cfgStatus    = 0x06
	cfgRevision  = 0x08
	cfgBAR0      = 0x10
	cfgBAR1      = 0x14
	cfgSubsystem = 0x2c
	cfgCapList   = 0x34
	cfgLine      = 0x3c
	cfgPin       = 0x3d

	capFirst = 0x40
	capMSIX  = capFirst
	capPCI   = capMSIX + 12
	capMore  = capPCI + 20
)

// Types of the vendor capability (VIRTIO 1.2 section 4.1.4).
const (
	capCommon = 1
	capNotify = 2
	capISR    = 3
	capDevice = 4
	capAccess = 5
)

const (
	pciVendor   = 0x1af4
	pciDevice   = 0x1040 // plus the virtio device ID
	commandIO   = 1
	commandMem  = 2
	commandMask = 0x0407 // I/O, memory, bus master, INTx off
)

// configSpace is a function's configuration space as firmware leaves it, and
// the mask of what a guest can write.
func configSpace(s *Spec) (space, mask []byte) {
	le := binary.LittleEndian
	space, mask = make([]byte, 256), make([]byte, 256)
	le.PutUint16(space, pciVendor)
	le.PutUint16(space[2:], pciDevice+s.DeviceID)
	le.PutUint16(space[cfgCommand:], commandIO|commandMem)
	le.PutUint16(mask[cfgCommand:], commandMask)
	le.PutUint16(space[cfgStatus:], 0x10) // has capabilities
	le.PutUint32(space[cfgRevision:], s.Class<<8|1)
	mask[0xc], mask[0xd] = 0xff, 0xff // cache line size, latency timer
	le.PutUint32(space[cfgBAR0:], s.Mem&^(MemSize-1))
	le.PutUint32(mask[cfgBAR0:], ^uint32(MemSize-1))
	le.PutUint32(space[cfgBAR1:], uint32(s.IO)&^(IOSize-1)|1)
	le.PutUint32(mask[cfgBAR1:], 0xffff&^uint32(IOSize-1))
	le.PutUint16(space[cfgSubsystem:], pciVendor)
	le.PutUint16(space[cfgSubsystem+2:], 0x1100)
	space[cfgLine], mask[cfgLine] = s.IRQ, 0xff
	space[cfgPin] = 1 // INTA

	space[cfgCapList] = capMSIX
	c := space[capMSIX:]
	c[0], c[1] = 0x11, capPCI
	le.PutUint16(c[2:], uint16(s.Queues)) // table size - 1
	mask[capMSIX+3] = msixEnable | msixFunction
	le.PutUint32(c[4:], memMSIX)
	le.PutUint32(c[8:], memPBA)

	// The window on the BARs; the guest chooses BAR, offset and length.
	putCap(space[capPCI:], capMore, 20, capAccess, 0, 0, 0)
	mask[capPCI+4] = 0xff
	le.PutUint64(mask[capPCI+8:], ^uint64(0))

	at := uint8(capMore)
	for i, v := range []struct {
		typ, bar uint8
		off, n   uint32
	}{
		{capCommon, 0, 0, commonSize},
		{capNotify, 1, 0, ioISR},
		{capISR, 1, ioISR, 1},
		{capDevice, 0, memConfig, uint32(len(s.Config))},
		{capNotify, 0, memNotify, MemSize - memNotify},
		{capISR, 0, memISR, 1},
	} {
		size := uint8(16)
		if v.typ == capNotify {
			size = 20
			le.PutUint32(space[at+16:], notifyMultiplier)
		}
		next := at + size
		if i == 5 {
			next = 0
		}
		putCap(space[at:], next, size, v.typ, v.bar, v.off, v.n)
		at += size
	}
	return space, mask
}

// putCap writes a struct virtio_pci_cap.
func putCap(c []byte, next, size, typ, bar uint8, off, n uint32) {
	copy(c, []byte{0x09, next, size, typ, bar})
	binary.LittleEndian.PutUint32(c[8:], off)
	binary.LittleEndian.PutUint32(c[12:], n)
}

// ConfigRead returns bytes of configuration space.
func (t *Transport) ConfigRead(off, size int) uint32 {
	if bar, at, n, ok := t.window(off); ok {
		if bar == 0 {
			return uint32(t.ReadMem(at, n))
		}
		return t.ReadIO(uint16(at), n)
	}
	var v uint32
	for i := range size {
		v |= uint32(t.Space[(off+i)&0xff]) << (8 * i)
	}
	return v
}

// ConfigWrite stores bytes of configuration space, as far as they can be written.
func (t *Transport) ConfigWrite(off, size int, v uint32) {
	if bar, at, n, ok := t.window(off); ok {
		if bar == 0 {
			t.WriteMem(at, n, uint64(v))
		} else {
			t.WriteIO(uint16(at))
		}
		return
	}
	for i := range size {
		a := (off + i) & 0xff
		t.Space[a] = t.Space[a]&^t.mask[a] | uint8(v>>(8*i))&t.mask[a]
	}
	t.updatePin()
	t.sendPending()
}

// window says which part of which BAR the data of the access capability stands
// for (section 4.1.4.9), if off is that data and the window is well set.
func (t *Transport) window(off int) (bar uint8, at uint32, n int, ok bool) {
	if off != capPCI+16 {
		return 0, 0, 0, false
	}
	c := t.Space[capPCI:]
	bar, at = c[4], binary.LittleEndian.Uint32(c[8:])
	length := binary.LittleEndian.Uint32(c[12:])
	limit := uint32(MemSize)
	if bar == 1 {
		limit = IOSize
	}
	aligned := length == 1 || length == 2 || length == 4
	ok = bar <= 1 && aligned && at < limit && at%max(length, 1) == 0
	return bar, at, int(length), ok
}

// MemBase is where BAR0 is, if the function decodes memory.
func (t *Transport) MemBase() (addr uint64, on bool) {
	v := binary.LittleEndian.Uint32(t.Space[cfgBAR0:])
	return uint64(v &^ (MemSize - 1)), t.Space[cfgCommand]&commandMem != 0
}

// IOBase is where BAR1 is, if the function decodes I/O.
func (t *Transport) IOBase() (port uint16, on bool) {
	v := binary.LittleEndian.Uint32(t.Space[cfgBAR1:])
	return uint16(v) &^ (IOSize - 1), t.Space[cfgCommand]&commandIO != 0
}
