// Package torture is a guest that attacks record and replay, and the plans by
// which inputs are injected into it.
//
// # Place
//
// Tests use it: this package's own record the guest and replay it, hvd/locate's
// count its branches. Of ours it imports hvd/boot (Entry), hvd/event and
// hvd/mem.
//
// # The guest
//
// guest.S without an operating system, assembled into guest.bin by GNU as; a
// test proves that they agree. It runs these sections twice, each of which
// begins by writing its number to port 80h:
//
//	 1 strings   REP MOVS, STOS, INS, OUTS; memory of devices, an exit an item
//	 2 shadows   STI, MOV SS and POP SS with an interrupt that waits
//	 3 masked    interrupts off for long
//	 4 halts     HLT with and without an interrupt pending
//	 5 faults    #PF in its own handler, #GP, #DE, #UD, #BP, a fault within REP
//	 6 doubles   double faults, on a stack of their own
//	 7 floats    x87 and SSE across exits
//	 8 modified  self-modifying code, code made at run time
//	 9 user32    32-bit code at privilege 3, int 80h and SYSCALL
//	10 user64    64-bit code at privilege 3, SYSCALL, int 80h, faults
//	11 windows   two sets of page tables by turns
//	12 clocks    RDTSC, and the time-stamp counter's MSR
//	13 stepped   single-stepping itself over all that
//	14 endings   the flag that ends an interrupt without an exit, named anew
//
// Its handlers fold all registers, RIP, RSP and RFLAGS of what they interrupt
// into a digest, so that an interrupt one instruction early or late changes
// it. At the end the guest writes the digest to the serial port as 16
// hexadecimal digits and switches the machine off.
//
// Interrupts come from the local APIC's timer (10 ms, vector 40h), the serial
// port (24h), the power button (29h) and the network device (2bh). The timer's ends
// without an exit where it can.
//
// # Layout of guest memory
//
//	0x500     descriptors of the entry     0x200000  what REP MOVS copies
//	0x2000    page tables: 4 GiB, user     0x230000  the network's ring
//	0x100000  guest.bin                    0x240000  tables and pages of the window
//	0x190000  and up: stacks               0x270000  code made at run time
package torture

import (
	_ "embed"
	"encoding/binary"

	"github.com/duet-ft/duet/hvd/boot"
	"github.com/duet-ft/duet/hvd/mem"
)

// MemoryBytes is what the guest needs.
const MemoryBytes = 4 << 20

const (
	gdtAddr    = 0x500
	tablesAddr = 0x2000
	imageAddr  = 0x100000
)

//go:embed guest.bin
var image []byte

// Load puts the guest into m, which must be fresh and have MemoryBytes.
func Load(m *mem.Memory) (*boot.Entry, error) {
	var err error
	put := func(addr, v uint64) {
		if err == nil {
			err = m.PutUint64(addr, v)
		}
	}
	const user, large = 7, 0x87 // present and writable, for every privilege
	put(tablesAddr, tablesAddr+mem.PageSize|user)
	for i := range uint64(4) {
		put(tablesAddr+mem.PageSize+8*i, tablesAddr+(2+i)*mem.PageSize|user)
	}
	for i := range uint64(4 * 512) {
		put(tablesAddr+2*mem.PageSize+8*i, i<<21|large)
	}
	gdt := binary.LittleEndian.AppendUint64(make([]byte, 16), 0x00af9a000000ffff)
	gdt = binary.LittleEndian.AppendUint64(gdt, 0x00cf92000000ffff)
	for _, part := range []struct {
		addr uint64
		data []byte
	}{{gdtAddr, gdt}, {imageAddr, image}} {
		if err == nil {
			err = m.Write(part.addr, part.data)
		}
	}
	if err != nil {
		return nil, err
	}
	return &boot.Entry{RIP: imageAddr, CR3: tablesAddr, GDTBase: gdtAddr, GDTLimit: uint16(len(gdt) - 1)}, nil
}
