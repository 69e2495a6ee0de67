// Package blk is the virtio block device (VIRTIO 1.2 section 5.2).
//
// # Place
//
// hvd/board makes one per disk. Of ours it imports hvd/mem and hvd/virtio. It
// is pure: what the guest asks for comes out as Requests, in order; their
// completions, in any order, go in by Complete.
//
// # A request's life
//
//	guest notifies -> in flight (Request out) -> Complete -> used ring
//	                      |  guest resets the device
//	                      v
//	                  cancelled -> Complete -> forgotten
//
// Requests in flight are part of the state, with a copy of the data that they
// write: after a failover they are issued again, and by then the guest may have
// changed its buffer. Cancelled ones stay until they are completed, because
// somebody may be writing still. When there are MaxInFlight of them, or MaxBytes
// in them, further chains wait in the queue.
//
// Only one queue, no discard, no write zeroes. GET_ID is answered at once.
package blk

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/duet-ft/duet/hvd/virtio"
)

// SectorSize is the unit of a disk, in bytes.
const SectorSize = 512

// Limits of what is in flight, cancelled requests included.
const (
	MaxInFlight = 256
	MaxBytes    = 32 << 20
)

const (
	segMax  = 126
	sizeMax = 64 << 10
	// chainMax is what a driver that keeps segMax and sizeMax sends at most.
	chainMax = segMax*sizeMax + headerSize + 1

	headerSize = 16
	idSize     = 20
	deviceID   = 2
	class      = 0x010000 // mass storage, SCSI

	featureSizeMax  = 1 << 1
	featureSegMax   = 1 << 2
	featureReadOnly = 1 << 5
	featureBlkSize  = 1 << 6
	featureFlush    = 1 << 9
)

// Op is what a request does.
type Op uint32

// The operations, by their numbers in the specification.
const (
	OpRead  Op = 0 // VIRTIO_BLK_T_IN
	OpWrite Op = 1 // VIRTIO_BLK_T_OUT
	OpFlush Op = 4 // VIRTIO_BLK_T_FLUSH
	opGetID Op = 8
)

// String is the operation's name.
func (o Op) String() string {
	switch o {
	case OpRead:
		return "read"
	case OpWrite:
		return "write"
	case OpFlush:
		return "flush"
	}
	return fmt.Sprintf("operation %d", uint32(o))
}

// Status bytes of a completion.
const (
	StatusOK          = 0
	StatusIOError     = 1
	StatusUnsupported = 2
)

// Request is what the guest asks its disk for.
type Request struct {
	ID     uint64 // counts up from 0, never again the same
	Op     Op
	Sector uint64 // of 512 bytes
	Len    int    // bytes to read or write; 0 for a flush
	Data   []byte `json:",omitempty"` // a write's bytes
}

// Config is what a disk is.
type Config struct {
	Sectors  uint64 // of 512 bytes
	ReadOnly bool
	Serial   string // at most 20 bytes
}

// flight is a request that isn't complete.
type flight struct {
	Request
	Head      uint16
	Into      []virtio.Segment `json:",omitempty"` // where a read's bytes go
	StatusAt  uint64
	Cancelled bool `json:",omitempty"`
}

// Device is a disk. The exported fields are its state.
type Device struct {
	Transport virtio.Transport
	NextID    uint64
	InFlight  []flight `json:",omitempty"` // in order of their IDs

	cfg Config
	out func(Request)
}

// New returns a disk. spec names its place on the bus; out takes the requests.
func New(cfg Config, spec virtio.Spec, bus virtio.Bus, out func(Request)) (*Device, error) {
	if len(cfg.Serial) > idSize {
		return nil, fmt.Errorf("disk serial %q is longer than %d bytes", cfg.Serial, idSize)
	}
	if cfg.Sectors == 0 || cfg.Sectors > 1<<55 {
		return nil, fmt.Errorf("disk of %d sectors: it needs 1 to 2^55 of them", cfg.Sectors)
	}
	d := &Device{cfg: cfg, out: out}
	spec.DeviceID, spec.Class, spec.Queues, spec.Quiet = deviceID, class, 1, 1
	spec.Features = featureSizeMax | featureSegMax | featureBlkSize | featureFlush
	if cfg.ReadOnly {
		spec.Features |= featureReadOnly
	}
	spec.Config = make([]byte, 60) // struct virtio_blk_config of VIRTIO 1.2
	binary.LittleEndian.PutUint64(spec.Config, cfg.Sectors)
	binary.LittleEndian.PutUint32(spec.Config[8:], sizeMax)
	binary.LittleEndian.PutUint32(spec.Config[12:], segMax)
	binary.LittleEndian.PutUint32(spec.Config[20:], SectorSize)
	d.Transport.Init(spec, bus, d)
	return d, nil
}

// Pending lists the requests in flight in the order in which they were made,
// cancelled writes too: they may have been done in part. The data is shared.
func (d *Device) Pending() []Request {
	out := make([]Request, len(d.InFlight))
	for i := range d.InFlight {
		out[i] = d.InFlight[i].Request
	}
	return out
}

// Notify takes new requests from the queue.
func (d *Device) Notify(int) {
	t := &d.Transport
	used := false
	for d.room() {
		c, ok := t.Next(0, chainMax)
		if !ok {
			break
		}
		used = d.start(c) || used
	}
	t.Looked(0)
	if used {
		t.Signal(0)
	}
}

// room says whether another request may be in flight.
func (d *Device) room() bool {
	n := 0
	for i := range d.InFlight {
		n += d.InFlight[i].Len
	}
	return len(d.InFlight) < MaxInFlight && n < MaxBytes
}

// Reset cancels what is in flight.
func (d *Device) Reset() {
	for i := range d.InFlight {
		d.InFlight[i].Cancelled = true
	}
}

// start begins a chain's request, and says whether it is complete already.
func (d *Device) start(c virtio.Chain) (used bool) {
	t := &d.Transport
	in, err := virtio.Gather(t.Mem(), c.Readable)
	into, statusAt, ok := virtio.CutLast(c.Writable)
	switch {
	case err != nil:
		t.Break(err)
		return false
	case !ok || len(in) < headerSize:
		t.Break(errors.New("block request without a header or a status byte"))
		return false
	}
	f := flight{
		Request: Request{
			ID:     d.NextID,
			Op:     Op(binary.LittleEndian.Uint32(in)),
			Sector: binary.LittleEndian.Uint64(in[8:]),
		},
		Head: c.Head, StatusAt: statusAt,
	}
	switch f.Op {
	case OpRead:
		f.Into, f.Len = into, virtio.Bytes(into)
	case OpWrite:
		f.Data, f.Len = in[headerSize:], len(in)-headerSize
	case OpFlush:
		f.Sector = 0
	case opGetID:
		return d.finish(f, StatusOK, append([]byte(d.cfg.Serial), make([]byte, idSize-len(d.cfg.Serial))...), into)
	default:
		return d.finish(f, StatusUnsupported, nil, nil)
	}
	if f.Op != OpFlush && !d.inRange(f.Request) {
		return d.finish(f, StatusIOError, nil, nil)
	}
	d.NextID++
	d.InFlight = append(d.InFlight, f)
	d.out(f.Request)
	return false
}

// inRange says whether a read or write is possible.
func (d *Device) inRange(r Request) bool {
	sectors := uint64(r.Len) / SectorSize
	return r.Len > 0 && r.Len%SectorSize == 0 &&
		r.Sector < d.cfg.Sectors && sectors <= d.cfg.Sectors-r.Sector &&
		(r.Op == OpRead || !d.cfg.ReadOnly)
}

// finish writes a request's outcome and returns its chain to the driver.
func (d *Device) finish(f flight, status uint8, data []byte, into []virtio.Segment) bool {
	t := &d.Transport
	n, err := virtio.Scatter(t.Mem(), into, data)
	if err == nil {
		err = t.Mem().Write(f.StatusAt, []byte{status})
	}
	if err != nil {
		t.Break(err)
		return false
	}
	t.Use(0, virtio.Elem{Head: f.Head, Len: uint32(n) + 1})
	return true
}

// Complete ends the request with an ID. data is what a successful read read,
// exactly its length. It is an error if no such request is in flight.
func (d *Device) Complete(id uint64, status uint8, data []byte) error {
	i := 0
	for i < len(d.InFlight) && d.InFlight[i].ID != id {
		i++
	}
	if i == len(d.InFlight) {
		return fmt.Errorf("completion of disk request %d, which isn't in flight", id)
	}
	f := d.InFlight[i]
	if status == StatusOK && f.Op == OpRead && len(data) != f.Len {
		return fmt.Errorf("completion of disk request %d has %d bytes, it read %d", id, len(data), f.Len)
	}
	d.InFlight = append(d.InFlight[:i:i], d.InFlight[i+1:]...)
	if status != StatusOK {
		data = nil
	}
	if !f.Cancelled && d.Transport.Ready(0) && d.finish(f, status, data, f.Into) {
		d.Transport.Signal(0)
	}
	if d.Transport.Available(0) > 0 { // there may be room for what waited
		d.Notify(0)
	}
	return nil
}

// Validate checks a restored state.
func (d *Device) Validate() error {
	if err := d.Transport.Validate(); err != nil {
		return err
	}
	if len(d.InFlight) > MaxInFlight {
		return errors.New("disk: more requests in flight than possible")
	}
	for i := range d.InFlight {
		if err := d.InFlight[i].validate(d); err != nil {
			return fmt.Errorf("disk request %d in flight: %w", d.InFlight[i].ID, err)
		}
		if i > 0 && d.InFlight[i].ID <= d.InFlight[i-1].ID {
			return errors.New("disk: requests in flight aren't in order")
		}
	}
	return nil
}

func (f *flight) validate(d *Device) error {
	switch {
	case f.ID >= d.NextID:
		return errors.New("its ID was never given")
	case f.Op == OpRead && virtio.Bytes(f.Into) != f.Len, f.Op == OpWrite && len(f.Data) != f.Len,
		f.Op == OpFlush && f.Len != 0, f.Op != OpWrite && len(f.Data) != 0, f.Op != OpRead && len(f.Into) != 0:
		return errors.New("lengths differ")
	case f.Op != OpRead && f.Op != OpWrite && f.Op != OpFlush:
		return errors.New("unknown operation")
	case f.Op != OpFlush && !d.inRange(f.Request):
		return errors.New("out of the disk's range")
	case f.Len > chainMax:
		return errors.New("too long")
	}
	m := d.Transport.Mem()
	if _, err := m.View(f.StatusAt, 1); err != nil {
		return err
	}
	return virtio.CheckSegments(m, f.Into)
}
