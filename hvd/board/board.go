// Package board is the mainboard of a virtual machine: the devices of
// hvd/chipset and hvd/virtio wired together, as pure code.
//
// # Place
//
// The loop that runs the virtual CPU (hvd/machine) gives it the guest's
// accesses, guest time and the world's inputs, and takes effects and interrupts
// from it. Of ours it imports hvd/chipset, hvd/virtio and hvd/mem. A secondary
// that makes the same calls in the same order gets the same state, memory,
// effects and interrupts.
//
// # The machine that the guest sees
//
//	memory  fe000000h + slot*4000h  BAR0 of a virtio function, by the firmware
//	        fee00000h               local APIC; no I/O APIC
//	ports   20h 21h a0h a1h 4d0h 4d1h  PIC    40h-43h 61h  PIT
//	        70h 71h  RTC            3f8h-3ffh  UART       64h  reset pulse only
//	        600h-605h 608h  ACPI PM1a and timer    cf8h-cffh  PCI, cf9h  reset
//	        c000h + slot*40h        BAR1 of a virtio function, by the firmware
//	slots   0  host bridge   2  net   3  vsock   4..19  disks
//	IRQs    0  PIT   4  UART   9  ACPI   5 10 11  PCI pins (without MSI-X)
//
// The firmware's work is done: BARs are assigned and decoded, pins of PCI are
// level-triggered, the PIC reaches the CPU through LINT0 (virtual wire mode).
//
// # Time and interrupts
//
// Advance sets guest time; devices do nothing between two calls. Deadline is
// when one next has something to do by itself. Pending says that an interrupt
// may be injected, as far as PIC and APIC see it; Ack takes it. TakeEOI and OfferEOI
// are for guests that end interrupts without an exit.
package board

import (
	"fmt"
	"time"

	"github.com/duet-ft/duet/hvd/chipset"
	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/virtio"
	"github.com/duet-ft/duet/hvd/virtio/blk"
	"github.com/duet-ft/duet/hvd/virtio/net"
	"github.com/duet-ft/duet/hvd/virtio/vsock"
)

// MaxDisks is how many disks a machine can have.
const MaxDisks = 16

const (
	slotNet   = 2
	slotVsock = 3
	slotDisk  = 4

	memBase = 0xfe000000
	ioBase  = 0xc000

	irqPIT  = 0
	irqUART = 4
	irqACPI = 9
)

// pciIRQs are the interrupts that the pins of the slots share.
var pciIRQs = [3]int{5, 10, 11}

func slotIRQ(slot int) int { return pciIRQs[slot%len(pciIRQs)] }

// Disk is what the guest sees of a virtual disk.
type Disk struct {
	Sectors  uint64 // of 512 bytes
	ReadOnly bool
	Serial   string // at most 20 bytes
}

// Config is what a machine has. It isn't part of the state: a board can only
// be restored into one of the same configuration.
type Config struct {
	Disks   []Disk
	MAC     [6]byte
	CID     uint64    // of vsock, at least 3
	Wall    time.Time // wall clock at guest time 0, for the RTC
	NoNet   bool
	NoVsock bool
}

// Board is a machine's devices. It isn't safe for concurrent use.
type Board struct {
	cfg Config
	mem *mem.Memory
	d   *devices
}

// devices are the parts of a board; callbacks point here, so that Restore can
// swap them all at once.
type devices struct {
	now     uint64
	pins    uint32 // slots that drive their interrupt pin
	effects []Effect

	pic  *chipset.PIC
	pit  *chipset.PIT
	apic *chipset.APIC
	uart *chipset.UART
	rtc  *chipset.RTC
	pm   *chipset.PM
	pci  *chipset.PCI

	disks []*blk.Device
	net   *net.Device   // nil: none
	vsock *vsock.Device // nil: none

	functions []*virtio.Transport // all virtio functions, in order of their slots
}

// New returns a machine as its firmware leaves it, at guest time 0, with m as
// its memory.
func New(cfg Config, m *mem.Memory) (*Board, error) {
	cfg.Disks = append([]Disk(nil), cfg.Disks...)
	d, err := newDevices(cfg, m)
	if err != nil {
		return nil, err
	}
	return &Board{cfg: cfg, mem: m, d: d}, nil
}

func newDevices(cfg Config, m *mem.Memory) (*devices, error) {
	if len(cfg.Disks) > MaxDisks {
		return nil, fmt.Errorf("%d disks: a machine has at most %d", len(cfg.Disks), MaxDisks)
	}
	level := uint16(1 << irqACPI)
	for _, irq := range pciIRQs {
		level |= 1 << irq
	}
	d := &devices{
		pic: chipset.NewPIC(level), pit: chipset.NewPIT(), apic: chipset.NewAPIC(),
		uart: chipset.NewUART(uint64(cfg.Wall.UnixNano())), rtc: chipset.NewRTC(cfg.Wall), pm: chipset.NewPM(), pci: chipset.NewPCI(),
	}
	if !cfg.NoNet {
		d.net = net.New(cfg.MAC, spec(slotNet), d.bus(m, slotNet), func(frame []byte) {
			d.effects = append(d.effects, Effect{Kind: Frame, Data: frame})
		})
		d.attach(slotNet, &d.net.Transport)
	}
	if !cfg.NoVsock {
		var err error
		d.vsock, err = vsock.New(cfg.CID, spec(slotVsock), d.bus(m, slotVsock), func(pkt []byte) {
			d.effects = append(d.effects, Effect{Kind: Vsock, Data: pkt})
		})
		if err != nil {
			return nil, err
		}
		d.attach(slotVsock, &d.vsock.Transport)
	}
	for i, c := range cfg.Disks {
		slot := slotDisk + i
		disk, err := blk.New(blk.Config(c), spec(slot), d.bus(m, slot), func(r blk.Request) {
			d.effects = append(d.effects, Effect{Kind: DiskRequest, Disk: i, Request: r})
		})
		if err != nil {
			return nil, fmt.Errorf("disk %d: %w", i, err)
		}
		d.disks = append(d.disks, disk)
		d.attach(slot, &disk.Transport)
	}
	return d, nil
}

// spec is a slot's part of a function's description.
func spec(slot int) virtio.Spec {
	return virtio.Spec{
		IRQ: uint8(slotIRQ(slot)),
		Mem: memBase + uint32(slot)*virtio.MemSize,
		IO:  ioBase + uint16(slot)*virtio.IOSize,
	}
}

// bus wires a slot's interrupts.
func (d *devices) bus(m *mem.Memory, slot int) virtio.Bus {
	return virtio.Bus{Mem: m, MSI: d.apic.MSI, INTx: func(high bool) {
		if high {
			d.pins |= 1 << slot
		} else {
			d.pins &^= 1 << slot
		}
		irq, level := slotIRQ(slot), false
		for s := range chipset.PCISlots {
			level = level || d.pins>>s&1 == 1 && slotIRQ(s) == irq
		}
		d.pic.Set(irq, level)
	}}
}

func (d *devices) attach(slot int, t *virtio.Transport) {
	d.pci.Attach(slot, t)
	d.functions = append(d.functions, t)
}

// Faults says which devices rest because the guest's driver broke a rule, and
// which rule, one line each.
func (b *Board) Faults() []string {
	var out []string
	for _, p := range b.d.parts() {
		if p.transport != nil && p.transport.Fault != "" {
			out = append(out, p.name+": "+p.transport.Fault)
		}
	}
	return out
}
