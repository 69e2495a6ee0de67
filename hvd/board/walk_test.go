package board

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/duet-ft/duet/hvd/virtio"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares got with a file under testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/" + name
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got; -update rewrites it):\n%s", path, d)
	}
}

// walker does what Linux does when it looks for PCI devices, and notes it.
type walker struct {
	b   *Board
	out strings.Builder
}

func (w *walker) note(format string, args ...any) { fmt.Fprintf(&w.out, format+"\n", args...) }

// walkDevice notes a function's header, the sizes of its BARs and its
// capabilities, as pci_setup_device and vp_modern_probe read them.
func (w *walker) walkDevice(slot int) {
	get := func(off, size int) uint32 { return readConfig(w.b, slot, off, size) }
	id := get(0, 4)
	if id == 0xffffffff {
		return
	}
	w.note("slot %d: %04x:%04x class %06x rev %d type %d subsystem %04x:%04x irq %d pin %d command %#x status %#x",
		slot, id&0xffff, id>>16, get(8, 4)>>8, get(8, 1), get(0xe, 1), get(0x2c, 2), get(0x2e, 2),
		get(0x3c, 1), get(0x3d, 1), get(4, 2), get(6, 2))
	for off := 0x10; off <= 0x30; off += 4 {
		if off == 0x28 || off == 0x2c {
			continue
		}
		was := get(off, 4)
		writeConfig(w.b, slot, off, 4, 0xffffffff)
		if size := get(off, 4); size != 0 {
			w.note("  bar at %02x: %08x, sized %08x", off, was, size)
		}
		writeConfig(w.b, slot, off, 4, was)
		if got := get(off, 4); got != was {
			w.note("  bar at %02x changed to %08x", off, got)
		}
	}
	if get(6, 2)&0x10 == 0 {
		return
	}
	for at := int(get(0x34, 1)); at != 0; at = int(get(at+1, 1)) {
		switch id := get(at, 1); id {
		case 9:
			w.note("  cap %02x: virtio length %d type %d bar %d offset %#x size %#x", at,
				get(at+2, 1), get(at+3, 1), get(at+4, 1), get(at+8, 4), get(at+12, 4))
			if get(at+3, 1) == 2 {
				w.note("    notify multiplier %d", get(at+16, 4))
			}
		case 0x11:
			w.note("  cap %02x: MSI-X control %#x table %#x pba %#x", at, get(at+2, 2), get(at+4, 4), get(at+8, 4))
		default:
			w.note("  cap %02x: id %#x", at, id)
		}
	}
}

// walkVirtio notes the common and the device configuration.
func (w *walker) walkVirtio(slot, config int) {
	f := slotFunction(w.b, slot)
	var features uint64
	for half := range uint64(2) {
		f.WriteMem(0, 4, half)
		features |= f.ReadMem(4, 4) << (32 * half)
	}
	w.note("slot %d: features %#x queues %d generation %d status %d", slot, features,
		f.ReadMem(0x12, 2), f.ReadMem(0x15, 1), f.ReadMem(0x14, 1))
	for q := range f.ReadMem(0x12, 2) + 1 {
		f.WriteMem(0x16, 2, q)
		w.note("  queue %d: size %d vector %#x enable %d notify %d", q,
			f.ReadMem(0x18, 2), f.ReadMem(0x1a, 2), f.ReadMem(0x1c, 2), f.ReadMem(0x1e, 2))
	}
	var bytes []string
	for i := range config {
		bytes = append(bytes, fmt.Sprintf("%02x", f.ReadMem(uint32(0x2000+i), 1)))
	}
	w.note("  config %s", strings.Join(bytes, " "))
}

func TestWalk(t *testing.T) {
	b, _ := newBoard(t)
	w := &walker{b: b}
	// pci_check_type1
	b.PortOut(0xcfb, 1, 1)
	b.PortOut(0xcf8, 4, 0x80000000)
	w.note("mechanism #1: %08x", b.PortIn(0xcf8, 4))
	for slot := range 32 {
		w.walkDevice(slot)
	}
	b.PortOut(0xcf8, 4, 0x80010000)
	w.note("bus 1: %08x", b.PortIn(0xcfc, 4))
	b.PortOut(0xcf8, 4, 0x80001100)
	w.note("function 1: %08x", b.PortIn(0xcfc, 4))
	w.walkVirtio(slotNet, 8)
	w.walkVirtio(slotVsock, 8)
	w.walkVirtio(slotDisk, 24)
	w.walkVirtio(slotDisk+1, 24)
	golden(t, "walk.golden", w.out.String())
}

// TestAccessCapability reads the common configuration through configuration
// space only (VIRTIO 1.2 section 4.1.4.9), as a boot loader may.
func TestAccessCapability(t *testing.T) {
	b, _ := newBoard(t)
	at := int(readConfig(b, slotNet, 0x41, 1)) // after MSI-X
	if readConfig(b, slotNet, at+3, 1) != 5 {
		t.Fatal("no access capability after MSI-X")
	}
	window := func(bar, off, n uint32) {
		writeConfig(b, slotNet, at+4, 1, bar)
		writeConfig(b, slotNet, at+8, 4, off)
		writeConfig(b, slotNet, at+12, 4, n)
	}
	window(0, 0x12, 2)
	if got := readConfig(b, slotNet, at+16, 4); got != 2 {
		t.Errorf("%d queues", got)
	}
	window(0, 0x14, 1)
	writeConfig(b, slotNet, at+16, 4, 3)
	if got := slotFunction(b, slotNet).ReadMem(0x14, 1); got != 3 {
		t.Errorf("status %d, want what was written", got)
	}
	for _, bad := range [][3]uint32{{2, 0, 4}, {0, virtio.MemSize, 4}, {1, virtio.IOSize, 1}, {0, 1, 4}, {0, 0, 3}, {0, 0xffffffff, 1}} {
		window(bad[0], bad[1], bad[2])
		if got := readConfig(b, slotNet, at+16, 4); got != 0 {
			t.Errorf("window %v: read %#x", bad, got)
		}
	}
}
