// Package vsock is the virtio socket device (VIRTIO 1.2 section 5.10). It moves
// packets; what they mean is for the host's side (vsock/mux) and the guest.
//
// # Place
//
// hvd/board makes one per machine. Of ours it imports hvd/mem and hvd/virtio. It
// is pure: packets from the guest come out in order, packets for it go in by
// Receive and wait, bounded, until the guest has buffers.
//
// # A packet
//
// The header of struct virtio_vsock_hdr, little-endian, and len bytes of payload:
//
//	 0  src_cid  8     24  len        4     36  buf_alloc  4
//	 8  dst_cid  8     28  type       2     40  fwd_cnt    4
//	16  src_port 4     30  op         2     44  payload
//	20  dst_port 4     32  flags      4
package vsock

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/duet-ft/duet/hvd/virtio"
)

const (
	// HeaderSize is the size of a packet's header in bytes.
	HeaderSize = 44
	// MaxPayload is the largest payload of one packet, in either direction.
	MaxPayload = 64 << 10
	// MaxQueued is how many bytes of packets may wait for the guest.
	MaxQueued = 1 << 20

	rxQueue    = 0
	txQueue    = 1
	eventQueue = 2

	deviceID = 19
	class    = 0x078000 // communication, other

	lenAt = 24

	// rxChainMax bounds a receive buffer: drivers post at most 64 KiB and a bit.
	rxChainMax = 1 << 20

	eventSize = 4 // struct virtio_vsock_event; id 0 is TRANSPORT_RESET
)

// Device is the socket device. The exported fields are its state.
type Device struct {
	Transport virtio.Transport
	Queued    [][]byte `json:",omitempty"` // packets for the guest
	ResetDue  bool     // the transport reset event waits for a buffer

	out func(pkt []byte)
}

// New returns a device for the guest with a CID (at least 3, below 2^32-1).
// spec names its place on the bus; out takes the guest's packets, and owns them.
func New(cid uint64, spec virtio.Spec, bus virtio.Bus, out func(pkt []byte)) (*Device, error) {
	if cid < 3 || cid >= 0xffffffff {
		return nil, fmt.Errorf("vsock CID %d: a guest's is at least 3 and below 2^32-1", cid)
	}
	d := &Device{out: out}
	spec.DeviceID, spec.Class, spec.Queues, spec.Quiet = deviceID, class, 3, 1<<txQueue
	spec.Config = binary.LittleEndian.AppendUint64(nil, cid)
	d.Transport.Init(spec, bus, d)
	return d, nil
}

// Notify handles what the driver added to a queue.
func (d *Device) Notify(queue int) {
	switch queue {
	case rxQueue:
		d.deliver()
	case txQueue:
		d.transmit()
	case eventQueue:
		d.postReset()
	}
}

// Reset drops what waits for a driver that is gone.
func (d *Device) Reset() { d.Queued, d.ResetDue = nil, false }

func (d *Device) transmit() {
	t := &d.Transport
	for {
		c, ok := t.Next(txQueue, HeaderSize+MaxPayload)
		if !ok {
			break
		}
		p, err := virtio.Gather(t.Mem(), c.Readable)
		if err == nil {
			err = check(p)
		}
		if err != nil {
			t.Break(err)
			return
		}
		t.Use(txQueue, virtio.Elem{Head: c.Head})
		d.out(p[:HeaderSize+payload(p)])
	}
	t.Looked(txQueue)
	t.SignalLate(txQueue)
}

// check says whether a packet is as long as its header says, at least.
func check(p []byte) error {
	switch {
	case len(p) < HeaderSize:
		return errors.New("vsock packet without a header")
	case payload(p) > len(p)-HeaderSize:
		return errors.New("vsock packet is shorter than its header says")
	}
	return nil
}

func payload(p []byte) int { return int(binary.LittleEndian.Uint32(p[lenAt:])) }

// Receive queues a packet for the guest and delivers what it can. It is false
// if the packet is malformed, or too much waits already: it is lost then.
func (d *Device) Receive(pkt []byte) bool {
	if check(pkt) != nil || len(pkt) != HeaderSize+payload(pkt) || len(pkt) > HeaderSize+MaxPayload {
		return false
	}
	if !d.Transport.Live() || len(pkt) > d.Room() {
		return false
	}
	d.Queued = append(d.Queued, append([]byte(nil), pkt...))
	d.deliver()
	return true
}

// Room is how many bytes of packets may be queued now.
func (d *Device) Room() int { return MaxQueued - d.waiting() }

func (d *Device) waiting() int {
	n := 0
	for _, p := range d.Queued {
		n += len(p)
	}
	return n
}

// deliver moves queued packets into the driver's buffers.
func (d *Device) deliver() {
	t := &d.Transport
	used := false
	for len(d.Queued) > 0 {
		c, ok := t.Next(rxQueue, rxChainMax)
		if !ok {
			break
		}
		room := virtio.Bytes(c.Writable)
		if room <= HeaderSize {
			t.Break(errors.New("vsock receive buffer has no room for a payload"))
			return
		}
		p := d.take(room)
		n, err := virtio.Scatter(t.Mem(), c.Writable, p)
		if err != nil {
			t.Break(err)
			return
		}
		t.Use(rxQueue, virtio.Elem{Head: c.Head, Len: uint32(n)})
		used = true
	}
	t.AskNotify(rxQueue, len(d.Queued) > 0)
	if used {
		t.Signal(rxQueue)
	}
}

// take removes the first queued packet, or as much of it as fits into room: a
// stream may be cut anywhere.
func (d *Device) take(room int) []byte {
	p := d.Queued[0]
	if len(p) <= room {
		d.Queued = append([][]byte(nil), d.Queued[1:]...)
		return p
	}
	rest := append(append([]byte(nil), p[:HeaderSize]...), p[room:]...)
	binary.LittleEndian.PutUint32(rest[lenAt:], uint32(len(rest)-HeaderSize))
	d.Queued[0] = rest
	p = append([]byte(nil), p[:room]...)
	binary.LittleEndian.PutUint32(p[lenAt:], uint32(room-HeaderSize))
	return p
}

// TransportReset tells the guest that all of its connections are gone
// (VIRTIO_VSOCK_EVENT_TRANSPORT_RESET), and drops the packets of those.
func (d *Device) TransportReset() {
	if !d.Transport.Live() {
		return
	}
	d.Queued, d.ResetDue = nil, true
	d.postReset()
}

func (d *Device) postReset() {
	t := &d.Transport
	t.AskNotify(eventQueue, d.ResetDue)
	if !d.ResetDue {
		return
	}
	c, ok := t.Next(eventQueue, MaxPayload)
	if !ok {
		return
	}
	n, err := virtio.Scatter(t.Mem(), c.Writable, make([]byte, eventSize))
	if err == nil && n < eventSize {
		err = errors.New("vsock event buffer is too small")
	}
	if err != nil {
		t.Break(err)
		return
	}
	d.ResetDue = false
	t.Use(eventQueue, virtio.Elem{Head: c.Head, Len: eventSize})
	t.AskNotify(eventQueue, false)
	t.Signal(eventQueue)
}

// Validate checks a restored state.
func (d *Device) Validate() error {
	if d.waiting() > MaxQueued {
		return errors.New("vsock: more packets wait than may")
	}
	for _, p := range d.Queued {
		if err := check(p); err != nil || len(p) != HeaderSize+payload(p) {
			return errors.New("vsock: malformed packet in the state")
		}
	}
	return d.Transport.Validate()
}
