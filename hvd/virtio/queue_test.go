package virtio_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/virtio"
	"github.com/duet-ft/duet/hvd/virtio/virtiotest"
)

const (
	memSize = 1 << 20
	ringAt  = 0x10000
	bufAt   = 0x80000
	all     = virtio.FeatureVersion1 | virtio.FeatureEventIdx
)

// echo is a device that notes what it is told, and takes no chain by itself.
type echo struct {
	virtio.Transport
	notified []int
	resets   int
	msgs     []uint32
	pin      bool
}

func (e *echo) Notify(q int) { e.notified = append(e.notified, q) }
func (e *echo) Reset()       { e.resets++ }

func newEcho(t testing.TB) (*echo, *mem.Memory) {
	t.Helper()
	m, err := mem.New(memSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	e := &echo{}
	e.Init(virtio.Spec{DeviceID: 4, Class: 0xff0000, Queues: 2, Features: 1 << 3, Config: []byte{1, 2, 3, 4}, IRQ: 5}, virtio.Bus{
		Mem:  m,
		MSI:  func(_ uint64, data uint32) { e.msgs = append(e.msgs, data) },
		INTx: func(high bool) { e.pin = high },
	}, e)
	return e, m
}

// start brings an echo up with two queues of 8 entries.
func start(t testing.TB, features uint64) (*echo, *virtiotest.Ring) {
	t.Helper()
	e, m := newEcho(t)
	e.ConfigWrite(0x42, 2, 0x8000)
	r := virtiotest.NewRing(t, m, ringAt, 8)
	virtiotest.Start(t, &e.Transport, features, 0x30, r, virtiotest.NewRing(t, m, ringAt+0x4000, 8))
	e.notified = nil
	return e, r
}

func TestChain(t *testing.T) {
	e, r := start(t, all)
	in := []virtio.Segment{{Addr: bufAt, Len: 3}, {Addr: bufAt + 10, Len: 2}}
	out := []virtio.Segment{{Addr: bufAt + 100, Len: 4}, {Addr: bufAt + 200, Len: 1}}
	head, _ := r.Add(in, out)
	if err := r.M.Write(bufAt, []byte("abcdefghijklmn")); err != nil {
		t.Fatal(err)
	}
	if n := e.Available(0); n != 1 {
		t.Errorf("%d available", n)
	}
	c, ok := e.Next(0, 100)
	if !ok || c.Head != head || !slices.Equal(c.Readable, in) || !slices.Equal(c.Writable, out) {
		t.Fatalf("chain %+v %v", c, ok)
	}
	if p, err := virtio.Gather(r.M, c.Readable); err != nil || string(p) != "abckl" {
		t.Errorf("gathered %q, %v", p, err)
	}
	rest, at, ok := virtio.CutLast(c.Writable)
	if !ok || at != bufAt+200 || !slices.Equal(rest, out[:1]) {
		t.Errorf("last byte at %#x, rest %v", at, rest)
	}
	if n, err := virtio.Scatter(r.M, c.Writable, []byte("123456")); n != 5 || err != nil {
		t.Errorf("scattered %d bytes, %v", n, err)
	}
	if _, ok := e.Next(0, 100); ok {
		t.Error("a second chain")
	}
	e.Undo(0, 1)
	if again, ok := e.Next(0, 100); !ok || again.Head != head {
		t.Error("the chain isn't there after Undo")
	}
	e.Use(0, virtio.Elem{Head: head, Len: 5})
	if got, want := r.Used(), []virtio.Elem{{Head: head, Len: 5}}; !slices.Equal(got, want) {
		t.Errorf("used %v", got)
	}
}

func TestIndexesWrap(t *testing.T) {
	e, r := start(t, all)
	for i := range 70_000 {
		head, notify := r.Add([]virtio.Segment{{Addr: bufAt, Len: 1}}, nil)
		if !notify {
			t.Fatalf("chain %d: no notification wanted", i)
		}
		c, ok := e.Next(0, 1)
		if !ok || c.Head != head {
			t.Fatalf("chain %d: got %v %v", i, c, ok)
		}
		e.Use(0, virtio.Elem{Head: head})
		e.AskNotify(0, true)
		r.Used()
	}
}

func TestBrokenChains(t *testing.T) {
	const next, write, indirect = 1, 2, 4
	for _, c := range []struct {
		name string
		make func(r *virtiotest.Ring)
		want string
	}{
		{"head out of the queue", func(r *virtiotest.Ring) { r.Publish(8) }, "descriptor 8 in a queue of 8"},
		{"next out of the queue", func(r *virtiotest.Ring) {
			r.PutDesc(0, bufAt, 1, next, 9)
			r.Publish(0)
		}, "descriptor 9"},
		{"loop", func(r *virtiotest.Ring) {
			r.PutDesc(0, bufAt, 1, next, 1)
			r.PutDesc(1, bufAt, 1, next, 0)
			r.Publish(0)
		}, "longer than its queue"},
		{"beyond memory", func(r *virtiotest.Ring) {
			r.PutDesc(0, memSize-1, 2, 0, 0)
			r.Publish(0)
		}, "out of range"},
		{"address overflow", func(r *virtiotest.Ring) {
			r.PutDesc(0, 1<<64-1, 2, 0, 0)
			r.Publish(0)
		}, "out of range"},
		{"too many bytes", func(r *virtiotest.Ring) {
			r.PutDesc(0, bufAt, 1<<16, next, 1)
			r.PutDesc(1, bufAt, 1<<16, 0, 0)
			r.Publish(0)
		}, "too many bytes"},
		{"readable after writable", func(r *virtiotest.Ring) {
			r.PutDesc(0, bufAt, 1, next|write, 1)
			r.PutDesc(1, bufAt, 1, 0, 0)
			r.Publish(0)
		}, "after a writable"},
		{"indirect", func(r *virtiotest.Ring) {
			r.PutDesc(0, bufAt, 16, indirect, 0)
			r.Publish(0)
		}, "indirect"},
		{"too far ahead", func(r *virtiotest.Ring) {
			if err := r.M.PutUint16(r.Avail+2, 9); err != nil {
				panic(err)
			}
		}, "more than a queue ahead"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, r := start(t, all)
			c.make(r)
			if _, ok := e.Next(0, 100_000); ok {
				t.Fatal("accepted")
			}
			if e.Status&virtio.StatusNeedsReset == 0 || !strings.Contains(e.Fault, c.want) {
				t.Errorf("status %#x, fault %q", e.Status, e.Fault)
			}
			if _, ok := e.Next(1, 100_000); ok || e.Live() {
				t.Error("the device works on")
			}
			e.WriteMem(0x14, 1, 0)
			if e.resets != 2 || e.Fault != "" || e.Status != 0 {
				t.Errorf("after a reset: %d resets, status %#x, fault %q", e.resets, e.Status, e.Fault)
			}
		})
	}
}

func TestBreakInterrupts(t *testing.T) {
	e, r := start(t, all)
	e.WriteMem(0x10, 2, 0) // configuration changes: table entry 0
	for i, v := range []uint64{0xfee00000, 0, 0x30, 0} {
		e.WriteMem(uint32(0x1800+4*i), 4, v)
	}
	r.Publish(8)
	e.Next(0, 1)
	if !slices.Equal(e.msgs, []uint32{0x30}) {
		t.Errorf("messages %x", e.msgs)
	}
}

func TestInterruptSuppression(t *testing.T) {
	use := func(e *echo, r *virtiotest.Ring) {
		head, _ := r.Add(nil, []virtio.Segment{{Addr: bufAt, Len: 1}})
		e.Next(0, 1)
		e.Use(0, virtio.Elem{Head: head})
		r.Used()
		e.Signal(0)
	}
	t.Run("by index", func(t *testing.T) {
		e, r := start(t, all)
		r.Await(3)
		use(e, r)
		use(e, r)
		if len(e.msgs) != 0 {
			t.Fatalf("messages %x before the third", e.msgs)
		}
		use(e, r)
		use(e, r)
		if !slices.Equal(e.msgs, []uint32{0x31}) {
			t.Errorf("messages %x", e.msgs)
		}
	})
	t.Run("by flag", func(t *testing.T) {
		e, r := start(t, virtio.FeatureVersion1)
		if err := r.M.PutUint16(r.Avail, 1); err != nil {
			t.Fatal(err)
		}
		use(e, r)
		if len(e.msgs) != 0 {
			t.Fatalf("messages %x", e.msgs)
		}
		if err := r.M.PutUint16(r.Avail, 0); err != nil {
			t.Fatal(err)
		}
		use(e, r)
		if !slices.Equal(e.msgs, []uint32{0x31}) {
			t.Errorf("messages %x", e.msgs)
		}
	})
}

func TestNotifySuppression(t *testing.T) {
	for _, features := range []uint64{virtio.FeatureVersion1, all} {
		e, r := start(t, features)
		for _, want := range []bool{false, true, false, true} {
			e.AskNotify(0, want)
			head, got := r.Add(nil, []virtio.Segment{{Addr: bufAt, Len: 1}})
			if got != want {
				t.Errorf("features %#x: notification wanted %v, asked for %v", features, got, want)
			}
			e.Next(0, 1)
			e.Use(0, virtio.Elem{Head: head})
			r.Used()
		}
	}
}

// FuzzQueue gives a device any descriptor table and available ring.
func FuzzQueue(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 0, 8, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0}, []byte{0, 0, 1, 0, 0, 0}, uint64(100))
	f.Add(make([]byte, 128), []byte{0, 0, 8, 0, 0, 0, 1, 0, 2, 0, 3, 0}, uint64(1<<40))
	f.Fuzz(func(t *testing.T, table, ring []byte, limit uint64) {
		e, r := start(t, all)
		if r.M.Write(r.Desc, table[:min(len(table), 128)]) != nil || r.M.Write(r.Avail, ring[:min(len(ring), 22)]) != nil {
			t.Fatal("the rings aren't in memory")
		}
		n := 0
		for {
			c, ok := e.Next(0, limit)
			if !ok {
				break
			}
			if n++; n > 8 {
				t.Fatal("more chains than entries")
			}
			if got := uint64(virtio.Bytes(c.Readable)) + uint64(virtio.Bytes(c.Writable)); got > limit {
				t.Fatalf("%d bytes in a chain, the limit is %d", got, limit)
			}
			if virtio.CheckSegments(r.M, append(c.Readable, c.Writable...)) != nil {
				t.Fatal("a segment lies out of memory")
			}
			e.Use(0, virtio.Elem{Head: c.Head})
			e.SignalLate(0)
		}
		e.Flush()
		if err := e.Validate(); err != nil {
			t.Fatal(err)
		}
	})
}
