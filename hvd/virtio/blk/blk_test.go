package blk

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/virtio"
	"github.com/duet-ft/duet/hvd/virtio/virtiotest"
)

const (
	ringAt = 0x10000
	dataAt = 0x100000
)

// fixture is a disk with a driver.
type fixture struct {
	t    *testing.T
	m    *mem.Memory
	d    *Device
	ring *virtiotest.Ring
	out  []Request
	msgs []uint32
}

func (f *fixture) device(cfg Config) *Device {
	f.t.Helper()
	d, err := New(cfg, virtio.Spec{Mem: 0xfe000000, IO: 0xc000, IRQ: 5}, virtio.Bus{
		Mem:  f.m,
		MSI:  func(_ uint64, data uint32) { f.msgs = append(f.msgs, data) },
		INTx: func(bool) {},
	}, func(r Request) { f.out = append(f.out, r) })
	if err != nil {
		f.t.Fatal(err)
	}
	d.Transport.ConfigWrite(0x42, 2, 0x8000) // MSI-X on
	return d
}

func start(t *testing.T, cfg Config) *fixture {
	t.Helper()
	m, err := mem.New(4 << 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	f := &fixture{t: t, m: m}
	f.d = f.device(cfg)
	f.restart()
	return f
}

func (f *fixture) restart() {
	f.ring = virtiotest.NewRing(f.t, f.m, ringAt, 256)
	if err := f.m.Write(ringAt, make([]byte, virtiotest.RingBytes)); err != nil {
		f.t.Fatal(err)
	}
	offered := uint64(featureSizeMax | featureSegMax | featureBlkSize | featureFlush)
	virtiotest.Start(f.t, &f.d.Transport, virtio.FeatureVersion1|virtio.FeatureEventIdx|offered, 0x30, f.ring)
}

// header puts a request's header into memory.
func (f *fixture) header(at uint64, op Op, sector uint64) virtio.Segment {
	f.t.Helper()
	b := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint32(nil, uint32(op)), 0)[:8]
	if err := f.m.Write(at, binary.LittleEndian.AppendUint64(b, sector)); err != nil {
		f.t.Fatal(err)
	}
	return virtio.Segment{Addr: at, Len: headerSize}
}

func (f *fixture) notify() { f.d.Transport.WriteIO(0) }

// submit sends a request with n bytes of data in two segments and its status
// byte at at+0xfff, and returns its head.
func (f *fixture) submit(at uint64, op Op, sector uint64, n uint32) uint16 {
	f.t.Helper()
	if err := f.m.Write(at+0xfff, []byte{0xee}); err != nil {
		f.t.Fatal(err)
	}
	r := []virtio.Segment{f.header(at, op, sector)}
	var data, w []virtio.Segment
	if n > 0 {
		data = []virtio.Segment{{Addr: at + 0x1000, Len: n / 2}, {Addr: at + 0x8000, Len: n - n/2}}
	}
	if op == OpRead || op == opGetID {
		w = data
	} else {
		r = append(r, data...)
	}
	head, _ := f.ring.Add(r, append(w, virtio.Segment{Addr: at + 0xfff, Len: 1}))
	f.notify()
	return head
}

func (f *fixture) status(at uint64) byte {
	f.t.Helper()
	v, err := f.m.View(at+0xfff, 1)
	if err != nil {
		f.t.Fatal(err)
	}
	return v[0]
}

func (f *fixture) take(want ...Request) {
	f.t.Helper()
	if !slices.EqualFunc(f.out, want, func(a, b Request) bool {
		return a.ID == b.ID && a.Op == b.Op && a.Sector == b.Sector && a.Len == b.Len && bytes.Equal(a.Data, b.Data)
	}) {
		f.t.Fatalf("requests %+v, want %+v", f.out, want)
	}
	f.out = nil
}

func TestRead(t *testing.T) {
	f := start(t, Config{Sectors: 1000})
	head := f.submit(dataAt, OpRead, 7, 1024)
	f.take(Request{ID: 0, Op: OpRead, Sector: 7, Len: 1024})
	if got := f.ring.Used(); got != nil {
		t.Fatalf("used %v before the completion", got)
	}
	data := bytes.Repeat([]byte{1, 2, 3, 4}, 256)
	if err := f.d.Complete(0, StatusOK, data); err != nil {
		t.Fatal(err)
	}
	if got, want := f.ring.Used(), []virtio.Elem{{Head: head, Len: 1025}}; !slices.Equal(got, want) {
		t.Errorf("used %v, want %v", got, want)
	}
	a, _ := f.m.View(dataAt+0x1000, 512)
	b, _ := f.m.View(dataAt+0x8000, 512)
	if !bytes.Equal(a, data[:512]) || !bytes.Equal(b, data[512:]) || f.status(dataAt) != StatusOK {
		t.Error("data or status isn't in memory")
	}
	if !slices.Equal(f.msgs, []uint32{0x31}) {
		t.Errorf("interrupt messages %x, want one of queue 0", f.msgs)
	}
}

func TestWriteKeepsItsDataWhileInFlight(t *testing.T) {
	f := start(t, Config{Sectors: 1000})
	data := bytes.Repeat([]byte{9}, 512)
	if err := f.m.Write(dataAt+0x1000, data[:256]); err != nil {
		t.Fatal(err)
	}
	if err := f.m.Write(dataAt+0x8000, data[256:]); err != nil {
		t.Fatal(err)
	}
	f.submit(dataAt, OpWrite, 3, 512)
	want := Request{ID: 0, Op: OpWrite, Sector: 3, Len: 512, Data: data}
	f.take(want)
	if err := f.m.Write(dataAt+0x1000, make([]byte, 512)); err != nil { // the guest scribbles
		t.Fatal(err)
	}
	if p := f.d.Pending(); len(p) != 1 || !bytes.Equal(p[0].Data, data) {
		t.Errorf("pending %+v, want the data as it was", p)
	}
}

func TestCompletionsOutOfOrder(t *testing.T) {
	f := start(t, Config{Sectors: 1000})
	heads := []uint16{
		f.submit(dataAt, OpFlush, 0, 0),
		f.submit(dataAt+0x10000, OpRead, 1, 512),
		f.submit(dataAt+0x20000, OpRead, 2, 512),
	}
	for _, id := range []uint64{2, 0, 1} {
		var data []byte
		if id > 0 {
			data = make([]byte, 512)
		}
		if err := f.d.Complete(id, StatusOK, data); err != nil {
			t.Fatal(err)
		}
	}
	want := []virtio.Elem{{Head: heads[2], Len: 513}, {Head: heads[0], Len: 1}, {Head: heads[1], Len: 513}}
	if got := f.ring.Used(); !slices.Equal(got, want) {
		t.Errorf("used %v, want %v", got, want)
	}
	if err := f.d.Complete(1, StatusOK, nil); err == nil || !strings.Contains(err.Error(), "isn't in flight") {
		t.Errorf("second completion: %v", err)
	}
}

func TestCompleteRefusesOtherLengths(t *testing.T) {
	f := start(t, Config{Sectors: 1000})
	f.submit(dataAt, OpRead, 1, 512)
	if err := f.d.Complete(0, StatusOK, make([]byte, 511)); err == nil {
		t.Error("no error")
	}
	if err := f.d.Complete(0, StatusIOError, nil); err != nil {
		t.Error(err)
	}
	if f.status(dataAt) != StatusIOError {
		t.Error("status isn't an I/O error")
	}
}

func TestAnsweredAtOnce(t *testing.T) {
	for _, c := range []struct {
		name   string
		cfg    Config
		op     Op
		sector uint64
		n      uint32
		status byte
	}{
		{"beyond the end", Config{Sectors: 8}, OpRead, 7, 1024, StatusIOError},
		{"far beyond the end", Config{Sectors: 8}, OpRead, 1<<64 - 1, 1024, StatusIOError},
		{"half a sector", Config{Sectors: 8}, OpWrite, 0, 256, StatusIOError},
		{"nothing", Config{Sectors: 8}, OpWrite, 0, 0, StatusIOError},
		{"write to a read-only disk", Config{Sectors: 8, ReadOnly: true}, OpWrite, 0, 512, StatusIOError},
		{"discard", Config{Sectors: 8}, 11, 0, 0, StatusUnsupported},
		{"get ID", Config{Sectors: 8, Serial: "duet-0"}, opGetID, 0, 20, StatusOK},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := start(t, c.cfg)
			f.submit(dataAt, c.op, c.sector, c.n)
			f.take()
			if len(f.ring.Used()) != 1 || f.status(dataAt) != c.status {
				t.Errorf("status %d, want %d", f.status(dataAt), c.status)
			}
			if c.op == opGetID {
				if v, _ := f.m.View(dataAt+0x1000, 10); string(v) != "duet-0\x00\x00\x00\x00" {
					t.Errorf("ID %q", v)
				}
			}
		})
	}
}

func TestRequestWithoutStatusBreaksTheDevice(t *testing.T) {
	f := start(t, Config{Sectors: 8})
	f.ring.Add([]virtio.Segment{f.header(dataAt, OpFlush, 0)}, nil)
	f.notify()
	if f.d.Transport.Status&virtio.StatusNeedsReset == 0 {
		t.Fatal("the device works on")
	}
	f.restart()
	f.submit(dataAt, OpFlush, 0, 0)
	f.take(Request{ID: 0, Op: OpFlush})
}

func TestResetCancels(t *testing.T) {
	f := start(t, Config{Sectors: 8})
	f.submit(dataAt, OpRead, 1, 512)
	f.restart()
	before := append([]byte(nil), f.m.Bytes()...)
	if p := f.d.Pending(); len(p) != 1 {
		t.Errorf("pending after a reset: %+v, want the cancelled one", p)
	}
	if err := f.d.Complete(0, StatusOK, bytes.Repeat([]byte{1}, 512)); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(before, f.m.Bytes()) {
		t.Error("a cancelled request wrote to memory")
	}
}

func TestInFlightIsLimited(t *testing.T) {
	f := start(t, Config{Sectors: 1 << 30})
	big := []virtio.Segment{{Addr: 0, Len: 4 << 20}}
	for range 2 * MaxBytes / (4 << 20) {
		f.ring.Add([]virtio.Segment{f.header(dataAt, OpRead, 0)}, append(big, virtio.Segment{Addr: dataAt + 0xfff, Len: 1}))
	}
	f.notify()
	if got, want := len(f.out), MaxBytes/(4<<20); got != want {
		t.Fatalf("%d requests in flight, want %d", got, want)
	}
	if err := f.d.Complete(0, StatusIOError, nil); err != nil {
		t.Fatal(err)
	}
	if got, want := len(f.out), MaxBytes/(4<<20)+1; got != want {
		t.Errorf("%d requests after one completed, want %d", got, want)
	}
}

func TestStateRoundTrip(t *testing.T) {
	cfg := Config{Sectors: 1000}
	f := start(t, cfg)
	f.submit(dataAt, OpWrite, 3, 512)
	f.submit(dataAt+0x10000, OpRead, 4, 512)
	state, err := json.Marshal(f.d)
	if err != nil {
		t.Fatal(err)
	}
	d := f.device(cfg)
	if err := json.Unmarshal(state, d); err != nil {
		t.Fatal(err)
	}
	if err := d.Validate(); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(state, again) {
		t.Errorf("state\n%s\nbecame\n%s", state, again)
	}
	if err := d.Complete(1, StatusOK, make([]byte, 512)); err != nil {
		t.Error(err)
	}
	if got := len(f.ring.Used()); got != 1 {
		t.Errorf("%d chains used by the restored disk, want 1", got)
	}
}

func TestValidateRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*Device){
		"status out of memory":  func(d *Device) { d.InFlight[0].StatusAt = 1 << 40 },
		"data out of memory":    func(d *Device) { d.InFlight[0].Into[0].Addr = 1 << 40 },
		"lengths":               func(d *Device) { d.InFlight[0].Len = 1024 },
		"unknown operation":     func(d *Device) { d.InFlight[0].Op = 99 },
		"future ID":             func(d *Device) { d.InFlight[0].ID = 99 },
		"sector":                func(d *Device) { d.InFlight[0].Sector = 1 << 40 },
		"queue size":            func(d *Device) { d.Transport.Queues[0].Size = 3 },
		"queue address":         func(d *Device) { d.Transport.Queues[0].Desc = 1 << 40 },
		"vector":                func(d *Device) { d.Transport.Queues[0].Vector = 2 },
		"pending bits":          func(d *Device) { d.Transport.PBA = 4 },
		"device ID":             func(d *Device) { d.Transport.Space[2]++ },
		"no queue":              func(d *Device) { d.Transport.Queues = nil },
		"no vectors":            func(d *Device) { d.Transport.MSIX = nil },
		"no configuration":      func(d *Device) { d.Transport.Space = nil },
		"configuration vector":  func(d *Device) { d.Transport.ConfigVector = 7 },
		"feature never offered": func(d *Device) { d.Transport.DriverFeatures |= 1 << 40 },
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, Config{Sectors: 1000})
			f.submit(dataAt, OpRead, 4, 512)
			if err := f.d.Validate(); err != nil {
				t.Fatalf("before: %v", err)
			}
			spoil(f.d)
			if f.d.Validate() == nil {
				t.Error("no error")
			}
		})
	}
}
