package virtio

import (
	"errors"
	"fmt"

	"github.com/duet-ft/duet/hvd/mem"
)

// MaxQueueSize is the size of every queue until the driver makes it smaller.
const MaxQueueSize = 256

// Sizes and flags of the split virtqueue (VIRTIO 1.2 sections 2.7.5 to 2.7.8).
const (
	descSize     = 16
	usedElemSize = 8
	ringHeader   = 4 // flags and idx

	descNext     = 1
	descWrite    = 2
	descIndirect = 4

	availNoInterrupt = 1
	usedNoNotify     = 1
)

// Queue is the state of one split virtqueue. Its methods take the guest's
// memory and whether EVENT_IDX was negotiated.
type Queue struct {
	Size    uint16 // a power of two up to MaxQueueSize
	Enabled bool
	Vector  uint16 // MSI-X table entry, or NoVector

	Desc   uint64 // descriptor table
	Driver uint64 // available ring, written by the driver
	Device uint64 // used ring, written by the device

	NextAvail uint16 // index of the next available entry to take
	NextUsed  uint16 // index of the next used entry to write
	Signalled uint16 // NextUsed when an interrupt was last considered
	Quiet     Quiet  `json:",omitzero"`
}

// Segment is a piece of guest memory that lies in bounds.
type Segment struct {
	Addr uint64
	Len  uint32
}

// Chain is one descriptor chain: what the device reads, then what it writes.
type Chain struct {
	Head     uint16
	Readable []Segment
	Writable []Segment
}

// Elem is one entry of the used ring: a chain's head and the bytes written.
type Elem struct {
	Head uint16
	Len  uint32
}

var (
	errChainLoop = errors.New("descriptor chain is longer than its queue")
	errChainBig  = errors.New("descriptor chain has too many bytes")
)

// checkRings checks the addresses of an enabled queue.
func (q *Queue) checkRings(m *mem.Memory) error {
	n := uint64(q.Size)
	if n == 0 || n > MaxQueueSize || n&(n-1) != 0 {
		return fmt.Errorf("queue size %d isn't a power of two up to %d", n, MaxQueueSize)
	}
	for _, r := range []struct {
		what              string
		addr, size, align uint64
	}{
		{"descriptor table", q.Desc, n * descSize, 16},
		{"available ring", q.Driver, ringHeader + n*2 + 2, 2},
		{"used ring", q.Device, ringHeader + n*usedElemSize + 2, 4},
	} {
		if r.addr%r.align != 0 {
			return fmt.Errorf("%s at %#x isn't aligned to %d", r.what, r.addr, r.align)
		}
		if _, err := m.View(r.addr, r.size); err != nil {
			return fmt.Errorf("%s: %w", r.what, err)
		}
	}
	return nil
}

// available is how many chains the driver has made available.
func (q *Queue) available(m *mem.Memory) (int, error) {
	idx, err := m.Uint16(q.Driver + 2)
	if err != nil {
		return 0, err
	}
	n := idx - q.NextAvail
	if n > q.Size {
		return 0, fmt.Errorf("available index %d is more than a queue ahead of %d", idx, q.NextAvail)
	}
	return int(n), nil
}

// next takes the next available chain; ok is false when there is none. A chain
// of more than limit bytes, or one that breaks a rule, is an error.
func (q *Queue) next(m *mem.Memory, limit uint64) (c Chain, ok bool, err error) {
	n, err := q.available(m)
	if n == 0 || err != nil {
		return Chain{}, false, err
	}
	head, err := m.Uint16(q.Driver + ringHeader + 2*uint64(q.NextAvail&(q.Size-1)))
	if err != nil {
		return Chain{}, false, err
	}
	c = Chain{Head: head}
	if err := q.walk(m, &c, limit); err != nil {
		return Chain{}, false, err
	}
	q.NextAvail++
	return c, true, nil
}

// walk follows a chain from its head.
func (q *Queue) walk(m *mem.Memory, c *Chain, limit uint64) error {
	total := uint64(0)
	at := c.Head
	for range q.Size {
		if at >= q.Size {
			return fmt.Errorf("descriptor %d in a queue of %d", at, q.Size)
		}
		d := q.Desc + descSize*uint64(at)
		addr, err := m.Uint64(d)
		if err != nil {
			return err
		}
		rest, err := m.Uint64(d + 8)
		if err != nil {
			return err
		}
		seg := Segment{Addr: addr, Len: uint32(rest)}
		flags, next := uint16(rest>>32), uint16(rest>>48)
		if total += uint64(seg.Len); total > limit {
			return errChainBig
		}
		if err := c.add(m, seg, flags); err != nil {
			return err
		}
		if flags&descNext == 0 {
			return nil
		}
		at = next
	}
	return errChainLoop
}

func (c *Chain) add(m *mem.Memory, seg Segment, flags uint16) error {
	switch {
	case flags&descIndirect != 0:
		return errors.New("indirect descriptor, which wasn't negotiated")
	case flags&descWrite == 0 && len(c.Writable) > 0:
		return errors.New("device-readable descriptor after a writable one")
	}
	if _, err := m.View(seg.Addr, uint64(seg.Len)); err != nil {
		return err
	}
	switch {
	case seg.Len == 0:
	case flags&descWrite != 0:
		c.Writable = append(c.Writable, seg)
	default:
		c.Readable = append(c.Readable, seg)
	}
	return nil
}

// publish writes used entries, then their index.
func (q *Queue) publish(m *mem.Memory, elems []Elem) error {
	for i, e := range elems {
		at := q.Device + ringHeader + usedElemSize*uint64((q.NextUsed+uint16(i))&(q.Size-1))
		if err := m.PutUint64(at, uint64(e.Head)|uint64(e.Len)<<32); err != nil {
			return err
		}
	}
	q.NextUsed += uint16(len(elems))
	return m.PutUint16(q.Device+2, q.NextUsed)
}

// wantsInterrupt says whether the driver wants one for the entries that were
// published since the last one was considered (section 2.7.7.2).
func (q *Queue) wantsInterrupt(m *mem.Memory, eventIdx bool) (bool, error) {
	if q.NextUsed == q.Signalled {
		return false, nil
	}
	if !eventIdx {
		flags, err := m.Uint16(q.Driver)
		return flags&availNoInterrupt == 0, err
	}
	event, err := m.Uint16(q.Driver + ringHeader + 2*uint64(q.Size))
	return q.NextUsed-event-1 < q.NextUsed-q.Signalled, err
}

// askNotify tells the driver whether to notify when it adds the next chain
// (section 2.7.10). With EVENT_IDX "no" is an index that has just gone by: it
// comes round again after 65,536 chains.
func (q *Queue) askNotify(m *mem.Memory, eventIdx, want bool) error {
	at, v := q.Device, uint16(0)
	switch {
	case eventIdx:
		at += ringHeader + usedElemSize*uint64(q.Size)
		v = q.NextAvail
		if !want {
			v--
		}
	case !want:
		v = usedNoNotify
	}
	if old, err := m.Uint16(at); err != nil || old == v {
		return err
	}
	return m.PutUint16(at, v)
}
