package virtio

// NoVector is the vector of events that don't interrupt (section 4.1.4.3).
const NoVector = 0xffff

const (
	msixMasked   = 1 // in an entry's vector control
	msixEnable   = 0x80
	msixFunction = 0x40 // mask of the whole function

	commandINTxOff = 4 // in the high byte of the command register
)

// MSIXEntry is an entry of the MSI-X table (PCI 3.0 section 6.8.2.6).
type MSIXEntry struct {
	Addr    uint64
	Data    uint32
	Control uint32 // bit 0: masked
}

func (t *Transport) validVector(v uint16) bool { return v == NoVector || int(v) < len(t.MSIX) }

// vector is a vector that a driver chose, or NoVector if there is no such one.
func (t *Transport) vector(v uint64) uint16 {
	if v < uint64(len(t.MSIX)) {
		return uint16(v)
	}
	return NoVector
}

// msixControl is the high byte of the MSI-X capability's message control.
func (t *Transport) msixControl() uint8 { return t.Space[capMSIX+3] }

// raise interrupts by a message, or by the pin if messages are off.
func (t *Transport) raise(vector uint16, why uint8) {
	if t.msixControl()&msixEnable == 0 {
		t.ISR |= why
		t.updatePin()
		return
	}
	if int(vector) < len(t.MSIX) {
		t.PBA |= 1 << vector
		t.sendPending()
	}
}

// sendPending sends the messages that wait and aren't masked.
func (t *Transport) sendPending() {
	if t.msixControl()&(msixEnable|msixFunction) != msixEnable {
		return
	}
	for i := 0; t.PBA>>i != 0; i++ {
		if e := &t.MSIX[i]; t.PBA>>i&1 == 1 && e.Control&msixMasked == 0 {
			t.PBA &^= 1 << i
			t.bus.MSI(e.Addr, e.Data)
		}
	}
}

// updatePin drives the interrupt pin.
func (t *Transport) updatePin() {
	t.bus.INTx(t.ISR != 0 && t.msixControl()&msixEnable == 0 && t.Space[cfgCommand+1]&commandINTxOff == 0)
}

// readMSIX returns 4 or 8 aligned bytes of the table.
func (t *Transport) readMSIX(off uint32, size int) uint64 {
	e := &t.MSIX[off>>4]
	if size < 4 || off&3 != 0 {
		return 0
	}
	switch off & 0xf {
	case 0:
		return e.Addr
	case 4:
		return e.Addr >> 32
	case 8:
		return uint64(e.Data) | uint64(e.Control)<<32
	}
	return uint64(e.Control)
}

// writeMSIX stores 4 or 8 aligned bytes of the table.
func (t *Transport) writeMSIX(off uint32, size int, v uint64) {
	if size < 4 || off&3 != 0 {
		return
	}
	e := &t.MSIX[off>>4]
	switch off & 0xf {
	case 0:
		e.Addr = e.Addr&^0xffffffff | v&0xfffffffc
	case 4:
		e.Addr = e.Addr&0xffffffff | v<<32
	case 8:
		e.Data = uint32(v)
	case 12:
		e.Control = uint32(v) & msixMasked
	}
	if size == 8 && off&7 == 0 {
		if off&8 == 0 {
			e.Addr = e.Addr&0xffffffff | v&^0xffffffff
		} else {
			e.Control = uint32(v>>32) & msixMasked
		}
	}
	t.sendPending()
}
