package chipset

import "errors"

const (
	uartFIFO = 16
	// UARTBacklog is how many bytes of input may wait for room in the FIFO.
	UARTBacklog = 4096

	ierData, ierEmpty, ierLine = 1, 2, 4

	lcrDivisor = 0x80
	mcrOut2    = 8
	mcrLoop    = 0x10
	fcrEnable  = 1
	lsrIdle    = 0x60 // transmitter and its holding register empty
)

// UART is a 16550A serial port (National PC16550D data sheet). What the guest
// sends is out at once. Input waits in a bounded backlog behind the FIFO, so
// that it never overruns. Time plays no role: a reception below the FIFO's
// trigger level interrupts at once, as the character timeout would.
type UART struct {
	IER, FCR, LCR, MCR, Scratch uint8
	Divisor                     uint16
	Empty                       bool   // the transmitter-empty interrupt is pending
	RX                          []byte `json:",omitempty"` // receiver FIFO
	Backlog                     []byte `json:",omitempty"` // input that doesn't fit yet
	Typed                       uint64 // bytes of input that were accepted, ever
}

// NewUART returns a port as reset leaves it, at 9600 bit/s. typed is where it starts to count its input.
func NewUART(typed uint64) *UART { return &UART{Divisor: 12, Typed: typed} }

// Validate checks a restored state.
func (u *UART) Validate() error {
	if len(u.RX) > uartFIFO || len(u.Backlog) > UARTBacklog {
		return errors.New("UART: more input than fits")
	}
	return nil
}

// Input appends what the outside types and returns how many bytes were
// accepted: those beyond the backlog's limit are lost.
func (u *UART) Input(p []byte) int {
	n := min(len(p), u.Room())
	u.Backlog = append(u.Backlog, p[:n]...)
	u.Typed += uint64(n)
	u.fill()
	return n
}

// Room is how many bytes Input would accept now.
func (u *UART) Room() int { return UARTBacklog - len(u.Backlog) }

// fill moves input from the backlog to the FIFO, or to the one register that
// stands for it when it is off.
func (u *UART) fill() {
	room := 1
	if u.FCR&fcrEnable != 0 {
		room = uartFIFO
	}
	if u.MCR&mcrLoop != 0 { // the receiver is cut off from the outside
		return
	}
	if n := min(room-len(u.RX), len(u.Backlog)); n > 0 {
		u.RX = append(u.RX, u.Backlog[:n]...)
		u.Backlog = append([]byte(nil), u.Backlog[n:]...)
	}
}

// Interrupt is the level of the interrupt pin, which OUT2 gates on a PC.
func (u *UART) Interrupt() bool {
	return u.MCR&mcrOut2 != 0 && u.cause() != 1
}

// Strobes says whether a write to reg lets the interrupt pin go low for a
// moment, so that an edge-triggered PIC sees the next interrupt.
func (u *UART) Strobes(reg uint16) bool {
	return reg == 0 && u.LCR&lcrDivisor == 0 && u.cause() == 2
}

// cause is the low nibble of IIR: the pending interrupt of highest priority.
func (u *UART) cause() uint8 {
	switch {
	case u.IER&ierData != 0 && len(u.RX) > 0:
		if u.FCR&fcrEnable != 0 && len(u.RX) < u.trigger() {
			return 0xc
		}
		return 4
	case u.IER&ierEmpty != 0 && u.Empty:
		return 2
	}
	return 1
}

func (u *UART) trigger() int { return [4]int{1, 4, 8, 14}[u.FCR>>6] }

// Write stores to register 0 to 7. When that sends a byte, sent is true and tx
// is the byte. A write to the transmitter clears its interrupt and, since the
// byte is out at once, sets it again: see Strobes.
func (u *UART) Write(reg uint16, v uint8) (tx uint8, sent bool) {
	switch {
	case u.LCR&lcrDivisor != 0 && reg == 0:
		u.Divisor = u.Divisor&0xff00 | uint16(v)
	case u.LCR&lcrDivisor != 0 && reg == 1:
		u.Divisor = u.Divisor&0xff | uint16(v)<<8
	case reg == 0:
		u.Empty = true
		if u.MCR&mcrLoop == 0 {
			return v, true
		}
		if len(u.RX) < uartFIFO {
			u.RX = append(u.RX, v)
		}
	case reg == 1:
		if v&ierEmpty != 0 && u.IER&ierEmpty == 0 {
			u.Empty = true
		}
		u.IER = v & 0xf
	case reg == 2:
		if v&fcrEnable != u.FCR&fcrEnable || v&2 != 0 {
			u.RX = nil
		}
		u.FCR = v & 0xc9
		u.fill()
	case reg == 3:
		u.LCR = v
	case reg == 4:
		u.MCR = v & 0x1f
		u.fill()
	case reg == 7:
		u.Scratch = v
	}
	return 0, false
}

// Read returns register 0 to 7.
func (u *UART) Read(reg uint16) uint8 {
	switch reg {
	case 0:
		if u.LCR&lcrDivisor != 0 {
			return uint8(u.Divisor)
		}
		if len(u.RX) == 0 {
			return 0
		}
		v := u.RX[0]
		u.RX = append([]byte(nil), u.RX[1:]...)
		u.fill()
		return v
	case 1:
		if u.LCR&lcrDivisor != 0 {
			return uint8(u.Divisor >> 8)
		}
		return u.IER
	case 2:
		c := u.cause()
		if c == 2 { // reading it clears it
			u.Empty = false
		}
		if u.FCR&fcrEnable != 0 {
			c |= 0xc0
		}
		return c
	case 3:
		return u.LCR
	case 4:
		return u.MCR
	case 5:
		return lsrIdle | bit(len(u.RX) > 0, 0)
	case 6:
		if m := u.MCR; m&mcrLoop != 0 { // RTS, DTR, OUT1, OUT2 loop to CTS, DSR, RI, DCD
			return m&2<<3 | m&1<<5 | m&4<<4 | m&8<<4
		}
		return 0xb0 // carrier, data set ready, clear to send
	case 7:
		return u.Scratch
	}
	return 0xff
}
