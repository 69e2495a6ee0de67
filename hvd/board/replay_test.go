package board

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/virtio"
	"github.com/duet-ft/duet/hvd/virtio/vsock"
)

// A call is one call on a board, which may change guest memory first, as the
// guest would. It returns what can be seen.
type call func(b *Board, m *mem.Memory) string

// guest makes random calls, of which most make sense: it brings devices up and
// keeps their rings filled, with some garbage among it.
type guest struct {
	rng *rand.Rand
	now uint64
}

const (
	guestSlots = 6 // slots 2 to 5 are used
	guestRings = 0x40000
	guestData  = 0x100000
)

var interestingPorts = []uint16{
	0x20, 0x21, 0x40, 0x42, 0x43, 0x61, 0x64, 0x70, 0x71, 0xa0, 0xa1, 0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd,
	0x4d0, 0x4d1, 0x600, 0x602, 0x604, 0x608, 0xcf8, 0xcf9, 0xcfc, 0xcfe, 0xcff, 0xffff,
}

func (g *guest) ring(slot, q int) uint64 { return guestRings + uint64(slot*3+q)*0x3000 }

// next makes up a call.
func (g *guest) next() call {
	r := g.rng
	slot, v := 2+r.IntN(guestSlots-2), r.Uint64()
	size := 1 << r.IntN(3)
	switch r.IntN(14) {
	case 0:
		port := interestingPorts[r.IntN(len(interestingPorts))]
		return func(b *Board, _ *mem.Memory) string { return fmt.Sprint(b.PortIn(port, size)) }
	case 1:
		port := interestingPorts[r.IntN(len(interestingPorts))]
		return func(b *Board, _ *mem.Memory) string { b.PortOut(port, size, uint32(v)); return "" }
	case 2:
		addr := 0xfee00000 + v>>32&0x3f0
		if v&1 == 0 {
			return func(b *Board, _ *mem.Memory) string { return fmt.Sprint(b.MMIORead(addr, 4)) }
		}
		return func(b *Board, _ *mem.Memory) string { b.MMIOWrite(addr, 4, v>>8&0x1ffff); return "" }
	case 3:
		off := []uint64{v % 0x40, 0x1800 + v%0x40, 0x2000 + v%0x10, v % 0x4000}[v>>32&3]
		return func(b *Board, _ *mem.Memory) string {
			at := memBase + uint64(slot)*virtio.MemSize + off
			if v>>40&7 == 0 {
				b.MMIOWrite(at, size, v>>44)
			}
			return fmt.Sprint(b.MMIORead(at, size))
		}
	case 4:
		return g.bringUp(slot)
	case 5, 6, 7:
		return g.add(slot, r.IntN(3))
	case 8:
		return g.input(v)
	case 9:
		g.now += v % 5_000_000
		now := g.now
		return func(b *Board, _ *mem.Memory) string { b.Advance(now); return fmt.Sprint(b.Deadline()) }
	case 10:
		return func(b *Board, _ *mem.Memory) string {
			if v&7 == 0 {
				b.SetCR8(v >> 60)
			}
			return fmt.Sprint(b.Pending(), b.Ack(), b.CR8())
		}
	case 11, 12:
		return g.eoi(v)
	}
	id, status, n := v>>8&0xff, byte(v>>16&3/3), int(v>>20&7)*512
	return func(b *Board, _ *mem.Memory) string { // complete what is in flight, or not
		if p := b.PendingDisk(); len(p) > 0 && v&15 != 0 {
			e := p[int(id)%len(p)]
			return fmt.Sprint(b.DiskDone(e.Disk, e.Request.ID, status, bytes.Repeat([]byte{byte(v)}, e.Request.Len)))
		}
		return fmt.Sprint(b.DiskDone(int(v&3), id, status, make([]byte, n)))
	}
}

// eoi is something about the flag that ends interrupts without an exit.
func (g *guest) eoi(v uint64) call {
	return func(b *Board, m *mem.Memory) string {
		switch v >> 32 & 7 {
		case 1:
			return fmt.Sprint(b.SetEOIFlag(flagAt|v&11), b.SetEOIFlag(v>>16), b.EOIFlag())
		case 4: // an interrupt for a guest that has made order
			b.MMIOWrite(apicSVR, 4, 0x1ff)
			b.MMIOWrite(apicTPR, 4, 0)
			for range 256 {
				b.Ack()
				b.MMIOWrite(apicEOI, 4, 0)
			}
			b.SetEOIFlag(flagAt | 1)
			interrupt(b, uint8(v))
		case 2, 3: // the guest looks, and ends its interrupt
			f, err := m.View(flagAt, 1)
			if err != nil || f[0] == 0 {
				b.TakeEOI()
				b.MMIOWrite(apicEOI, 4, 0)
				return "by an exit"
			}
			if err := m.Write(flagAt, []byte{0}); err != nil {
				return err.Error()
			}
			b.TakeEOI()
			return "by the flag"
		}
		pending := b.Pending()
		if pending {
			b.Ack()
		}
		return fmt.Sprint(pending, b.OfferEOI(pending, v&7 == 0))
	}
}

func (g *guest) bringUp(slot int) call {
	eventIdx := g.rng.Uint64() & virtio.FeatureEventIdx
	msix := uint32(g.rng.IntN(4)) << 14
	return func(b *Board, m *mem.Memory) string {
		f := slotFunction(b, slot)
		if f.ReadMem(0x14, 1) == 0xf && msix != 0 {
			return ""
		}
		writeConfig(b, slot, 0x42, 2, msix)
		f.WriteMem(0x14, 1, 0)
		f.WriteMem(0x08, 4, 0)
		f.WriteMem(0x0c, 4, eventIdx|f.ReadMem(4, 4)&(1<<15))
		f.WriteMem(0x08, 4, 1)
		f.WriteMem(0x0c, 4, 1)
		f.WriteMem(0x14, 1, 0xb)
		for q := range 3 {
			at := g.ring(slot, q)
			if err := m.Write(at, make([]byte, 0x3000)); err != nil {
				return err.Error()
			}
			f.WriteMem(0x16, 2, uint64(q))
			f.WriteMem(0x18, 2, 16)
			f.WriteMem(0x20, 8, at)
			f.WriteMem(0x28, 8, at+0x1000)
			f.WriteMem(0x30, 8, at+0x2000)
			f.WriteMem(0x1a, 2, uint64(q))
			f.WriteMem(0x1c, 2, 1)
			f.WriteMem(uint32(0x1800+16*q), 4, 0xfee00000)
			f.WriteMem(uint32(0x1808+16*q), 4, uint64(0x40+16*slot+q))
			f.WriteMem(uint32(0x180c+16*q), 4, 0)
		}
		f.WriteMem(0x14, 1, 0xf)
		return fmt.Sprint(f.ReadMem(0x14, 1))
	}
}

// add makes a chain of two descriptors available, filled for its device.
func (g *guest) add(slot, q int) call {
	r := g.rng
	at := g.ring(slot, q)
	head := uint16(r.IntN(8) * 2)
	data := guestData + uint64(r.IntN(64))*0x1000
	n := uint64(r.IntN(3000))
	if r.IntN(50) == 0 {
		n = r.Uint64()
	}
	first, second := uint64(0), uint64(0) // flags
	var fill []byte
	switch {
	case slot >= slotDisk: // a request: header and data, data and status
		fill = append([]byte{byte(r.IntN(2) * r.IntN(10)), 0, 0, 0, 0, 0, 0, 0, byte(r.IntN(64))}, make([]byte, 7)...)
		first, second, n = 16|1<<32, uint64(r.IntN(4)*512+1)|2<<32, 0
	case q == 0 || q == 2: // receive or event buffer
		first, second = n|3<<32, n|2<<32
	default: // a frame or packet
		fill = make([]byte, vsock.HeaderSize)
		fill[24] = byte(n)
		first, second = vsock.HeaderSize|1<<32, n
	}
	return func(b *Board, m *mem.Memory) string {
		d := at + 16*uint64(head)
		avail, err := m.Uint16(at + 0x1002)
		for _, e := range []error{
			err, m.Write(data, fill), m.PutUint64(d, data), m.PutUint64(d+8, first|uint64(head+1)<<48),
			m.PutUint64(d+16, data+0x100), m.PutUint64(d+24, second),
			m.PutUint16(at+0x1004+2*uint64(avail%16), head), m.PutUint16(at+0x1002, avail+1),
		} {
			if e != nil {
				return e.Error()
			}
		}
		b.PortOut(ioBase+uint16(slot)*virtio.IOSize+uint16(2*q), 2, uint32(q))
		return ""
	}
}

// input is something from outside.
func (g *guest) input(v uint64) call {
	p := make([]byte, v>>8%2000)
	for i := range p {
		p[i] = byte(g.rng.Uint32())
	}
	return func(b *Board, _ *mem.Memory) string {
		switch v % 8 {
		case 0:
			b.PowerButton()
		case 1:
			b.ConsoleInput(p[:min(len(p), 50)])
		case 2:
			b.VsockReset()
		case 3, 4:
			pkt := append(make([]byte, vsock.HeaderSize), p...)
			pkt[24], pkt[25] = byte(len(p)), byte(len(p)>>8)
			b.VsockReceive(pkt)
		default:
			b.NetReceive(p)
		}
		return ""
	}
}

// TestReplay makes random calls on a board, and the same on a second one, which
// is replaced now and then by a new one that takes over state and memory.
func TestReplay(t *testing.T) {
	totals := map[EffectKind]int{}
	byFlag := 0
	for seed := range uint64(60) {
		g := &guest{rng: rand.New(rand.NewPCG(seed, 1))}
		a, am := newBoard(t)
		b, bm := newBoard(t)
		for step := range 600 {
			c := g.next()
			did, again := c(a, am), c(b, bm)
			if did != again {
				t.Fatalf("seed %d, step %d: result %q and %q", seed, step, did, again)
			}
			if did == "by the flag" {
				byFlag++
			}
			x, y := a.TakeEffects(), b.TakeEffects()
			if !reflect.DeepEqual(x, y) {
				t.Fatalf("seed %d, step %d: effects %v and %v", seed, step, x, y)
			}
			for _, e := range x {
				totals[e.Kind]++
			}
			if step%97 == 96 {
				b, bm = clone(t, b, bm)
			}
			if step%50 == 49 {
				compare(t, fmt.Sprintf("seed %d, step %d", seed, step), a, b, am, bm)
			}
		}
	}
	if byFlag < 100 {
		t.Errorf("the guest ended %d interrupts by the flag: it tests too little", byFlag)
	}
	for _, k := range []EffectKind{DiskRequest, Frame, Vsock, Console, PowerOff, Reset} {
		if totals[k] == 0 {
			t.Errorf("the guest never made a %v: it tests too little", k)
		}
	}
}

// clone restores a board's state into a new one with a copy of its memory.
func clone(t *testing.T, b *Board, m *mem.Memory) (*Board, *mem.Memory) {
	t.Helper()
	state, err := b.State()
	if err != nil {
		t.Fatal(err)
	}
	c, cm := newBoard(t)
	copy(cm.Bytes(), m.Bytes())
	if err := c.Restore(state); err != nil {
		t.Fatalf("%v\n%s", err, state)
	}
	return c, cm
}

func compare(t *testing.T, where string, a, b *Board, am, bm *mem.Memory) {
	t.Helper()
	x, err := a.State()
	if err != nil {
		t.Fatal(err)
	}
	y, err := b.State()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		t.Fatalf("%s: state\n%s\nand\n%s", where, x, y)
	}
	if !bytes.Equal(am.Bytes(), bm.Bytes()) {
		t.Fatalf("%s: memories differ", where)
	}
}
