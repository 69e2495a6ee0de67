// Package event is the log of one VM: the inputs that aren't a function of
// the guest's own execution, each with its position, and their codec.
//
// # Place
//
// hvd/lockstep writes entries on the primary and reads them on the secondary;
// the machine applies them. The same bytes travel on the link and lie in a
// recording. It imports nothing of ours.
//
// # Positions
//
// A position is the number of counted exits since the VM was made. An entry
// at position n is applied after exit n and before the guest runs on. Three
// kinds make an exit of their own, in the middle of the guest's run from exit
// n to the next: Stop, Point and Resync. They carry position n; what they made
// is exit n+1.
//
// # Layout, version 5
//
// A log is a sequence of entries without padding. Integers are unsigned
// LEB128 varints unless said otherwise.
//
//	tag      u8       kind in bits 0-3, 0 when it is 16 or more; bits 4-7:
//	                  position less the last entry's position, 15 when it is
//	                  15 or more
//	kind     u8       only after a tag with kind 0
//	more     varint   that difference less 15; only after a tag with 15
//	payload           by kind:
//
//	1  Time       now less the last now (ns)
//	2  Deadline   (nothing: now is the machine's next deadline)
//	3  Frame      length, bytes
//	4  DiskDone   disk, request, status u8, length, bytes
//	5  Vsock      length, bytes
//	6  VsockReset (nothing)
//	7  Console    length, bytes
//	8  Power      (nothing)
//	9  Stop       traps less the last stop's traps
//	10 Resync     length, bytes (hvd/machine's capture, packed by hvd/transfer)
//	11 Mark       fingerprint's low half, u32 little endian
//	12 Live       epoch
//	13 Jump       now less the last now (ns)
//	14 Traps      set, ticks between two harvests
//	15 Behind     (nothing)
//	16 Digest     length, bytes (what hvd/machine compares beside exits)
//	17 DiskRef    disk, request, length, bytes (hvd/diskref's reference): a
//	              DiskDone of status 0 whose data the reader gets elsewhere.
//	              Between two hosts only, never in a recording.
//	18 Point      conditional branches since exit n; RIP, u64 little endian;
//	              RCX; a hash of the registers, u64 little endian (hvd/locate)
//
// The codec is relative to the last entry, so both ends start from the same
// Base: the position, now and traps of the state transfer that the log
// follows.
package event

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Version is the version of the layout above, and of what the machine does by
// itself between two entries. 5: it looks at queues that aren't notified
// (hvd/virtio), with the same layout as 4.
const Version = 5

// MaxData bounds the bytes that one entry carries.
const MaxData = 320 << 20

// Kind is what an entry says happened.
type Kind uint8

// The kinds of entry; the package comment has their payloads.
const (
	Time       Kind = 1 + iota // the guest's clock is anchored to Now
	Deadline                   // the guest's clock reached its next timer
	Frame                      // a network frame arrived (Data)
	DiskDone                   // disk request ID of Disk ended with Status (and Data, for a read)
	Vsock                      // a vsock packet arrived (Data)
	VsockReset                 // the vsock transport was reset
	Console                    // input on the serial console (Data)
	Power                      // the power button was pressed
	Stop                       // the guest was stopped after Traps counted traps
	Resync                     // the guest was stopped elsewhere; Data is the state there
	Mark                       // no input up to Pos; Hash is the fingerprint there
	Live                       // from here on the log is that of a new primary
	Jump                       // the guest's clock jumps to Now; timers that it passes fire once
	Traps                      // from here on the kernel counts Set; the dirty log is harvested, now and each Every ticks
	Behind                     // more timers are due: the guest leaves as soon as it can take an interrupt behind that of Pos
)

// The rare kinds, whose tag is a byte longer.
const (
	Digest  Kind = 16 + iota // Data is a digest of the state at Pos, to be compared
	DiskRef                  // as DiskDone, but Data only says which blocks were read
	Point                    // the guest was stopped after Count branches, at RIP
	// Kinds is above every kind.
	Kinds
)

// extended is the first of the rare kinds.
const extended = 16

var names = [Kinds]string{
	Time: "time", Deadline: "deadline", Frame: "frame", DiskDone: "disk-done", Vsock: "vsock",
	VsockReset: "vsock-reset", Console: "console", Power: "power", Stop: "stop", Resync: "resync",
	Mark: "mark", Live: "live", Jump: "jump", Traps: "traps", Behind: "behind", Digest: "digest",
	DiskRef: "disk-ref", Point: "point",
}

// String is the kind's name.
func (k Kind) String() string {
	if k < Kinds && names[k] != "" {
		return names[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Entry is one entry of the log. Which fields count depends on Kind.
type Entry struct {
	Pos    uint64 // counted exits
	Kind   Kind
	Now    uint64 // Time, Jump: guest time, ns
	Disk   int    // DiskDone, DiskRef: index of the disk
	ID     uint64 // DiskDone, DiskRef: the request; Live: the epoch
	Status byte   // DiskDone: as virtio-blk's status byte
	Traps  uint64 // Stop: traps counted since the VM was made
	Hash   uint32 // Mark: low half of the fingerprint
	Set    uint64 // Traps: flags of hvd/kvm's Counted
	Every  uint64 // Traps: timer deadlines between two harvests of the dirty log
	Count  uint64 // Point: conditional branches since Pos
	RIP    uint64 // Point: where the guest is
	RCX    uint64 // Point
	Regs   uint64 // Point: a hash of the registers
	Data   []byte
}

// Base is what the first entry of a log is relative to.
type Base struct {
	Pos   uint64 `json:"pos"`
	Now   uint64 `json:"now"`
	Traps uint64 `json:"traps"`
}

var (
	// ErrCorrupt says that bytes are no entry of a log.
	ErrCorrupt = errors.New("corrupt log entry")
	// ErrPartial says that an entry goes on behind the bytes that are there.
	ErrPartial = errors.New("log entry isn't complete")
)

// Encoder appends entries to a buffer. The zero value starts at Base{}.
type Encoder struct{ base Base }

// NewEncoder returns an encoder for a log that starts at b.
func NewEncoder(b Base) *Encoder { return &Encoder{b} }

// Base is what the next entry will be relative to: a decoder that starts from it
// reads on here.
func (c *Encoder) Base() Base { return c.base }

// Append encodes e behind dst. Positions never fall, nor does Now.
func (c *Encoder) Append(dst []byte, e Entry) []byte {
	delta := e.Pos - c.base.Pos
	c.base.Pos = e.Pos
	if steps := byte(min(delta, 15)) << 4; e.Kind < extended {
		dst = append(dst, byte(e.Kind)|steps)
	} else {
		dst = append(dst, steps, byte(e.Kind))
	}
	if delta >= 15 {
		dst = binary.AppendUvarint(dst, delta-15)
	}
	switch e.Kind {
	case Time, Jump:
		dst = binary.AppendUvarint(dst, e.Now-c.base.Now)
		c.base.Now = e.Now
	case DiskDone:
		dst = binary.AppendUvarint(dst, uint64(e.Disk))
		dst = binary.AppendUvarint(dst, e.ID)
		dst = append(dst, e.Status)
		dst = appendData(dst, e.Data)
	case DiskRef:
		dst = binary.AppendUvarint(dst, uint64(e.Disk))
		dst = binary.AppendUvarint(dst, e.ID)
		dst = appendData(dst, e.Data)
	case Frame, Vsock, Console, Resync, Digest:
		dst = appendData(dst, e.Data)
	case Stop:
		dst = binary.AppendUvarint(dst, e.Traps-c.base.Traps)
		c.base.Traps = e.Traps
	case Mark:
		dst = binary.LittleEndian.AppendUint32(dst, e.Hash)
	case Live:
		dst = binary.AppendUvarint(dst, e.ID)
	case Traps:
		dst = binary.AppendUvarint(dst, e.Set)
		dst = binary.AppendUvarint(dst, e.Every)
	case Point:
		dst = binary.AppendUvarint(dst, e.Count)
		dst = binary.LittleEndian.AppendUint64(dst, e.RIP)
		dst = binary.AppendUvarint(dst, e.RCX)
		dst = binary.LittleEndian.AppendUint64(dst, e.Regs)
	}
	return dst
}

func appendData(dst, data []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(data))), data...)
}

// Decoder reads entries that an Encoder with the same Base wrote.
type Decoder struct{ base Base }

// NewDecoder returns a decoder for a log that starts at b.
func NewDecoder(b Base) *Decoder { return &Decoder{b} }

// Next decodes the entry at the start of b and returns how many bytes it
// took. Data points into b. After ErrPartial the same entry may be decoded again,
// with more bytes; after ErrCorrupt the decoder is of no use.
func (d *Decoder) Next(b []byte) (Entry, int, error) {
	r := reader{b: b}
	tag := r.byte()
	e := Entry{Kind: Kind(tag & 15)}
	if e.Kind == 0 && !r.short {
		e.Kind = Kind(r.byte())
		r.bad = !r.short && e.Kind < extended
	}
	delta := uint64(tag >> 4)
	if delta == 15 {
		delta += r.uvarint()
	}
	e.Pos = d.base.Pos + delta
	if e.Pos < d.base.Pos {
		r.bad = true
	}
	switch e.Kind {
	case Time, Jump:
		e.Now = d.base.Now + r.uvarint()
		r.bad = r.bad || e.Now < d.base.Now
	case DiskDone:
		e.Disk, e.ID, e.Status, e.Data = r.disk(), r.uvarint(), r.byte(), r.data()
	case DiskRef:
		e.Disk, e.ID, e.Data = r.disk(), r.uvarint(), r.data()
	case Frame, Vsock, Console, Resync, Digest:
		e.Data = r.data()
	case Stop:
		e.Traps = d.base.Traps + r.uvarint()
		r.bad = r.bad || e.Traps < d.base.Traps
	case Mark:
		if v := r.take(4); v != nil {
			e.Hash = binary.LittleEndian.Uint32(v)
		}
	case Live:
		e.ID = r.uvarint()
	case Traps:
		e.Set, e.Every = r.uvarint(), r.uvarint()
	case Point:
		e.Count, e.RIP, e.RCX, e.Regs = r.uvarint(), r.uint64(), r.uvarint(), r.uint64()
	case Deadline, VsockReset, Power, Behind:
	default:
		r.bad = r.bad || !r.short
	}
	if !r.bad && r.short {
		return Entry{}, 0, ErrPartial
	}
	if r.bad {
		return Entry{}, 0, fmt.Errorf("%w: %v after position %d", ErrCorrupt, e.Kind, d.base.Pos)
	}
	d.base.Pos = e.Pos
	switch e.Kind {
	case Time, Jump:
		d.base.Now = e.Now
	case Stop:
		d.base.Traps = e.Traps
	}
	return e, r.at, nil
}

// reader takes values off the front of b. bad says that one can't be, short
// that b ended first; values are zero from then on.
type reader struct {
	b     []byte
	at    int
	bad   bool
	short bool
}

func (r *reader) take(n int) []byte {
	if r.bad || r.short || n > len(r.b)-r.at {
		r.short = true
		return nil
	}
	v := r.b[r.at : r.at+n : r.at+n]
	r.at += n
	return v
}

func (r *reader) byte() byte {
	if v := r.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if v := r.take(8); v != nil {
		return binary.LittleEndian.Uint64(v)
	}
	return 0
}

func (r *reader) uvarint() uint64 {
	if r.bad || r.short {
		return 0
	}
	v, n := binary.Uvarint(r.b[r.at:])
	if n <= 0 {
		r.bad, r.short = n < 0, true
		return 0
	}
	r.at += n
	return v
}

func (r *reader) disk() int {
	v := r.uvarint()
	r.bad = r.bad || v > 255
	return int(v & 255)
}

func (r *reader) data() []byte {
	n := r.uvarint()
	if n > MaxData {
		r.bad = true
		return nil
	}
	return r.take(int(n))
}
