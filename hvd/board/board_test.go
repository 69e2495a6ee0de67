package board

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/virtio"
	"github.com/duet-ft/duet/hvd/virtio/virtiotest"
)

const memSize = 2 << 20

var testConfig = Config{
	Disks: []Disk{{Sectors: 2048, Serial: "duet-0"}, {Sectors: 64, ReadOnly: true}},
	MAC:   [6]byte{2, 0, 0, 1, 2, 3},
	CID:   42,
	Wall:  time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC),
}

func newBoard(t testing.TB) (*Board, *mem.Memory) {
	t.Helper()
	m, err := mem.New(memSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	b, err := New(testConfig, m)
	if err != nil {
		t.Fatal(err)
	}
	return b, m
}

// function is a slot's BAR0 as a driver sees it.
type function struct {
	b    *Board
	base uint64
}

func (f function) ReadMem(off uint32, size int) uint64 { return f.b.MMIORead(f.base+uint64(off), size) }

func (f function) WriteMem(off uint32, size int, v uint64) {
	f.b.MMIOWrite(f.base+uint64(off), size, v)
}

func slotFunction(b *Board, slot int) function {
	return function{b, memBase + uint64(slot)*virtio.MemSize}
}

// config accesses a slot's configuration space.
func writeConfig(b *Board, slot, off, size int, v uint32) {
	b.PortOut(0xcf8, 4, 1<<31|uint32(slot)<<11|uint32(off)&0xfc)
	b.PortOut(0xcfc+uint16(off&3), size, v)
}

func readConfig(b *Board, slot, off, size int) uint32 {
	b.PortOut(0xcf8, 4, 1<<31|uint32(slot)<<11|uint32(off)&0xfc)
	return b.PortIn(0xcfc+uint16(off&3), size)
}

// enableAPIC turns the APIC on and keeps the PIC's interrupts out.
func enableAPIC(b *Board) {
	b.MMIOWrite(0xfee000f0, 4, 0x1ff)
	b.MMIOWrite(0xfee00350, 4, 0x10700)
}

// startNet brings the network interface up with a vector per queue.
func startNet(t testing.TB, b *Board, m *mem.Memory) (rx, tx *virtiotest.Ring) {
	t.Helper()
	writeConfig(b, slotNet, 0x42, 2, 0x8000)
	rx = virtiotest.NewRing(t, m, 0x10000, 256)
	tx = virtiotest.NewRing(t, m, 0x14000, 256)
	virtiotest.Start(t, slotFunction(b, slotNet), virtio.FeatureVersion1|virtio.FeatureEventIdx|1<<15, 0x40, rx, tx)
	return rx, tx
}

func TestNewRefuses(t *testing.T) {
	_, m := newBoard(t)
	for name, spoil := range map[string]func(*Config){
		"serial":   func(c *Config) { c.Disks[0].Serial = strings.Repeat("x", 21) },
		"no size":  func(c *Config) { c.Disks[0].Sectors = 0 },
		"disks":    func(c *Config) { c.Disks = make([]Disk, MaxDisks+1) },
		"host CID": func(c *Config) { c.CID = 2 },
	} {
		c := testConfig
		c.Disks = slices.Clone(c.Disks)
		spoil(&c)
		if _, err := New(c, m); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestPITInterruptsThroughThePIC(t *testing.T) {
	b, _ := newBoard(t)
	for _, o := range []struct {
		port uint16
		v    uint32
	}{
		{0x20, 0x11},
		{0x21, 0x30},
		{0x21, 4},
		{0x21, 1},
		{0xa0, 0x11},
		{0xa1, 0x38},
		{0xa1, 2},
		{0xa1, 1},
		{0x43, 0x34},
		{0x40, 0xa9},
		{0x40, 0x04}, // 1193 clocks: 999,847.47 ns
	} {
		b.PortOut(o.port, 1, o.v)
	}
	at, armed := b.Deadline()
	if want := uint64(999_848); !armed || at != want {
		t.Fatalf("deadline %d %v, want %d", at, armed, want)
	}
	b.Advance(at - 1)
	if b.Pending() {
		t.Error("interrupt before the deadline")
	}
	b.Advance(at)
	if !b.Pending() {
		t.Fatal("no interrupt at the deadline")
	}
	if v := b.Ack(); v != 0x30 || b.Pending() {
		t.Errorf("vector %#x, or still pending", v)
	}
	b.PortOut(0x21, 1, 1)
	if _, armed := b.Deadline(); armed {
		t.Error("a masked PIT still has a deadline")
	}
}

func TestAPICTimer(t *testing.T) {
	b, _ := newBoard(t)
	enableAPIC(b)
	b.Advance(5000)
	b.MMIOWrite(0xfee003e0, 4, 0xb) // divide by 1
	b.MMIOWrite(0xfee00320, 4, 0x200ec)
	b.MMIOWrite(0xfee00380, 4, 4_000_000)
	if at, armed := b.Deadline(); !armed || at != 4_005_000 {
		t.Fatalf("deadline %d %v", at, armed)
	}
	b.Advance(13_000_000) // three periods late: one interrupt, phase kept
	if !b.Pending() || b.Ack() != 0xec || b.Pending() {
		t.Error("want exactly vector 0xec")
	}
	if at, _ := b.Deadline(); at != 16_005_000 {
		t.Errorf("next deadline %d", at)
	}
	b.SetCR8(0xe)
	b.MMIOWrite(0xfee000b0, 4, 0)
	b.Advance(16_005_000)
	if b.Pending() {
		t.Error("task priority didn't hold vector 0xec back")
	}
	if v := b.Ack(); v != 0xff {
		t.Errorf("acknowledge without interrupt gave %#x, want the spurious vector", v)
	}
	b.SetCR8(0)
	if !b.Pending() || b.CR8() != 0 {
		t.Error("the interrupt is gone")
	}
}

func TestFrameInterruptsByMessage(t *testing.T) {
	b, m := newBoard(t)
	enableAPIC(b)
	rx, _ := startNet(t, b, m)
	rx.Add(nil, []virtio.Segment{{Addr: 0x20000, Len: 2048}})
	b.NetReceive(make([]byte, 60))
	if !b.Pending() || b.Ack() != 0x41 {
		t.Error("no interrupt of the receive queue")
	}
	if len(rx.Used()) != 1 {
		t.Error("no frame")
	}
}

func TestFrameInterruptsByPin(t *testing.T) {
	b, m := newBoard(t)
	rx, _ := startNet(t, b, m)
	writeConfig(b, slotNet, 0x42, 2, 0) // MSI-X off
	b.PortOut(0xa0, 1, 0x11)
	for _, v := range []uint32{0x38, 2, 1} {
		b.PortOut(0xa1, 1, v)
	}
	rx.Add(nil, []virtio.Segment{{Addr: 0x20000, Len: 2048}})
	b.NetReceive(make([]byte, 60))
	irq := int(readConfig(b, slotNet, 0x3c, 1))
	if v := int(b.Ack()); v != 0x38+irq-8 {
		t.Fatalf("vector %#x for interrupt %d", v, irq)
	}
	if isr := b.PortIn(ioBase+slotNet*virtio.IOSize+0x20, 1); isr != 1 {
		t.Errorf("ISR %#x", isr)
	}
	b.PortOut(0xa0, 1, 0x20)
	b.PortOut(0x20, 1, 0x20)
	if b.Pending() {
		t.Error("the pin is still high after ISR was read")
	}
}

func TestLateTransmitInterruptComesWithATimer(t *testing.T) {
	b, m := newBoard(t)
	enableAPIC(b)
	_, tx := startNet(t, b, m)
	b.MMIOWrite(0xfee003e0, 4, 0xb)
	b.MMIOWrite(0xfee00320, 4, 0xec)
	b.MMIOWrite(0xfee00380, 4, 1000)
	tx.Add([]virtio.Segment{{Addr: 0x20000, Len: 100}}, nil)
	b.PortOut(ioBase+slotNet*virtio.IOSize+2, 2, 1)
	if e := b.TakeEffects(); len(e) != 1 || e[0].Kind != Frame || len(e[0].Data) != 88 {
		t.Fatalf("effects %v", e)
	}
	b.Advance(999)
	if b.Pending() {
		t.Fatal("interrupt before the timer")
	}
	b.Advance(1000)
	if v, w := b.Ack(), b.Pending(); v != 0xec || w {
		t.Errorf("first vector %#x", v)
	}
	b.MMIOWrite(0xfee000b0, 4, 0)
	if !b.Pending() || b.Ack() != 0x42 {
		t.Error("no transmit interrupt with the timer")
	}
}

func TestConsole(t *testing.T) {
	b, _ := newBoard(t)
	for _, c := range "hi" {
		b.PortOut(0x3f8, 1, uint32(c))
	}
	b.PortOut(0x604, 2, 0x2001)
	b.PortOut(0x3f8, 1, '!')
	b.PortOut(0x64, 1, 0xfe)
	b.PortOut(0xcf9, 1, 6)
	want := []Effect{
		{Kind: Console, Data: []byte("hi")},
		{Kind: PowerOff},
		{Kind: Console, Data: []byte("!")},
		{Kind: Reset},
		{Kind: Reset},
	}
	got := b.TakeEffects()
	if !slices.EqualFunc(got, want, func(a, b Effect) bool { return a.Kind == b.Kind && bytes.Equal(a.Data, b.Data) }) {
		t.Errorf("effects %v, want %v", got, want)
	}
	b.ConsoleInput([]byte("x"))
	if got := b.PortIn(0x3f8, 1); got != 'x' {
		t.Errorf("read %q", rune(got))
	}
}

func TestPowerButton(t *testing.T) {
	b, _ := newBoard(t)
	b.PortOut(0x602, 2, 0x100)
	b.PortOut(0xa1, 1, 0) // the PIC as reset: vectors from 0
	b.PowerButton()
	if !b.Pending() || b.Ack() != 1 {
		t.Fatal("no system control interrupt")
	}
	if got := b.PortIn(0x600, 2); got != 0x100 {
		t.Errorf("status %#x", got)
	}
	b.PortOut(0x600, 2, 0x100)
	b.PortOut(0xa0, 1, 0x20)
	b.PortOut(0x20, 1, 0x20)
	if b.Pending() {
		t.Error("still pending after the status was cleared")
	}
}

func TestClock(t *testing.T) {
	b, _ := newBoard(t)
	b.Advance(3_900_000_000)
	want := []uint32{0x09, 0x05, 0x04, 0x03, 0x02, 0x26, 0x20}
	for i, reg := range []uint32{0, 2, 4, 7, 8, 9, 0x32} {
		b.PortOut(0x70, 1, reg)
		if got := b.PortIn(0x71, 1); got != want[i] {
			t.Errorf("register %#x is %#x, want %#x", reg, got, want[i])
		}
	}
}

func TestFirmwareCanBeOverruled(t *testing.T) {
	b, _ := newBoard(t)
	writeConfig(b, slotNet, 0x10, 4, 0xfd000000)
	writeConfig(b, slotNet, 0x14, 4, 0xd001)
	if got := b.MMIORead(0xfd000012, 2); got != 2 {
		t.Errorf("%d queues at the new address", got)
	}
	if got := b.MMIORead(memBase+slotNet*virtio.MemSize+0x12, 2); got != 0xffff {
		t.Errorf("%#x at the old address", got)
	}
	if got := b.PortIn(0xd020, 1); got != 0 {
		t.Errorf("ISR %#x at the new port", got)
	}
	writeConfig(b, slotNet, 4, 2, 0)
	if got := b.MMIORead(0xfd000012, 2); got != 0xffff {
		t.Errorf("%#x although memory isn't decoded", got)
	}
}

func TestFaults(t *testing.T) {
	b, m := newBoard(t)
	rx, _ := startNet(t, b, m)
	rx.Publish(9999)
	b.NetReceive(make([]byte, 60))
	if f := b.Faults(); len(f) != 1 || !strings.HasPrefix(f[0], "net: queue 0: ") {
		t.Errorf("faults %q", f)
	}
}
