package chipset

import (
	"errors"
	"math/bits"
)

// Ports of power management. The ACPI tables name the same ones.
const (
	PM1Event   = 0x600 // status (2 bytes), then enable (2 bytes)
	PM1Control = 0x604 // 2 bytes
	PMTimer    = 0x608 // 4 bytes, of which the guest reads all at once
	ResetPort  = 0xcf9
	KBDCommand = 0x64
)

const (
	pmPowerButton = 1 << 8
	pmEnableBits  = 1<<10 | pmPowerButton | 1<<5 | 1
	pmSCIEnable   = 1
	pmSleepType   = 7 << 10
	pmSleepEnable = 1 << 13

	pmTimerHz   = 3579545
	pmTimerMask = 1<<24 - 1

	kbdPulseReset = 0xfe
	resetHard     = 2
	resetCPU      = 4
)

// PowerAction is what a write to power management asks the machine to do.
type PowerAction uint8

// The actions.
const (
	PowerNone PowerAction = iota
	PowerOff
	PowerReset
)

// PM is the fixed hardware of ACPI (ACPI 6.5 section 4.8.3) with timer and power
// button, and the two classic ways to reset a PC. The only sleeping state is
// S5: any write with SLP_EN turns the machine off.
type PM struct {
	Status, Enable, Control uint16
	Reset                   uint8  // the register at cf9h
	Ticks                   uint64 // of the timer, when it was last read
}

// NewPM returns power management in ACPI mode.
func NewPM() *PM { return &PM{Control: pmSCIEnable} }

// PressButton is the power button.
func (p *PM) PressButton() { p.Status |= pmPowerButton }

// SCI is the level of the system control interrupt.
func (p *PM) SCI() bool { return p.Status&p.Enable != 0 }

// ReadTimer returns the power management timer (ACPI 6.5 section 4.8.3.3): 24
// bits at 3.579545 MHz. Linux calibrates the local APIC's timer against it, which
// spares the guest a comparison of two timers' interrupts that a busy host can
// spoil. Guest time may stand still between two reads; the timer moves on by a
// tick then, because a guest that sees it stand still thousands of times in a row
// takes it for broken.
func (p *PM) ReadTimer(now uint64) uint32 {
	hi, lo := bits.Mul64(now, pmTimerHz)
	t, _ := bits.Div64(hi, lo, nsPerSecond) // hi < pmTimerHz < nsPerSecond
	p.Ticks = max(t, p.Ticks+1)
	return uint32(p.Ticks & pmTimerMask)
}

// Read returns the byte at a port of the two PM1 blocks, or of ResetPort.
func (p *PM) Read(port uint16) uint8 {
	switch port {
	case PM1Event:
		return uint8(p.Status)
	case PM1Event + 1:
		return uint8(p.Status >> 8)
	case PM1Event + 2:
		return uint8(p.Enable)
	case PM1Event + 3:
		return uint8(p.Enable >> 8)
	case PM1Control:
		return uint8(p.Control)
	case PM1Control + 1:
		return uint8(p.Control >> 8)
	case ResetPort:
		return p.Reset
	}
	return 0xff
}

// Write stores a byte to a port of the two PM1 blocks, ResetPort or KBDCommand.
func (p *PM) Write(port uint16, v uint8) PowerAction {
	low, high := uint16(v), uint16(v)<<8
	switch port {
	case PM1Event: // writing a one clears
		p.Status &^= low
	case PM1Event + 1:
		p.Status &^= high
	case PM1Event + 2:
		p.Enable = (p.Enable&0xff00 | low) & pmEnableBits
	case PM1Event + 3:
		p.Enable = (p.Enable&0xff | high) & pmEnableBits
	case PM1Control: // SCI_EN stays: there is no legacy mode
		p.Control = p.Control&0xff00 | pmSCIEnable
	case PM1Control + 1:
		p.Control = p.Control&0xff | high&pmSleepType
		if high&pmSleepEnable != 0 {
			return PowerOff
		}
	case ResetPort:
		was := p.Reset
		p.Reset = v & (resetHard | resetCPU | 8)
		if v&resetCPU != 0 && was&resetCPU == 0 {
			return PowerReset
		}
	case KBDCommand:
		if v == kbdPulseReset {
			return PowerReset
		}
	}
	return PowerNone
}

// Validate checks a restored state.
func (p *PM) Validate() error {
	if p.Status&^pmPowerButton != 0 || p.Enable&^pmEnableBits != 0 {
		return errors.New("PM: unknown status or enable bits")
	}
	return nil
}
