package board

import (
	"encoding/json"
	"testing"

	"github.com/duet-ft/duet/hvd/chipset"
	"github.com/duet-ft/duet/hvd/mem"
)

const (
	flagAt = 0x8004
	apicAt = chipset.APICBase

	apicTPR = apicAt + 0x80
	apicEOI = apicAt + 0xb0
	apicSVR = apicAt + 0xf0
	apicISR = apicAt + 0x100
	apicICR = apicAt + 0x300
)

// eoiBoard has its APIC enabled, and a flag.
func eoiBoard(t *testing.T) (*Board, *mem.Memory) {
	t.Helper()
	b, m := newBoard(t)
	b.MMIOWrite(apicSVR, 4, 0x1ff)
	if !b.SetEOIFlag(flagAt | 1) {
		t.Fatal("the flag was refused")
	}
	m.TakeDirty(make([]uint64, m.Pages()/64+1))
	return b, m
}

// interrupt has the guest interrupt itself.
func interrupt(b *Board, vector uint8) { b.MMIOWrite(apicICR, 4, 1<<18|uint64(vector)) }

// enter takes an interrupt that is pending, and enters the guest.
func enter(b *Board) (leave bool) {
	taken := b.Pending()
	if taken {
		b.Ack()
	}
	return b.OfferEOI(taken, false)
}

func flagByte(t *testing.T, m *mem.Memory) byte {
	t.Helper()
	v, err := m.View(flagAt, 1)
	if err != nil {
		t.Fatal(err)
	}
	return v[0]
}

// inService lists the vectors that the guest serves.
func inService(b *Board) (v []int) {
	for i := range 8 {
		for w, bit := b.MMIORead(apicISR+uint64(16*i), 4), 0; w != 0; w, bit = w>>1, bit+1 {
			if w&1 == 1 {
				v = append(v, 32*i+bit)
			}
		}
	}
	return v
}

func TestEOIByFlag(t *testing.T) {
	b, m := eoiBoard(t)
	interrupt(b, 0x51)
	enter(b)
	if flagByte(t, m) != 1 {
		t.Fatal("the flag isn't set for the only interrupt")
	}
	dirty := make([]uint64, m.Pages()/64+1)
	m.TakeDirty(dirty)
	if dirty[0] != 1<<(flagAt/mem.PageSize) {
		t.Errorf("pages %b are marked as written", dirty[0])
	}
	b.TakeEOI() // an exit within the handler
	enter(b)
	if v := inService(b); len(v) != 1 || flagByte(t, m) != 1 {
		t.Fatalf("in service %v, flag %d before the EOI", v, flagByte(t, m))
	}
	if m.TakeDirty(dirty[:]); dirty[0]&^(1<<(flagAt/mem.PageSize)) != 0 {
		t.Error("more was written")
	}
	_ = m.Write(flagAt, []byte{0xfe}) // only bit 0 counts
	b.TakeEOI()
	if v := inService(b); len(v) != 0 {
		t.Errorf("in service %v after the EOI", v)
	}
	interrupt(b, 0x41)
	if !b.Pending() {
		t.Error("the next interrupt is held back")
	}
}

// TestEOIWhileAnotherWaits: the guest leaves where it can take the second one; if it
// leaves before the EOI, that has to be an exit.
func TestEOIWhileAnotherWaits(t *testing.T) {
	b, m := eoiBoard(t)
	interrupt(b, 0x51)
	interrupt(b, 0x52)
	if leave := enter(b); !leave || flagByte(t, m) != 1 {
		t.Fatalf("leave %t, flag %d while another one waits", leave, flagByte(t, m))
	}
	_ = m.Write(flagAt, []byte{0})
	b.TakeEOI()
	if !b.Pending() || b.Ack() != 0x51 {
		t.Fatal("the second one doesn't come behind the EOI")
	}
	if leave := b.OfferEOI(true, false); leave || flagByte(t, m) != 1 {
		t.Fatalf("leave %t, flag %d for the last one", leave, flagByte(t, m))
	}
	b.TakeEOI()
	interrupt(b, 0x53)
	if leave := enter(b); leave || flagByte(t, m) != 0 {
		t.Fatalf("leave %t, flag %d when another one comes", leave, flagByte(t, m))
	}
	b.TakeEOI()
	if v := inService(b); len(v) != 1 {
		t.Errorf("taking the flag back counts as an EOI: in service %v", v)
	}
	b.MMIOWrite(apicEOI, 4, 0)
	enter(b)
	b.TakeEOI()
	interrupt(b, 0x61)
	if leave := enter(b); leave || flagByte(t, m) != 0 { // it nests
		t.Errorf("leave %t, in service %v, flag %d", leave, inService(b), flagByte(t, m))
	}
}

// TestEOIWrittenNevertheless: a guest that doesn't look at the flag.
func TestEOIWrittenNevertheless(t *testing.T) {
	b, m := eoiBoard(t)
	interrupt(b, 0x51)
	enter(b)
	b.TakeEOI()
	b.MMIOWrite(apicEOI, 4, 0)
	enter(b)
	if v := inService(b); len(v) != 0 || flagByte(t, m) != 0 {
		t.Errorf("in service %v, flag %d", v, flagByte(t, m))
	}
}

func TestEOIWhileMoreIsDue(t *testing.T) {
	b, m := eoiBoard(t)
	interrupt(b, 0x51)
	b.Ack()
	if leave := b.OfferEOI(true, true); !leave || flagByte(t, m) != 1 {
		t.Errorf("leave %t, flag %d", leave, flagByte(t, m))
	}
	b.TakeEOI()
	if leave := b.OfferEOI(false, true); leave || flagByte(t, m) != 1 {
		t.Errorf("leave %t, flag %d where no interrupt was taken: it would never get on", leave, flagByte(t, m))
	}
	b.SetEOIFlag(0)
	if b.NamesFlag() || b.OfferEOI(true, true) {
		t.Error("a guest without a flag has to leave")
	}
}

func TestSetEOIFlag(t *testing.T) {
	b, m := eoiBoard(t)
	for _, bad := range []uint64{flagAt | 2, flagAt | 3, memSize | 1, chipset.APICBase | 1, 1<<63 | 1, ^uint64(2)} {
		if b.SetEOIFlag(bad) || b.EOIFlag() != flagAt|1 {
			t.Errorf("%#x was taken: %#x", bad, b.EOIFlag())
		}
	}
	if !b.SetEOIFlag((memSize - 4) | 1) {
		t.Error("the last word of memory was refused")
	}
	b.SetEOIFlag(flagAt | 1)
	interrupt(b, 0x51)
	enter(b)
	b.TakeEOI()
	if !b.SetEOIFlag(memSize) || flagByte(t, m) != 0 {
		t.Errorf("switched off, the flag is %d", flagByte(t, m))
	}
	enter(b)
	b.TakeEOI()
	if v := inService(b); len(v) != 1 || flagByte(t, m) != 0 {
		t.Errorf("in service %v, flag %d: switching off isn't an EOI", v, flagByte(t, m))
	}
}

func TestEOIFlagOutsideOfMemoryIsRefused(t *testing.T) {
	b, _ := eoiBoard(t)
	state, err := b.State()
	if err != nil {
		t.Fatal(err)
	}
	var doc document
	if err := json.Unmarshal(state, &doc); err != nil {
		t.Fatal(err)
	}
	b.d.apic.EOIFlag = memSize | 1
	if doc.Devices[2].State, err = json.Marshal(b.d.apic); err != nil {
		t.Fatal(err)
	}
	if state, err = json.Marshal(doc); err != nil {
		t.Fatal(err)
	}
	if b.Restore(state) == nil {
		t.Error("no error")
	}
}
