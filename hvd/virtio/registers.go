package virtio

import (
	"encoding/binary"
	"errors"
)

// Offsets in the common configuration (VIRTIO 1.2 section 4.1.4.3).
const (
	regDeviceFeatureSelect = 0x00
	regDeviceFeature       = 0x04
	regDriverFeatureSelect = 0x08
	regDriverFeature       = 0x0c
	regConfigVector        = 0x10
	regNumQueues           = 0x12
	regStatus              = 0x14
	regQueueSelect         = 0x16
	regQueueSize           = 0x18
	regQueueVector         = 0x1a
	regQueueEnable         = 0x1c
	regQueueNotifyOff      = 0x1e
	regQueueDesc           = 0x20
	regQueueDriver         = 0x28
	regQueueDevice         = 0x30
	commonSize             = 0x38
)

// features is what the device offers.
func (t *Transport) features() uint64 { return t.spec.Features | FeatureVersion1 | FeatureEventIdx }

// ReadMem returns size bytes of BAR0.
func (t *Transport) ReadMem(off uint32, size int) uint64 {
	var v uint64
	switch {
	case off < commonSize:
		v = t.readCommon(off)
	case off == memISR:
		v = uint64(t.readISR())
	case off >= memMSIX && off < memMSIX+16*uint32(len(t.MSIX)):
		v = t.readMSIX(off-memMSIX, size)
	case off >= memPBA && off < memPBA+8:
		v = t.PBA >> (8 * (off & 7))
	case off >= memConfig && off < memConfig+uint32(len(t.spec.Config)):
		var b [8]byte
		copy(b[:], t.spec.Config[off-memConfig:])
		v = binary.LittleEndian.Uint64(b[:])
	}
	if size < 8 {
		v &= 1<<(8*uint(size)) - 1
	}
	return v
}

// WriteMem stores size bytes to BAR0.
func (t *Transport) WriteMem(off uint32, size int, v uint64) {
	if size < 8 {
		v &= 1<<(8*uint(size)) - 1
	}
	switch {
	case off < commonSize:
		t.writeCommon(off, size, v)
	case off >= memMSIX && off < memMSIX+16*uint32(len(t.MSIX)):
		t.writeMSIX(off-memMSIX, size, v)
	case off >= memNotify:
		t.notify(int(off-memNotify) / notifyMultiplier)
	}
}

// ReadIO returns size bytes of BAR1.
func (t *Transport) ReadIO(off uint16, size int) uint32 {
	if off == ioISR {
		return uint32(t.readISR())
	}
	return uint32(1<<(8*uint(size)) - 1)
}

// WriteIO stores to BAR1: a notification, whose value says nothing more.
func (t *Transport) WriteIO(off uint16) {
	if off < ioISR {
		t.notify(int(off) / notifyMultiplier)
	}
}

func (t *Transport) notify(q int) {
	if q < len(t.Queues) && t.Ready(q) {
		if t.spec.Quiet>>q&1 != 0 {
			t.Queues[q].Quiet.Since = 1
		}
		t.handler.Notify(q)
	}
}

// readISR returns the interrupt status and clears it, which lowers the pin.
func (t *Transport) readISR() uint8 {
	v := t.ISR
	t.ISR = 0
	t.updatePin()
	return v
}

// queue is the selected queue, or nil.
func (t *Transport) queue() *Queue {
	if int(t.QueueSelect) < len(t.Queues) {
		return &t.Queues[t.QueueSelect]
	}
	return nil
}

func (t *Transport) readCommon(off uint32) uint64 {
	switch off {
	case regDeviceFeatureSelect:
		return uint64(t.DeviceFeaturesSelect)
	case regDeviceFeature:
		return half(t.features(), t.DeviceFeaturesSelect)
	case regDriverFeatureSelect:
		return uint64(t.DriverFeaturesSelect)
	case regDriverFeature:
		return half(t.DriverFeatures, t.DriverFeaturesSelect)
	case regConfigVector:
		return uint64(t.ConfigVector)
	case regNumQueues:
		return uint64(len(t.Queues))
	case regStatus:
		return uint64(t.Status)
	case regQueueSelect:
		return uint64(t.QueueSelect)
	}
	q := t.queue()
	if q == nil {
		return 0
	}
	switch off {
	case regQueueSize:
		return uint64(q.Size)
	case regQueueVector:
		return uint64(q.Vector)
	case regQueueEnable:
		if q.Enabled {
			return 1
		}
	case regQueueNotifyOff:
		return uint64(t.QueueSelect)
	case regQueueDesc, regQueueDriver, regQueueDevice:
		return *q.ring(off)
	case regQueueDesc + 4, regQueueDriver + 4, regQueueDevice + 4:
		return *q.ring(off) >> 32
	}
	return 0
}

// half is 32 bits of a feature set.
func half(features uint64, sel uint32) uint64 {
	if sel > 1 {
		return 0
	}
	return features >> (32 * sel) & 0xffffffff
}

// ring is the address that lies at off or contains it.
func (q *Queue) ring(off uint32) *uint64 {
	switch off &^ 7 {
	case regQueueDesc:
		return &q.Desc
	case regQueueDriver:
		return &q.Driver
	}
	return &q.Device
}

func (t *Transport) writeCommon(off uint32, size int, v uint64) {
	switch off {
	case regDeviceFeatureSelect:
		t.DeviceFeaturesSelect = uint32(v)
	case regDriverFeatureSelect:
		t.DriverFeaturesSelect = uint32(v)
	case regDriverFeature:
		if s := t.DriverFeaturesSelect; s <= 1 && t.Status&StatusFeaturesOK == 0 {
			t.DriverFeatures = t.DriverFeatures&^(0xffffffff<<(32*s)) | v&0xffffffff<<(32*s)
		}
	case regConfigVector:
		t.ConfigVector = t.vector(v)
	case regStatus:
		t.writeStatus(uint8(v))
	case regQueueSelect:
		t.QueueSelect = uint16(v)
	default:
		if q := t.queue(); q != nil {
			t.writeQueue(q, off, size, v)
		}
	}
}

// writeStatus takes a step of the driver's initialisation (section 3.1.1). Bits
// only come on; all go off by a reset.
func (t *Transport) writeStatus(v uint8) {
	if v == 0 {
		t.reset()
		return
	}
	added := v &^ t.Status &^ StatusNeedsReset
	if added&StatusFeaturesOK != 0 && (t.DriverFeatures&^t.features() != 0 || !t.Has(FeatureVersion1)) {
		added &^= StatusFeaturesOK
	}
	if added&StatusDriverOK != 0 && (t.Status|added)&StatusFeaturesOK == 0 {
		added &^= StatusDriverOK
	}
	t.Status |= added
	if added&StatusDriverOK == 0 {
		return
	}
	for q := range t.Queues {
		if t.Ready(q) {
			t.handler.Notify(q)
		}
	}
}

// writeQueue sets up the selected queue; once enabled it stays as it is.
func (t *Transport) writeQueue(q *Queue, off uint32, size int, v uint64) {
	if off == regQueueVector {
		q.Vector = t.vector(v)
		return
	}
	if q.Enabled {
		return
	}
	switch off {
	case regQueueSize:
		if v == 0 || v > MaxQueueSize || v&(v-1) != 0 {
			t.Break(errors.New("queue size isn't a power of two up to the maximum"))
			return
		}
		q.Size = uint16(v)
	case regQueueEnable:
		if v != 1 {
			return
		}
		if err := q.checkRings(t.bus.Mem); err != nil {
			t.Break(err)
			return
		}
		q.Enabled = true
	case regQueueDesc, regQueueDriver, regQueueDevice:
		if r := q.ring(off); size == 8 {
			*r = v
		} else {
			*r = *r&^0xffffffff | v&0xffffffff
		}
	case regQueueDesc + 4, regQueueDriver + 4, regQueueDevice + 4:
		r := q.ring(off)
		*r = *r&0xffffffff | v<<32
	}
}
