// Package net is the virtio network device (VIRTIO 1.2 section 5.1).
//
// # Place
//
// hvd/board makes one per machine. Of ours it imports hvd/mem and hvd/virtio. It
// is pure: frames that the guest sends come out in order, frames for it go in by
// Receive and are dropped if the guest has no buffer for them.
//
// # Exits
//
// The guest isn't asked to notify when it refills the receive queue, and is told
// late that frames were sent (virtio.Transport.SignalLate): it mostly finds that
// out when the next frame arrives.
//
// Every frame starts with the 12 bytes of struct virtio_net_hdr, all zero but
// the number of buffers at 10: no offload is offered.
package net

import (
	"encoding/binary"
	"errors"

	"github.com/duet-ft/duet/hvd/virtio"
)

const (
	// MinFrame is an Ethernet header: shorter frames are dropped.
	MinFrame = 14
	// MaxFrame is the largest frame of the largest MTU: longer ones are dropped.
	MaxFrame = 65535 + 18

	headerSize = 12
	rxQueue    = 0
	txQueue    = 1

	deviceID = 1
	class    = 0x020000 // network, Ethernet
	linkUp   = 1

	featureMAC    = 1 << 5
	featureMrgRx  = 1 << 15
	featureStatus = 1 << 16

	// rxChainMax bounds a receive buffer: drivers post at most 64 KiB and a bit.
	rxChainMax = 1 << 20
)

// Device is a network interface. The exported fields are its state.
type Device struct {
	Transport virtio.Transport

	out func(frame []byte)
}

// New returns an interface. spec names its place on the bus; out takes the
// frames that the guest sends, and owns them.
func New(mac [6]byte, spec virtio.Spec, bus virtio.Bus, out func(frame []byte)) *Device {
	d := &Device{out: out}
	spec.DeviceID, spec.Class, spec.Queues, spec.Quiet = deviceID, class, 2, 1<<txQueue
	spec.Features = featureMAC | featureMrgRx | featureStatus
	spec.Config = make([]byte, 8) // struct virtio_net_config up to status
	copy(spec.Config, mac[:])
	spec.Config[6] = linkUp
	d.Transport.Init(spec, bus, d)
	return d
}

// Notify sends what is in the transmit queue.
func (d *Device) Notify(queue int) {
	t := &d.Transport
	if queue == rxQueue {
		t.AskNotify(rxQueue, false)
		return
	}
	for {
		c, ok := t.Next(txQueue, headerSize+MaxFrame)
		if !ok {
			break
		}
		p, err := virtio.Gather(t.Mem(), c.Readable)
		if err == nil && len(p) < headerSize {
			err = errors.New("frame without a header")
		}
		if err != nil {
			t.Break(err)
			return
		}
		t.Use(txQueue, virtio.Elem{Head: c.Head})
		if len(p) >= headerSize+MinFrame {
			d.out(p[headerSize:])
		}
	}
	t.Looked(txQueue)
	t.SignalLate(txQueue)
}

// Reset has nothing to drop.
func (d *Device) Reset() {}

// Receive gives the guest a frame, and says whether it had room.
func (d *Device) Receive(frame []byte) (delivered bool) {
	t := &d.Transport
	if len(frame) < MinFrame || len(frame) > MaxFrame {
		return false
	}
	need := headerSize + len(frame)
	var chains []virtio.Chain
	for room := 0; room < need; {
		if len(chains) == 1 && !t.Has(featureMrgRx) {
			t.Undo(rxQueue, 1)
			return false
		}
		c, ok := t.Next(rxQueue, rxChainMax)
		if !ok {
			if t.Live() {
				t.Undo(rxQueue, len(chains))
			}
			return false
		}
		chains = append(chains, c)
		room += virtio.Bytes(c.Writable)
	}
	p := make([]byte, headerSize, need)
	binary.LittleEndian.PutUint16(p[10:], uint16(len(chains)))
	p = append(p, frame...)
	used := make([]virtio.Elem, len(chains))
	for i, c := range chains {
		n, err := virtio.Scatter(t.Mem(), c.Writable, p)
		if err != nil {
			t.Break(err)
			return false
		}
		p = p[n:]
		used[i] = virtio.Elem{Head: c.Head, Len: uint32(n)}
	}
	t.Use(rxQueue, used...)
	t.AskNotify(rxQueue, false)
	t.Signal(rxQueue)
	return true
}

// Validate checks a restored state.
func (d *Device) Validate() error { return d.Transport.Validate() }
