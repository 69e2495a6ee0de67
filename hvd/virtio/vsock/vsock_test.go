package vsock

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/virtio"
	"github.com/duet-ft/duet/hvd/virtio/virtiotest"
)

const bufAt = 0x100000

type fixture struct {
	t             *testing.T
	m             *mem.Memory
	d             *Device
	rx, tx, event *virtiotest.Ring
	out           [][]byte
	msgs          []uint32
}

func start(t *testing.T) *fixture {
	t.Helper()
	m, err := mem.New(4 << 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	f := &fixture{t: t, m: m}
	f.d, err = New(42, virtio.Spec{}, virtio.Bus{
		Mem:  m,
		MSI:  func(_ uint64, data uint32) { f.msgs = append(f.msgs, data) },
		INTx: func(bool) {},
	}, func(p []byte) { f.out = append(f.out, p) })
	if err != nil {
		t.Fatal(err)
	}
	f.d.Transport.ConfigWrite(0x42, 2, 0x8000)
	f.rx = virtiotest.NewRing(t, m, 0x10000, 256)
	f.tx = virtiotest.NewRing(t, m, 0x20000, 256)
	f.event = virtiotest.NewRing(t, m, 0x30000, 8)
	virtiotest.Start(t, &f.d.Transport, virtio.FeatureVersion1|virtio.FeatureEventIdx, 0x30, f.rx, f.tx, f.event)
	return f
}

// packet makes a packet with n bytes of payload.
func packet(n int) []byte {
	p := make([]byte, HeaderSize+n)
	binary.LittleEndian.PutUint64(p, 2)
	binary.LittleEndian.PutUint64(p[8:], 42)
	binary.LittleEndian.PutUint32(p[lenAt:], uint32(n))
	for i := range n {
		p[HeaderSize+i] = byte(i)
	}
	return p
}

func (f *fixture) post(i int, n uint32) (notified bool) {
	f.t.Helper()
	_, notified = f.rx.Add(nil, []virtio.Segment{{Addr: bufAt + uint64(i)*0x1000, Len: n}})
	if notified {
		f.d.Transport.WriteIO(0)
	}
	return notified
}

func (f *fixture) view(i int, n uint32) []byte {
	f.t.Helper()
	v, err := f.m.View(bufAt+uint64(i)*0x1000, uint64(n))
	if err != nil {
		f.t.Fatal(err)
	}
	return v
}

func TestTransmit(t *testing.T) {
	f := start(t)
	p := packet(100)
	if err := f.m.Write(bufAt, p); err != nil {
		t.Fatal(err)
	}
	f.tx.Add([]virtio.Segment{{Addr: bufAt, Len: HeaderSize}, {Addr: bufAt + HeaderSize, Len: 100}}, nil)
	f.d.Transport.WriteIO(2)
	if len(f.out) != 1 || !bytes.Equal(f.out[0], p) {
		t.Errorf("packets out % x", f.out)
	}
}

func TestTransmitOfMoreThanThereIsBreaksTheDevice(t *testing.T) {
	f := start(t)
	if err := f.m.Write(bufAt, packet(100)); err != nil {
		t.Fatal(err)
	}
	f.tx.Add([]virtio.Segment{{Addr: bufAt, Len: HeaderSize + 99}}, nil)
	f.d.Transport.WriteIO(2)
	if f.d.Transport.Live() || len(f.out) != 0 {
		t.Error("accepted")
	}
}

func TestReceiveWaitsForBuffers(t *testing.T) {
	f := start(t)
	a, b := packet(100), packet(7)
	if !f.d.Receive(a) || !f.d.Receive(b) {
		t.Fatal("refused")
	}
	if !f.post(0, 4096) {
		t.Error("no notification was asked for, although packets wait")
	}
	if got, want := f.rx.Used(), []virtio.Elem{{Head: 0, Len: 144}}; !slices.Equal(got, want) || !bytes.Equal(f.view(0, 144), a) {
		t.Fatalf("used %v, want %v", got, want)
	}
	f.post(1, 4096)
	if f.post(2, 4096) {
		t.Error("a notification was asked for, although nothing waits")
	}
	if got := f.rx.Used(); len(got) != 1 || !bytes.Equal(f.view(1, 51), b) {
		t.Errorf("used %v", got)
	}
}

func TestReceiveIsCutToTheBuffer(t *testing.T) {
	f := start(t)
	p := packet(5000)
	f.post(0, 4096)
	f.post(1, 4096)
	if !f.d.Receive(p) {
		t.Fatal("refused")
	}
	if got, want := f.rx.Used(), []virtio.Elem{{Head: 0, Len: 4096}, {Head: 1, Len: 992}}; !slices.Equal(got, want) {
		t.Fatalf("used %v, want %v", got, want)
	}
	got := append(bytes.Clone(f.view(0, 4096)[HeaderSize:]), f.view(1, 992)[HeaderSize:]...)
	if !bytes.Equal(got, p[HeaderSize:]) {
		t.Error("payload differs")
	}
	if a, b := payload(f.view(0, HeaderSize)), payload(f.view(1, HeaderSize)); a != 4052 || b != 948 {
		t.Errorf("lengths %d and %d in the headers", a, b)
	}
}

func TestReceiveIsBounded(t *testing.T) {
	f := start(t)
	n := 0
	for f.d.Receive(packet(MaxPayload)) {
		n++
	}
	if want := MaxQueued / (HeaderSize + MaxPayload); n != want {
		t.Errorf("%d packets queued, want %d", n, want)
	}
	short := packet(10)
	if f.d.Receive(short[:50]) || f.d.Receive(short[:20]) || f.d.Receive(append(short, 0)) {
		t.Error("a malformed packet was accepted")
	}
}

func TestTransportReset(t *testing.T) {
	f := start(t)
	f.d.Receive(packet(10))
	f.d.TransportReset()
	if len(f.d.Queued) != 0 {
		t.Error("packets of dead connections wait")
	}
	if err := f.m.Write(bufAt, []byte{1, 1, 1, 1}); err != nil {
		t.Fatal(err)
	}
	if _, notify := f.event.Add(nil, []virtio.Segment{{Addr: bufAt, Len: 4}}); !notify {
		t.Fatal("no notification was asked for, although the event waits")
	}
	f.d.Transport.WriteIO(4)
	if got, want := f.event.Used(), []virtio.Elem{{Head: 0, Len: 4}}; !slices.Equal(got, want) || !bytes.Equal(f.view(0, 4), make([]byte, 4)) {
		t.Errorf("used %v, event % x", got, f.view(0, 4))
	}
	if !slices.Equal(f.msgs, []uint32{0x33}) {
		t.Errorf("messages %x", f.msgs)
	}
	f.event.Add(nil, []virtio.Segment{{Addr: bufAt, Len: 4}})
	f.d.TransportReset() // a buffer waits: at once
	if got := f.event.Used(); len(got) != 1 {
		t.Errorf("used %v", got)
	}
}
