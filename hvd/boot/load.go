package boot

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/duet-ft/duet/hvd/boot/bzimage"
	"github.com/duet-ft/duet/hvd/mem"
)

// Where things are; see the package comment.
const (
	gdtAddr     = 0x500
	paramsAddr  = 0x7000
	stackTop    = 0x9000
	tablesAddr  = 0x9000
	cmdlineAddr = 0x20000
	cmdlineMax  = 2047 // bytes, COMMAND_LINE_SIZE of x86 without the zero
	seedAddr    = 0x30000
	ebdaAddr    = 0x9fc00 // end of conventional memory
	highStart   = 1 << 20
)

// Options are what a VM's definition says about its boot.
type Options struct {
	Cmdline string   // appended to the default command line, so that it wins
	Seed    [32]byte // of the guest's random numbers, drawn anew for each boot
	Quiet   bool     // print only warnings: each character on the console is an exit
	// Untouched loads the kernel as it is: it goes on looking at accessed bits,
	// which two executions can read differently (package young).
	Untouched bool
}

// Entry is the state in which the virtual CPU starts: 64-bit mode, CS 10h, all
// other segments 18h, interrupts off.
type Entry struct {
	RIP, RSI, RSP, CR3 uint64
	GDTBase            uint64
	GDTLimit           uint16
	Accessed           Accessed // what was done about accessed bits
}

// Cmdline is the kernel's command line: the root file system, what keeps time
// and randomness deterministic and cheap, then the user's own arguments.
func (img *Image) Cmdline(o Options) string {
	args := []string{img.Root, "rw", "console=ttyS0"}
	if o.Quiet {
		args = append(args, "quiet")
	}
	args = append(args,
		// The guest's time-stamp counter runs at 1 GHz; believe it, and don't
		// measure it against other clocks. lpj follows from it.
		"clocksource=tsc", "tsc=reliable", "tsc_early_khz=1000000",
		// A periodic tick is one exit; a one-shot timer is programmed at each.
		"highres=off", "nohz=off",
		// The seed comes with the boot parameters; RDRAND can't be replayed.
		"random.trust_cpu=off", "random.trust_bootloader=on",
		// khugepaged reads accessed bits, which replay can't reproduce.
		"transparent_hugepage=madvise",
		"panic=10",
		o.Cmdline)
	return strings.Join(slices.DeleteFunc(args, func(s string) bool { return s == "" }), " ")
}

// Load puts an image into m, which must be fresh: all zero. The result is a
// function of its arguments.
func Load(m *mem.Memory, img *Image, o Options) (*Entry, error) {
	cmdline := img.Cmdline(o)
	switch {
	case !strings.Contains(" "+cmdline, " root="):
		return nil, errors.New("the disk's root file system wasn't found: name it by root= in the VM's kernel arguments")
	case len(cmdline) > cmdlineMax:
		return nil, fmt.Errorf("kernel arguments of %d bytes: at most %d", len(cmdline), cmdlineMax)
	case strings.ContainsFunc(cmdline, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return nil, errors.New("kernel arguments hold a control character")
	}
	elf, err := bzimage.Unpack(img.Kernel)
	if err != nil {
		return nil, err
	}
	list, entry, err := segments(elf)
	if err != nil {
		return nil, err
	}
	header := bzimage.Header(img.Kernel)
	low := min(m.Size(), mem.LowMax)
	initrdAddr, err := place(low, list, header, uint64(len(img.Initrd)))
	if err != nil {
		return nil, err
	}
	write := func(addr uint64, b []byte) {
		if err == nil {
			err = m.Write(addr, b)
		}
	}
	for _, s := range list {
		write(s.addr, s.data)
	}
	accessed := Accessed{State: Untouched}
	if !o.Untouched {
		accessed = steady(list, write)
	}
	write(initrdAddr, img.Initrd)
	write(paramsAddr, params(m, header, initrdAddr, len(img.Initrd), len(cmdline)))
	write(cmdlineAddr, append([]byte(cmdline), 0))
	write(seedAddr, setupData(o.Seed))
	write(acpiBase, acpiTables())
	write(tablesAddr, pageTables())
	write(gdtAddr, gdt())
	if err != nil {
		return nil, err
	}
	return &Entry{
		RIP: entry, RSI: paramsAddr, RSP: stackTop - 16, CR3: tablesAddr,
		GDTBase: gdtAddr, GDTLimit: uint16(len(gdt()) - 1), Accessed: accessed,
	}, nil
}

// place checks that the kernel's segments are in memory and clear of what else
// is there, and finds the initrd's place: as high as the kernel allows.
func place(low uint64, list []segment, header []byte, initrd uint64) (uint64, error) {
	end := uint64(highStart)
	for _, s := range list {
		if s.addr < highStart {
			return 0, fmt.Errorf("%w: it wants to be loaded at %#x, below 1 MiB", bzimage.ErrDamaged, s.addr)
		}
		end = max(end, s.addr+s.size)
	}
	top := low
	if len(header) > 0 {
		top = min(top, uint64(le.Uint32(header[0x22c-0x1f1:]))+1) // initrd_addr_max
	}
	need := (end+initrd+mem.PageSize)&^(1<<20-1) + 1<<20
	if top < initrd || (top-initrd)&^(mem.PageSize-1) < end {
		return 0, fmt.Errorf("%w: %d MiB for a kernel and initrd that take %d MiB at start; give it twice that",
			ErrMemory, low>>20, need>>20)
	}
	return (top - initrd) &^ (mem.PageSize - 1), nil
}

// params makes the boot parameters (arch/x86/include/uapi/asm/bootparam.h).
func params(m *mem.Memory, header []byte, initrdAddr uint64, initrd, cmdline int) []byte {
	b := make([]byte, 4096)
	if len(header) > 0 {
		copy(b[0x1f1:], header)
	} else {
		le.PutUint16(b[0x1fe:], 0xaa55)
		copy(b[0x202:], "HdrS")
		le.PutUint16(b[0x206:], 0x20c)
		le.PutUint32(b[0x230:], 2<<20) // kernel_alignment
		le.PutUint32(b[0x238:], uint32(cmdline))
	}
	le.PutUint64(b[0x70:], acpiBase) // acpi_rsdp_addr
	b[0x210] = 0xff                  // type_of_loader: none of the registered
	b[0x211] = 1                     // loadflags: loaded high; no KASLR
	le.PutUint16(b[0x1fa:], 0xffff)  // vid_mode: normal
	if initrd > 0 {
		le.PutUint32(b[0x218:], uint32(initrdAddr))
		le.PutUint32(b[0x21c:], uint32(initrd))
	}
	le.PutUint32(b[0x228:], cmdlineAddr)
	le.PutUint64(b[0x250:], seedAddr) // setup_data
	const ram, reserved = 1, 2
	type area struct {
		start, end uint64
		kind       uint32
	}
	list := []area{{0, ebdaAddr, ram}, {ebdaAddr, 0xa0000, reserved}, {acpiBase, highStart, reserved}}
	for _, r := range m.Regions() {
		list = append(list, area{max(r.Guest, highStart), r.Guest + r.Size, ram})
	}
	b[0x1e8] = byte(len(list))
	for i, a := range list {
		e := b[0x2d0+20*i:]
		le.PutUint64(e, a.start)
		le.PutUint64(e[8:], a.end-a.start)
		le.PutUint32(e[16:], a.kind)
	}
	return b
}

// setupData is a list of one struct setup_data: next 8, type 4, length 4, data.
func setupData(seed [32]byte) []byte {
	const rngSeed = 9 // SETUP_RNG_SEED
	b := le.AppendUint64(nil, 0)
	b = le.AppendUint32(b, rngSeed)
	b = le.AppendUint32(b, uint32(len(seed)))
	return append(b, seed[:]...)
}

// pageTables maps the first 4 GiB to themselves with pages of 2 MiB: one page
// for each of PML4 and PDPT, then four page directories.
func pageTables() []byte {
	const present, large = 3, 0x83 // and writable
	b := make([]byte, 6*mem.PageSize)
	le.PutUint64(b, tablesAddr+mem.PageSize|present)
	for i := range uint64(4) {
		le.PutUint64(b[mem.PageSize+8*i:], tablesAddr+(2+i)*mem.PageSize|present)
	}
	for i := range uint64(4 * 512) {
		le.PutUint64(b[2*mem.PageSize+8*i:], i<<21|large)
	}
	return b
}

// gdt holds the two descriptors that the boot protocol asks for: flat 64-bit
// code at 10h, flat data at 18h.
func gdt() []byte {
	b := make([]byte, 32)
	le.PutUint64(b[0x10:], 0x00af9a000000ffff)
	le.PutUint64(b[0x18:], 0x00cf92000000ffff)
	return b
}
