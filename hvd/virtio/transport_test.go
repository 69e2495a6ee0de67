package virtio_test

import (
	"encoding/json"
	"reflect"
	"slices"
	"testing"

	"github.com/duet-ft/duet/hvd/virtio"
)

func TestFeatureNegotiation(t *testing.T) {
	for _, c := range []struct {
		name     string
		features uint64
		ok       bool
	}{
		{"all that is offered", all | 1<<3, true},
		{"version 1 alone", virtio.FeatureVersion1, true},
		{"legacy", 1 << 3, false},
		{"never offered", virtio.FeatureVersion1 | 1<<4, false},
	} {
		e, _ := newEcho(t)
		e.WriteMem(0x14, 1, 3)
		for half := range uint64(2) {
			e.WriteMem(8, 4, half)
			e.WriteMem(12, 4, c.features>>(32*half)&0xffffffff)
		}
		e.WriteMem(0x14, 1, 0xb)
		if got := e.ReadMem(0x14, 1)&virtio.StatusFeaturesOK != 0; got != c.ok {
			t.Errorf("%s: accepted %v", c.name, got)
		}
		e.WriteMem(8, 4, 0)
		e.WriteMem(12, 4, 0xffffffff)
		if got := e.DriverFeatures; c.ok && got != c.features {
			t.Errorf("%s: features %#x changed after FEATURES_OK", c.name, got)
		}
		e.WriteMem(0x14, 1, 0xf)
		if got := e.Live(); got != c.ok {
			t.Errorf("%s: live %v", c.name, got)
		}
	}
}

func TestStatusOnlyGrows(t *testing.T) {
	e, _ := start(t, all)
	e.WriteMem(0x14, 1, 1)
	if e.Status != 0xf {
		t.Errorf("status %#x after a write of fewer bits", e.Status)
	}
	e.WriteMem(0x14, 1, 0x4f)
	if e.Status != 0xf {
		t.Errorf("status %#x: a driver can't ask for NEEDS_RESET", e.Status)
	}
}

func TestQueueSetup(t *testing.T) {
	set := func(e *echo, size, desc uint64) {
		e.WriteMem(0x18, 2, size)
		e.WriteMem(0x20, 4, desc&0xffffffff)
		e.WriteMem(0x24, 4, desc>>32)
		e.WriteMem(0x28, 8, ringAt+0x1000)
		e.WriteMem(0x30, 8, ringAt+0x2000)
		e.WriteMem(0x1c, 2, 1)
	}
	for _, c := range []struct {
		name       string
		size, desc uint64
		ok         bool
	}{
		{"good", 8, ringAt, true},
		{"largest", 256, ringAt, true},
		{"too large", 512, ringAt, false},
		{"not a power of two", 12, ringAt, false},
		{"no entries", 0, ringAt, false},
		{"not aligned", 8, ringAt + 8, false},
		{"out of memory", 256, memSize - 16, false},
		{"far out of memory", 8, 1 << 40, false},
	} {
		e, _ := newEcho(t)
		set(e, c.size, c.desc)
		if got := e.Status&virtio.StatusNeedsReset == 0; got != c.ok {
			t.Errorf("%s: ok %v, fault %q", c.name, got, e.Fault)
		}
		if c.ok && e.ReadMem(0x1c, 2) != 1 {
			t.Errorf("%s: not enabled", c.name)
		}
	}
	e, _ := newEcho(t)
	set(e, 8, ringAt)
	e.WriteMem(0x20, 4, 0x50000)
	if got := e.ReadMem(0x20, 4); got != ringAt {
		t.Errorf("an enabled queue moved to %#x", got)
	}
	e.WriteMem(0x16, 2, 9)
	set(e, 8, ringAt)
	if e.ReadMem(0x18, 2) != 0 {
		t.Error("queue 9 exists")
	}
}

func TestNotification(t *testing.T) {
	e, _ := start(t, all)
	e.WriteIO(0)
	e.WriteIO(2)
	e.WriteMem(0x3002, 2, 1)
	e.WriteIO(4)    // no such queue
	e.WriteIO(0x20) // ISR
	if want := []int{0, 1, 1}; !slices.Equal(e.notified, want) {
		t.Errorf("notified %v, want %v", e.notified, want)
	}
	e.notified = nil
	e.WriteMem(0x14, 1, 0)
	e.WriteIO(0)
	if e.notified != nil {
		t.Error("notified before the driver is ready")
	}
}

// signal uses a chain of queue 0 and signals it.
func signal(t *testing.T, e *echo) {
	t.Helper()
	before := e.Queues[0].NextUsed
	e.Use(0, virtio.Elem{})
	if err := e.Mem().PutUint16(e.Queues[0].Driver+4+2*8, before); err != nil {
		t.Fatal(err)
	}
	e.Signal(0)
}

func TestMSIX(t *testing.T) {
	e, _ := start(t, all)
	signal(t, e)
	e.WriteMem(0x181c, 4, 1) // mask entry 1
	signal(t, e)
	if !slices.Equal(e.msgs, []uint32{0x31}) || e.ReadMem(0x1c00, 8) != 2 {
		t.Errorf("messages %x, pending %#x with the entry masked", e.msgs, e.ReadMem(0x1c00, 8))
	}
	e.WriteMem(0x181c, 4, 0)
	if !slices.Equal(e.msgs, []uint32{0x31, 0x31}) || e.PBA != 0 {
		t.Errorf("messages %x after the entry was unmasked", e.msgs)
	}
	e.ConfigWrite(0x43, 1, 0xc0) // mask the function
	signal(t, e)
	if len(e.msgs) != 2 {
		t.Error("a message although the function is masked")
	}
	e.ConfigWrite(0x42, 2, 0x8000)
	if len(e.msgs) != 3 {
		t.Error("no message after the function was unmasked")
	}
	e.WriteMem(0x1a, 2, 3)
	if got := e.ReadMem(0x1a, 2); got != virtio.NoVector {
		t.Errorf("vector %#x, which doesn't exist, was accepted", got)
	}
	e.WriteMem(0x1810, 8, 0x1_fee0_1004)
	e.WriteMem(0x1818, 8, 0x1_0000_0077)
	if got := e.MSIX[1]; got != (virtio.MSIXEntry{Addr: 0x1_fee0_1004, Data: 0x77, Control: 1}) {
		t.Errorf("entry %+v after writes of 8 bytes", got)
	}
	if a, b := e.ReadMem(0x1814, 4), e.ReadMem(0x1818, 8); a != 1 || b != 0x1_0000_0077 {
		t.Errorf("read back %#x, %#x", a, b)
	}
}

func TestINTx(t *testing.T) {
	e, _ := start(t, all)
	e.ConfigWrite(0x42, 2, 0)
	signal(t, e)
	if !e.pin || len(e.msgs) != 0 {
		t.Fatal("no interrupt by the pin")
	}
	e.ConfigWrite(4, 2, 0x407)
	if e.pin {
		t.Error("the command register didn't disable the pin")
	}
	e.ConfigWrite(4, 2, 7)
	if got := e.ReadIO(0x20, 1); got != 1 || e.pin {
		t.Errorf("ISR %d, pin %v after it was read", got, e.pin)
	}
	signal(t, e)
	if got := e.ReadMem(0x1000, 1); got != 1 || e.pin {
		t.Errorf("ISR %d in memory, pin %v", got, e.pin)
	}
	signal(t, e)
	e.WriteMem(0x14, 1, 0)
	if e.pin {
		t.Error("a reset left the pin high")
	}
}

func TestTransportState(t *testing.T) {
	e, r := start(t, all)
	e.Advance(77)
	r.Add(nil, []virtio.Segment{{Addr: bufAt, Len: 1}})
	e.Next(0, 1)
	e.Use(0, virtio.Elem{})
	e.SignalLate(0)
	doc, err := json.Marshal(&e.Transport)
	if err != nil {
		t.Fatal(err)
	}
	c, _ := newEcho(t)
	if err := json.Unmarshal(doc, &c.Transport); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(&c.Transport)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(doc, again) {
		t.Errorf("state\n%s\nbecame\n%s", doc, again)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if at, armed := c.Deadline(); !armed || at != 77+virtio.LateLimit {
		t.Errorf("deadline %d %v", at, armed)
	}
}
