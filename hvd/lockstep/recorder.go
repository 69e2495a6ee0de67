package lockstep

import "github.com/duet-ft/duet/hvd/event"

// Recorder writes the log of a primary. The zero value isn't usable; see
// NewRecorder.
type Recorder struct {
	enc      *event.Encoder
	buf      []byte // written, not yet taken
	lsn      uint64 // LSN behind buf
	marked   uint64 // LSN behind the last Mark; 0: none yet
	markedAt uint64 // its position

	// Counts by kind of entry, and their bytes, since NewRecorder.
	Entries [event.Kinds]uint64
	Bytes   [event.Kinds]uint64
}

// NewRecorder returns a recorder of the log that starts at base with LSN 0.
func NewRecorder(base event.Base) *Recorder {
	return &Recorder{enc: event.NewEncoder(base)}
}

// Input writes an input that is applied at e.Pos.
func (r *Recorder) Input(e event.Entry) {
	n := len(r.buf)
	r.buf = r.enc.Append(r.buf, e)
	n = len(r.buf) - n
	r.lsn += uint64(n)
	r.Entries[e.Kind]++
	r.Bytes[e.Kind] += uint64(n)
}

// Mark writes the machine's fingerprint at pos, unless the log ends with that
// very Mark, and returns the LSN behind it. Inputs at pos may follow.
func (r *Recorder) Mark(pos, fingerprint uint64) uint64 {
	if r.marked == 0 || r.marked != r.lsn || r.markedAt != pos {
		r.Input(event.Entry{Pos: pos, Kind: event.Mark, Hash: uint32(fingerprint)})
		r.marked, r.markedAt = r.lsn, pos
	}
	return r.lsn
}

// Base is where whoever reads the log from here on starts from.
func (r *Recorder) Base() event.Base { return r.enc.Base() }

// LSN is the length of the log so far.
func (r *Recorder) LSN() uint64 { return r.lsn }

// Pending is the number of bytes written and not yet taken.
func (r *Recorder) Pending() int { return len(r.buf) }

// Take returns the bytes written since the last Take and the LSN of the first
// of them. The caller owns them.
func (r *Recorder) Take() (lsn uint64, batch []byte) {
	b := r.buf
	r.buf = nil
	return r.lsn - uint64(len(b)), b
}
