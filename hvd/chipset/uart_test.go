package chipset

import (
	"bytes"
	"testing"
)

// linuxUART is a port as Linux's driver leaves it for a console in use.
func linuxUART() *UART {
	u := NewUART(0)
	u.Write(3, 3)    // 8 bits
	u.Write(2, 0x81) // FIFO, trigger at 8
	u.Write(4, 0xb)  // DTR, RTS, OUT2
	u.Write(1, 5)    // data and line interrupts
	return u
}

func TestUARTInterrupts(t *testing.T) {
	u := linuxUART()
	if u.Interrupt() || u.Read(2) != 0xc1 {
		t.Error("an interrupt at the beginning")
	}
	u.Input([]byte("abc"))
	if !u.Interrupt() || u.Read(2) != 0xcc {
		t.Error("no timeout interrupt below the trigger level")
	}
	u.Input([]byte("defgh"))
	if u.Read(2) != 0xc4 {
		t.Error("no data interrupt at the trigger level")
	}
	u.Write(1, 7) // the transmitter is empty: interrupts, but after the data
	if u.Read(2) != 0xc4 {
		t.Error("priorities")
	}
	for range 8 {
		u.Read(0)
	}
	if u.Read(2) != 0xc2 || u.Read(2) != 0xc1 || u.Interrupt() {
		t.Error("reading IIR must show and clear the transmitter's interrupt")
	}
	if !u.Strobes(1) && u.Strobes(0) {
		t.Error("strobes without a pending interrupt")
	}
	if tx, sent := u.Write(0, 'x'); tx != 'x' || !sent {
		t.Error("nothing was sent")
	}
	if !u.Interrupt() || !u.Strobes(0) || u.Strobes(1) {
		t.Error("no interrupt after a byte was sent")
	}
	u.Write(4, 3)
	if u.Interrupt() {
		t.Error("an interrupt without OUT2")
	}
}

func TestUARTReceive(t *testing.T) {
	u := linuxUART()
	want := bytes.Repeat([]byte("0123456789"), 5)
	if n := u.Input(want); n != len(want) || len(u.RX) != 16 {
		t.Fatalf("%d bytes accepted, %d in the FIFO", n, len(u.RX))
	}
	var got []byte
	for u.Read(5)&1 != 0 {
		got = append(got, u.Read(0))
	}
	if !bytes.Equal(got, want) {
		t.Errorf("received %q", got)
	}
	if u.Read(0) != 0 {
		t.Error("a byte from nothing")
	}
}

func TestUARTInputIsBounded(t *testing.T) {
	u := linuxUART()
	if n := u.Input(make([]byte, 3*UARTBacklog)); n != UARTBacklog {
		t.Errorf("%d bytes accepted", n)
	}
	if n := u.Room(); n != 16 {
		t.Errorf("room for %d bytes after the FIFO was filled from the backlog", n)
	}
	if n := u.Input(make([]byte, 100)); n != 16 || u.Room() != 0 {
		t.Errorf("%d bytes accepted after the FIFO was filled from the backlog", n)
	}
	if u.Typed != UARTBacklog+16 {
		t.Errorf("%d bytes were typed", u.Typed)
	}
}

func TestUARTWithoutFIFO(t *testing.T) {
	u := NewUART(0)
	u.Input([]byte("ab"))
	if len(u.RX) != 1 || u.Read(0) != 'a' || u.Read(0) != 'b' {
		t.Error("without FIFO one byte at a time")
	}
	if u.Read(2)&0xc0 != 0 {
		t.Error("IIR says that the FIFO is on")
	}
}

func TestUARTClearsItsFIFO(t *testing.T) {
	u := linuxUART()
	u.Input(bytes.Repeat([]byte{'x'}, 20))
	u.Write(2, 0x83)
	if len(u.RX) != 4 {
		t.Errorf("%d bytes, want what waited behind the FIFO", len(u.RX))
	}
}

// TestUARTLoopback is what Linux's autoconfig does.
func TestUARTLoopback(t *testing.T) {
	u := NewUART(0)
	u.Write(4, 0x1a)
	if got := u.Read(6) & 0xf0; got != 0x90 {
		t.Errorf("modem status %#x in loopback", got)
	}
	if _, sent := u.Write(0, 'x'); sent || u.Read(0) != 'x' {
		t.Error("a byte got out, or didn't come back")
	}
	u.Write(4, 0)
	if got := u.Read(6); got != 0xb0 {
		t.Errorf("modem status %#x", got)
	}
}

func TestUARTRegisters(t *testing.T) {
	u := NewUART(0)
	u.Write(3, 0x83)
	u.Write(0, 1)
	u.Write(1, 2)
	if u.Divisor != 0x201 || u.Read(0) != 1 || u.Read(1) != 2 {
		t.Error("divisor")
	}
	u.Write(3, 3)
	u.Write(1, 0xff)
	u.Write(7, 0x5a)
	if u.Read(1) != 0xf || u.Read(7) != 0x5a || u.Read(3) != 3 || u.Read(5) != 0x60 {
		t.Error("IER, scratch, LCR or LSR")
	}
}
