package boot

import (
	"bytes"
	"encoding/binary"
)

// Fixed ACPI hardware that the tables promise and hvd/chipset provides
// (ACPI 6.5, section 4.8.3).
const (
	// PM1aEvent is the port of PM1a's status (16 bits) and enable (16 bits)
	// registers. Bit 8 of both is the power button: setting the status while it
	// is enabled raises SCI, and the guest shuts down.
	PM1aEvent = 0x600
	// PM1aControl is the port of PM1a's control register, 16 bits: bit 0,
	// SCI_EN, always reads as 1; bits 10 to 12 are SLP_TYP, bit 13 is SLP_EN.
	PM1aControl = 0x604
	// PMTimer is the port of the power management timer, 32 bits of which 24
	// count, at 3.579545 MHz. Linux calibrates the local APIC's timer by it.
	PMTimer = 0x608
	// SleepTypeOff is the SLP_TYP that, written with SLP_EN, switches off.
	SleepTypeOff = 5
	// SCI is the interrupt of the power button, level-triggered.
	SCI = 9
	// ResetPort restarts the machine when the byte ResetValue is written to it.
	ResetPort  = 0xcf9
	ResetValue = 6
	// MMIOBase and MMIOLimit enclose the addresses for PCI BARs.
	MMIOBase  = 0xc0000000
	MMIOLimit = 0xfebfffff
)

// acpiBase is where the RSDP is; kernels look for it from 0xe0000 on.
const acpiBase = 0xf0000

var le = binary.LittleEndian

// acpiTables builds the memory from acpiBase on: RSDP, DSDT, FACS, FADT, MADT
// and XSDT.
func acpiTables() []byte {
	b := make([]byte, 64)
	put := func(t []byte) uint64 {
		at := uint64(acpiBase + len(b))
		b = append(b, t...)
		b = append(b, make([]byte, -len(b)&63)...)
		return at
	}
	d := put(table("DSDT", 2, dsdt()))
	f := put(facs())
	fa := put(table("FACP", 3, fadt(f, d)))
	m := put(table("APIC", 3, madt()))
	x := le.AppendUint64(nil, fa)
	x = le.AppendUint64(x, m)
	copy(b, rsdp(put(table("XSDT", 1, x))))
	return b
}

// checksum is the byte that makes the sum of b zero.
func checksum(b []byte) byte {
	var s byte
	for _, c := range b {
		s += c
	}
	return -s
}

// table puts the header of a system description table (section 5.2.6) before a
// body.
func table(signature string, revision byte, body []byte) []byte {
	t := make([]byte, 36, 36+len(body))
	copy(t, signature)
	le.PutUint32(t[4:], uint32(36+len(body)))
	t[8] = revision
	copy(t[10:], "DUET  DUETVM  ")
	le.PutUint32(t[24:], 1)
	copy(t[28:], "DUET")
	le.PutUint32(t[32:], 1)
	t = append(t, body...)
	t[9] = checksum(t)
	return t
}

// rsdp is the root pointer, section 5.2.5.3.
func rsdp(xsdt uint64) []byte {
	r := make([]byte, 36)
	copy(r, "RSD PTR ")
	copy(r[9:], "DUET  ")
	r[15] = 2
	le.PutUint32(r[20:], 36)
	le.PutUint64(r[24:], xsdt)
	r[8] = checksum(r[:20])
	r[32] = checksum(r)
	return r
}

// facs is the firmware control structure, section 5.2.10: nothing but its
// header, for there is no firmware to wake up in.
func facs() []byte {
	f := make([]byte, 64)
	copy(f, "FACS")
	le.PutUint32(f[4:], 64)
	f[32] = 1 // version
	return f
}

// fadt is the fixed description table, section 5.2.9, in its form of ACPI 2.0.
// There is no SMI: the machine is in ACPI mode from the start.
func fadt(facs, dsdt uint64) []byte {
	const (
		wbinvd, procC1, noSleepButton, noRTCWake, resetReg = 1 << 0, 1 << 2, 1 << 5, 1 << 6, 1 << 10
		legacyDevices, noVGA                               = 1 << 0, 1 << 2 // and no 8042: bit 1 is clear
		none                                               = 0xfff          // latency of C2 and C3: not there
	)
	t := make([]byte, 244)
	le.PutUint32(t[36:], uint32(facs))
	le.PutUint32(t[40:], uint32(dsdt))
	t[45] = 4 // profile: enterprise server
	le.PutUint16(t[46:], SCI)
	le.PutUint32(t[56:], PM1aEvent)
	le.PutUint32(t[64:], PM1aControl)
	le.PutUint32(t[76:], PMTimer)
	t[88], t[89], t[91] = 4, 2, 4 // bytes of the three
	le.PutUint16(t[96:], none)
	le.PutUint16(t[98:], none)
	le.PutUint16(t[109:], legacyDevices|noVGA)
	// Bits 4 and 5 say that a button is no fixed hardware: the power button is.
	le.PutUint32(t[112:], wbinvd|procC1|noSleepButton|noRTCWake|resetReg)
	copy(t[116:], port(ResetPort, 8))
	t[128] = ResetValue
	le.PutUint64(t[132:], facs)
	le.PutUint64(t[140:], dsdt)
	copy(t[148:], port(PM1aEvent, 32))
	copy(t[172:], port(PM1aControl, 16))
	copy(t[208:], port(PMTimer, 32))
	return t[36:]
}

// port is a generic address of I/O space, section 5.2.3.2.
func port(n uint64, bits byte) []byte {
	return le.AppendUint64([]byte{1, bits, 0, 0}, n)
}

// madt lists the interrupt controllers, section 5.2.12: one local APIC, no I/O
// APIC, and the PC's two 8259.
func madt() []byte {
	b := le.AppendUint32(nil, 0xfee00000)
	b = le.AppendUint32(b, 1)                // PCAT_COMPAT
	return append(b, 0, 8, 0, 0, 1, 0, 0, 0) // processor 0, APIC 0, enabled
}

// dsdt is the machine in AML (chapter 20):
//
//	Scope (\_SB) { Device (PCI0) { _HID PNP0A03, _UID 0, _BBN 0, _CRS } }
//	Name (\_S5, Package () { 5, 5, 0, 0 })
func dsdt() []byte {
	crs := append(wordSpace(2, 0, 0, 0xff), // bus numbers
		wordSpace(1, 3, 0, 0xcf7)...) // I/O, around the configuration ports
	crs = append(crs, 0x47, 1, 0xf8, 0xc, 0xf8, 0xc, 1, 8) // IO (Decode16, 0xcf8, 0xcf8, 1, 8)
	crs = append(crs, wordSpace(1, 3, 0xd00, 0xffff)...)
	crs = append(crs, dwordSpace(0, 1, MMIOBase, MMIOLimit)...)
	crs = append(crs, 0x79, 0)                        // end tag
	pci := name("_HID", 0x0c, 0x41, 0xd0, 0x0a, 0x03) // EisaId ("PNP0A03")
	pci = append(pci, name("_UID", 0)...)
	pci = append(pci, name("_BBN", 0)...)
	pci = append(pci, name("_CRS", block([]byte{0x11}, append([]byte{0x0a, byte(len(crs))}, crs...))...)...)
	device := block([]byte{0x5b, 0x82}, append([]byte("PCI0"), pci...))
	sb := block([]byte{0x10}, append([]byte(`\_SB_`), device...))
	s5 := block([]byte{0x12}, []byte{4, 0x0a, SleepTypeOff, 0x0a, SleepTypeOff, 0, 0})
	return bytes.Join([][]byte{sb, {0x08}, []byte(`\_S5_`), s5}, nil)
}

// name is DefName: an object called id with the given value.
func name(id string, value ...byte) []byte {
	return append(append([]byte{0x08}, id...), value...)
}

// block puts an opcode and a PkgLength of two bytes before a body of at most
// 4,000 bytes.
func block(op, body []byte) []byte {
	n := len(body) + 2
	b := append(bytes.Clone(op), 0x40|byte(n&15), byte(n>>4))
	return append(b, body...)
}

// wordSpace is a QWord-free address space descriptor of 16 bits (section
// 6.4.3.5.3): kind 1 is I/O, 2 bus numbers; minimum and maximum are fixed.
func wordSpace(kind, flags byte, from, to uint16) []byte {
	b := []byte{0x88, 13, 0, kind, 0x0c, flags, 0, 0}
	for _, v := range []uint16{from, to, 0, to - from + 1} {
		b = le.AppendUint16(b, v)
	}
	return b
}

// dwordSpace is the same with 32 bits (section 6.4.3.5.2): kind 0 is memory.
func dwordSpace(kind, flags byte, from, to uint32) []byte {
	b := []byte{0x87, 23, 0, kind, 0x0c, flags, 0, 0, 0, 0}
	for _, v := range []uint32{from, to, 0, to - from + 1} {
		b = le.AppendUint32(b, v)
	}
	return b
}
