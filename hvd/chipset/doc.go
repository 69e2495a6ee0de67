// Package chipset models the parts of a PC that are soldered to the board:
// interrupt controllers, timers, serial port, clock, PCI configuration and the
// few registers of power management.
//
// # Place
//
// hvd/board wires these devices together. The package imports nothing of ours
// and does no I/O. The secondary executes the same code again: the same calls
// in the same order give the same results.
//
// # Rules that all devices here keep
//
//   - Time is guest time in nanoseconds, given as an argument; it never goes
//     back. The bus clock of the local APIC is 1 GHz: one tick is 1 ns.
//   - The exported fields of a device are its whole state. encoding/json stores
//     and restores it; Validate says whether a restored state may be used.
//   - A device with a timer has Deadline, the next time at which it does
//     something by itself, and Advance, which does what is due. A periodic timer
//     that is several periods late fires once and keeps its phase.
//   - A guest can write what it likes: unknown registers read as zero or all
//     ones, and nothing panics.
//
// # Devices
//
//	PIC    two 8259A, cascaded           ports 20h-21h a0h-a1h 4d0h-4d1h
//	PIT    8254 and the port of its gate ports 40h-43h 61h
//	APIC   local APIC in xAPIC mode      page fee00000h, MSR 4b564d04h
//	UART   16550A                        eight ports, 3f8h on a PC
//	RTC    MC146818 with its CMOS RAM    ports 70h-71h
//	PM     ACPI PM1a and timer, resets   ports 600h-605h 608h cf9h 64h
//	PCI    configuration mechanism #1    ports cf8h-cffh
package chipset

import "math"

// addSat is a + b, or the largest time if that overflows.
func addSat(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}
