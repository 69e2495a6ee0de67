package net

import (
	"bytes"
	"slices"
	"testing"

	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/virtio"
	"github.com/duet-ft/duet/hvd/virtio/virtiotest"
)

const (
	rxRing = 0x10000
	txRing = 0x20000
	bufAt  = 0x100000

	allFeatures = virtio.FeatureVersion1 | virtio.FeatureEventIdx | featureMAC | featureMrgRx | featureStatus
	rxMessage   = 0x31
	txMessage   = 0x32
)

type fixture struct {
	t      *testing.T
	m      *mem.Memory
	d      *Device
	rx, tx *virtiotest.Ring
	out    [][]byte
	msgs   []uint32
}

func start(t *testing.T, features uint64) *fixture {
	t.Helper()
	m, err := mem.New(4 << 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	f := &fixture{t: t, m: m}
	f.d = New([6]byte{2, 0, 0, 1, 2, 3}, virtio.Spec{}, virtio.Bus{
		Mem:  m,
		MSI:  func(_ uint64, data uint32) { f.msgs = append(f.msgs, data) },
		INTx: func(bool) {},
	}, func(p []byte) { f.out = append(f.out, p) })
	f.d.Transport.ConfigWrite(0x42, 2, 0x8000)
	f.rx = virtiotest.NewRing(t, m, rxRing, 256)
	f.tx = virtiotest.NewRing(t, m, txRing, 256)
	virtiotest.Start(t, &f.d.Transport, features, 0x30, f.rx, f.tx)
	return f
}

// post gives the device n receive buffers of size bytes.
func (f *fixture) post(n int, size uint32) (notified int) {
	f.t.Helper()
	for i := range n {
		if _, notify := f.rx.Add(nil, []virtio.Segment{{Addr: bufAt + uint64(i)*uint64(size), Len: size}}); notify {
			f.d.Transport.WriteIO(0)
			notified++
		}
	}
	return notified
}

// send sends a frame of n bytes.
func (f *fixture) send(n uint32) {
	f.t.Helper()
	if _, notify := f.tx.Add([]virtio.Segment{{Addr: bufAt, Len: headerSize}, {Addr: bufAt + 0x1000, Len: n}}, nil); notify {
		f.d.Transport.WriteIO(2)
	}
}

func frame(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i * 7)
	}
	return p
}

func TestConfig(t *testing.T) {
	f := start(t, allFeatures)
	var got []byte
	for i := range uint32(8) {
		got = append(got, byte(f.d.Transport.ReadMem(0x2000+i, 1)))
	}
	if want := []byte{2, 0, 0, 1, 2, 3, 1, 0}; !bytes.Equal(got, want) {
		t.Errorf("device configuration % x, want % x", got, want)
	}
}

func TestReceive(t *testing.T) {
	f := start(t, allFeatures)
	f.post(2, 1536)
	p := frame(1514)
	if !f.d.Receive(p) {
		t.Fatal("dropped")
	}
	if got, want := f.rx.Used(), []virtio.Elem{{Head: 0, Len: 1526}}; !slices.Equal(got, want) {
		t.Fatalf("used %v, want %v", got, want)
	}
	v, _ := f.m.View(bufAt, 1526)
	if want := append([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0}, p...); !bytes.Equal(v, want) {
		t.Error("header or frame differs")
	}
	if !slices.Equal(f.msgs, []uint32{rxMessage}) {
		t.Errorf("messages %x", f.msgs)
	}
}

func TestReceiveMergesBuffers(t *testing.T) {
	f := start(t, allFeatures)
	f.post(4, 512)
	p := frame(1200)
	if !f.d.Receive(p) {
		t.Fatal("dropped")
	}
	if got, want := f.rx.Used(), []virtio.Elem{{Head: 0, Len: 512}, {Head: 1, Len: 512}, {Head: 2, Len: 188}}; !slices.Equal(got, want) {
		t.Fatalf("used %v, want %v", got, want)
	}
	v, _ := f.m.View(bufAt, 1212)
	if v[10] != 3 || !bytes.Equal(v[headerSize:], p) {
		t.Errorf("number of buffers %d, or frame differs", v[10])
	}
	// One buffer is left, too small: the frame is lost, the buffer isn't.
	if f.d.Receive(p) {
		t.Error("delivered without room")
	}
	if !f.d.Receive(frame(60)) {
		t.Error("the buffer was lost")
	}
}

func TestReceiveWithoutMerging(t *testing.T) {
	f := start(t, virtio.FeatureVersion1)
	f.post(4, 512)
	if f.d.Receive(frame(1200)) {
		t.Error("delivered into several buffers")
	}
	if !f.d.Receive(frame(60)) {
		t.Error("dropped")
	}
}

func TestReceiveDrops(t *testing.T) {
	f := start(t, allFeatures)
	if f.d.Receive(frame(60)) {
		t.Error("delivered without a buffer")
	}
	f.post(1, 1536)
	if f.d.Receive(frame(13)) || f.d.Receive(make([]byte, MaxFrame+1)) {
		t.Error("delivered a frame of impossible length")
	}
	f.d.Transport.WriteMem(0x14, 1, 0)
	if f.d.Receive(frame(60)) {
		t.Error("delivered to a driver that is gone")
	}
}

func TestRefillIsSilent(t *testing.T) {
	f := start(t, allFeatures)
	if n := f.post(200, 1536); n > 1 {
		t.Errorf("%d notifications for the first fill", n)
	}
	notified := 0
	for range 70_000 { // once around the ring's index
		if !f.d.Receive(frame(60)) {
			t.Fatal("dropped")
		}
		f.rx.Used()
		notified += f.post(1, 1536)
	}
	if notified > 0 {
		t.Errorf("%d notifications for 70,000 refills", notified)
	}
}

func TestTransmit(t *testing.T) {
	f := start(t, allFeatures)
	p := frame(100)
	if err := f.m.Write(bufAt+0x1000, p); err != nil {
		t.Fatal(err)
	}
	f.send(100)
	if len(f.out) != 1 || !bytes.Equal(f.out[0], p) {
		t.Errorf("frames out % x, want % x", f.out, p)
	}
	if got := len(f.tx.Used()); got != 1 {
		t.Errorf("%d chains used", got)
	}
}

func TestTransmitInterruptsLate(t *testing.T) {
	f := start(t, allFeatures)
	f.d.Transport.Advance(1000)
	f.send(100)
	if len(f.msgs) != 0 {
		t.Fatalf("messages %x at once", f.msgs)
	}
	at, armed := f.d.Transport.Deadline()
	if !armed || at != 1000+virtio.LateLimit {
		t.Fatalf("deadline %d %v", at, armed)
	}
	f.d.Transport.Advance(at - 1)
	if len(f.msgs) != 0 {
		t.Fatal("interrupt before the deadline")
	}
	f.d.Transport.Advance(at)
	if !slices.Equal(f.msgs, []uint32{txMessage}) {
		t.Fatalf("messages %x at the deadline", f.msgs)
	}
	if _, armed := f.d.Transport.Deadline(); armed {
		t.Error("still a deadline")
	}
}

func TestTransmitInterruptIsSparedWhenTheDriverLooked(t *testing.T) {
	f := start(t, allFeatures)
	f.send(100)
	f.tx.Used()
	f.tx.Await(1) // it has seen the frame, and waits for the next one
	f.d.Transport.Flush()
	if len(f.msgs) != 0 {
		t.Errorf("messages %x", f.msgs)
	}
	f.send(100)
	f.d.Transport.Flush()
	if !slices.Equal(f.msgs, []uint32{txMessage}) {
		t.Errorf("messages %x after the next frame", f.msgs)
	}
}

func TestTransmitInterruptsAtOnceWhenTheQueueFillsUp(t *testing.T) {
	f := start(t, allFeatures)
	f.tx.Await(100)
	for range 127 {
		f.send(60)
	}
	if len(f.msgs) != 0 {
		t.Fatalf("messages %x too early", f.msgs)
	}
	f.send(60)
	if !slices.Equal(f.msgs, []uint32{txMessage}) {
		t.Errorf("messages %x", f.msgs)
	}
}

func TestShortFramesAreDropped(t *testing.T) {
	f := start(t, allFeatures)
	f.send(13)
	if len(f.out) != 0 || len(f.tx.Used()) != 1 {
		t.Error("a frame without an Ethernet header went out, or its chain was lost")
	}
	f.tx.Add([]virtio.Segment{{Addr: bufAt, Len: 11}}, nil)
	f.d.Transport.WriteIO(2)
	if f.d.Transport.Status&virtio.StatusNeedsReset == 0 {
		t.Error("a frame without a virtio header was accepted")
	}
}
