package diskref

import (
	"errors"
	"fmt"
)

const (
	// MaxHeld bounds what a secondary reads ahead, in bytes: read, or being read
	// or asked for, and not executed yet. What comes later waits.
	MaxHeld = 64 << 20
	// MaxReads bounds the reads that a secondary has under way at once.
	MaxReads = 32
	// MaxWaiting bounds the references of a log that isn't executed yet.
	MaxWaiting = 1 << 18
)

var (
	// ErrTooMany says that a log has more references than a secondary takes.
	ErrTooMany = errors.New("the secondary has too many references to disks waiting")
	// ErrUnasked says that data came that nobody asked for, or other data.
	ErrUnasked = errors.New("disk data from the peer that doesn't fit what was asked for")
)

// stage is how far a reference is.
type stage uint8

const (
	waiting stage = iota // for Start
	reading              // from the volume
	asked                // the primary for the data
	held
)

// Holder is a secondary's account of the references in the log that has arrived
// and isn't executed. The zero value has none.
type Holder struct {
	queue []holding // in the log's order
	solid int       // the first of them that are held: so many at least
	begun int       // those that don't wait: the first so many
	bytes int       // of those
	reads int       // under way
}

type holding struct {
	Ref
	start uint64 // LSN of the entry
	stage stage
	data  []byte
}

// Add notes a reference whose entry in the log starts at LSN start. They come in
// the log's order.
func (h *Holder) Add(start uint64, r Ref) error {
	if len(h.queue) >= MaxWaiting {
		return ErrTooMany
	}
	h.queue = append(h.queue, holding{Ref: r, start: start})
	return nil
}

// Start returns what to read from the volume now. Each has to be answered by Read
// or Failed.
func (h *Holder) Start() []Ref {
	var out []Ref
	for h.begun < len(h.queue) {
		x := &h.queue[h.begun]
		if h.reads >= MaxReads || h.bytes+x.Len > MaxHeld {
			break
		}
		x.stage = reading
		h.begun++
		h.reads++
		h.bytes += x.Len
		out = append(out, x.Ref)
	}
	return out
}

// Read takes what the volume has for a reference, and says whether it is what the
// primary read. If not, the primary has to be asked for it.
func (h *Holder) Read(r Ref, data []byte) bool {
	if SumOf(data) != r.Sum || len(data) != r.Len {
		h.Failed(r)
		return false
	}
	if x := h.find(r, reading); x != nil {
		h.reads--
		x.stage, x.data = held, data
	}
	return true
}

// Failed notes that the volume doesn't give a reference's blocks. The primary has
// to be asked for them.
func (h *Holder) Failed(r Ref) {
	if x := h.find(r, reading); x != nil {
		h.reads--
		x.stage = asked
	}
}

// Given takes what the primary was asked for.
func (h *Holder) Given(disk int, id uint64, data []byte) error {
	x := h.find(Ref{Disk: disk, ID: id}, asked)
	if x == nil || SumOf(data) != x.Sum {
		return fmt.Errorf("%w: disk %d, request %d, %d bytes", ErrUnasked, disk, id, len(data))
	}
	x.stage, x.data = held, data
	return nil
}

func (h *Holder) find(r Ref, s stage) *holding {
	for i := h.solid; i < h.begun; i++ {
		if x := &h.queue[i]; x.Disk == r.Disk && x.ID == r.ID && x.stage == s {
			return x
		}
	}
	return nil
}

// Take returns the data of the first reference and forgets it, if it is held.
func (h *Holder) Take() ([]byte, bool) {
	if len(h.queue) == 0 || h.queue[0].stage != held {
		return nil, false
	}
	data := h.queue[0].data
	h.bytes -= h.queue[0].Len
	h.queue[0] = holding{}
	h.queue = h.queue[1:]
	h.begun--
	h.solid = max(0, h.solid-1)
	return data, true
}

// Frontier is the LSN up to which a secondary can execute by itself: that of the
// first reference that it doesn't hold, or received, up to where the log is here.
func (h *Holder) Frontier(received uint64) uint64 {
	for h.solid < h.begun && h.queue[h.solid].stage == held {
		h.solid++
	}
	if h.solid < len(h.queue) {
		return h.queue[h.solid].start
	}
	return received
}

// Stuck says that only the primary can give the first reference's data.
func (h *Holder) Stuck() bool { return len(h.queue) > 0 && h.queue[0].stage == asked }
