// Package virtiotest is the driver's side of a virtio device, for the tests of
// devices: it brings a device up and works its rings as a guest would.
//
// # Place
//
// Tests of hvd/virtio/... and hvd/board use it. Of ours it imports hvd/mem and
// hvd/virtio.
package virtiotest

import (
	"testing"

	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/virtio"
)

// Registers is a function's BAR0: a *virtio.Transport, or a board around it.
type Registers interface {
	ReadMem(off uint32, size int) uint64
	WriteMem(off uint32, size int, v uint64)
}

// Ring is a driver's view of a queue. Its rings lie one after the other in a
// page-aligned area of at most RingBytes.
type Ring struct {
	M          *mem.Memory
	Base       uint64
	Size       uint16
	EventIdx   bool
	Notified   int // how often the device asked for a notification
	avail      uint16
	seen       uint16
	free       []uint16
	chain      map[uint16][]uint16
	t          testing.TB
	Desc       uint64
	Avail, Use uint64
}

// RingBytes is what a ring takes in memory at most.
const RingBytes = 0x3000

// NewRing lays a queue of size entries out at base, with EVENT_IDX.
func NewRing(t testing.TB, m *mem.Memory, base uint64, size uint16) *Ring {
	r := &Ring{
		M: m, Base: base, Size: size, EventIdx: true, t: t, chain: map[uint16][]uint16{},
		Desc: base, Avail: base + 0x1000, Use: base + 0x2000,
	}
	for i := range size {
		r.free = append(r.free, size-1-i)
	}
	return r
}

func (r *Ring) check(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// PutDesc writes a descriptor as it is told.
func (r *Ring) PutDesc(i uint16, addr uint64, n uint32, flags, next uint16) {
	r.t.Helper()
	at := r.Desc + 16*uint64(i)
	r.check(r.M.PutUint64(at, addr))
	r.check(r.M.PutUint64(at+8, uint64(n)|uint64(flags)<<32|uint64(next)<<48))
}

// Free is how many descriptors are free.
func (r *Ring) Free() int { return len(r.free) }

// Add makes a chain available and says whether the device wants to be notified.
func (r *Ring) Add(readable, writable []virtio.Segment) (head uint16, notify bool) {
	r.t.Helper()
	n := len(readable) + len(writable)
	if n == 0 || n > len(r.free) {
		r.t.Fatalf("%d descriptors wanted, %d free", n, len(r.free))
	}
	ids := append([]uint16(nil), r.free[len(r.free)-n:]...)
	r.free = r.free[:len(r.free)-n]
	for i, s := range append(append([]virtio.Segment(nil), readable...), writable...) {
		flags, next := uint16(0), uint16(0)
		if i >= len(readable) {
			flags |= 2
		}
		if i+1 < n {
			flags, next = flags|1, ids[i+1]
		}
		r.PutDesc(ids[i], s.Addr, s.Len, flags, next)
	}
	r.chain[ids[0]] = ids
	return ids[0], r.Publish(ids[0])
}

// Publish makes a head available, whatever it is.
func (r *Ring) Publish(head uint16) (notify bool) {
	r.t.Helper()
	r.check(r.M.PutUint16(r.Avail+4+2*uint64(r.avail%r.Size), head))
	r.avail++
	r.check(r.M.PutUint16(r.Avail+2, r.avail))
	if r.EventIdx {
		event, err := r.M.Uint16(r.Use + 4 + 8*uint64(r.Size))
		r.check(err)
		notify = r.avail-event-1 < 1
	} else {
		flags, err := r.M.Uint16(r.Use)
		r.check(err)
		notify = flags&1 == 0
	}
	if notify {
		r.Notified++
	}
	return notify
}

// Used takes what the device used since the last call and frees the chains.
func (r *Ring) Used() []virtio.Elem {
	r.t.Helper()
	idx, err := r.M.Uint16(r.Use + 2)
	r.check(err)
	var out []virtio.Elem
	for ; r.seen != idx; r.seen++ {
		v, err := r.M.Uint64(r.Use + 4 + 8*uint64(r.seen%r.Size))
		r.check(err)
		head := uint16(v)
		ids, ok := r.chain[head]
		if !ok || uint32(v) >= uint32(r.Size) {
			r.t.Fatalf("device used head %d, which it doesn't have", uint32(v))
		}
		delete(r.chain, head)
		r.free = append(r.free, ids...)
		out = append(out, virtio.Elem{Head: head, Len: uint32(v >> 32)})
	}
	return out
}

// Await asks for an interrupt when n more chains than those seen are used.
func (r *Ring) Await(n uint16) {
	r.t.Helper()
	r.check(r.M.PutUint16(r.Avail+4+2*uint64(r.Size), r.seen+n-1))
}

// Start brings a device up as Linux does: features, queues, vectors (queue q
// gets entry q+1, whose message carries vector base+q+1), ready.
func Start(t testing.TB, dev Registers, features uint64, base uint8, rings ...*Ring) {
	t.Helper()
	dev.WriteMem(0x14, 1, 0)
	dev.WriteMem(0x14, 1, 1)
	dev.WriteMem(0x14, 1, 3)
	for half := range uint64(2) {
		dev.WriteMem(0x08, 4, half)
		dev.WriteMem(0x0c, 4, features>>(32*half)&0xffffffff)
	}
	dev.WriteMem(0x14, 1, 0xb)
	if s := dev.ReadMem(0x14, 1); s != 0xb {
		t.Fatalf("status %#x after FEATURES_OK", s)
	}
	if n := int(dev.ReadMem(0x12, 2)); n != len(rings) {
		t.Fatalf("device has %d queues, want %d", n, len(rings))
	}
	for q, r := range rings {
		r.EventIdx = features&virtio.FeatureEventIdx != 0
		entry := uint32(0x1800 + 16*(q+1))
		dev.WriteMem(entry, 4, 0xfee00000)
		dev.WriteMem(entry+4, 4, 0)
		dev.WriteMem(entry+8, 4, uint64(base)+uint64(q)+1)
		dev.WriteMem(entry+12, 4, 0)
		dev.WriteMem(0x16, 2, uint64(q))
		dev.WriteMem(0x18, 2, uint64(r.Size))
		for i, a := range []uint64{r.Desc, r.Avail, r.Use} {
			dev.WriteMem(uint32(0x20+8*i), 4, a&0xffffffff)
			dev.WriteMem(uint32(0x24+8*i), 4, a>>32)
		}
		dev.WriteMem(0x1a, 2, uint64(q+1))
		dev.WriteMem(0x1c, 2, 1)
	}
	dev.WriteMem(0x14, 1, 0xf)
	if s := dev.ReadMem(0x14, 1); s != 0xf {
		t.Fatalf("status %#x after DRIVER_OK", s)
	}
}
