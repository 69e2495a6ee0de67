package lockstep

import (
	"errors"
	"fmt"

	"github.com/duet-ft/duet/hvd/event"
)

var errRef = errors.New("the log says which blocks a disk's read has read, but here is no disk; a recording that does so was made wrongly")

// Do is what the secondary has to do next.
type Do uint8

// What a Step asks for.
const (
	Wait  Do = iota // nothing is known beyond the current position, or what a reference stands for isn't here
	Run             // let the machine run to its next exit, or to Stop
	Apply           // apply Entry at the current position
	Check           // compare Entry.Hash with the machine's fingerprint
)

// Step is one thing that the secondary has to do.
type Step struct {
	Do    Do
	Stop  uint64      // Run: the trap to stop at, or Free
	Entry event.Entry // Apply, Check
	LSN   uint64      // Check: the LSN behind the entry
}

// Replayer turns the log into steps. The zero value isn't usable; see
// NewReplayer.
type Replayer struct {
	// Resolve makes of an event.DiskRef, the next that the log has, the DiskDone
	// that it stands for; false when its data isn't here yet. It is called once
	// for each that it makes, in the log's order. Without it a log with references
	// is an error.
	Resolve func(event.Entry) (event.Entry, bool)

	dec      *event.Decoder
	buf      []byte // received, not yet decoded
	received uint64 // LSN behind buf
	executed uint64 // LSN behind the last entry that was carried out
	head     event.Entry
	headLen  int
	have     bool
}

// NewReplayer returns a replayer of the log that starts at base with LSN 0.
func NewReplayer(base event.Base) *Replayer {
	return &Replayer{dec: event.NewDecoder(base)}
}

// Feed adds a piece of the log that starts at lsn. Pieces come in order and
// without gaps, cut anywhere; anything else is an error and leaves the replayer as it was.
func (r *Replayer) Feed(lsn uint64, batch []byte) error {
	if lsn != r.received {
		return fmt.Errorf("log batch starts at LSN %d, want %d", lsn, r.received)
	}
	r.buf = append(r.buf, batch...)
	r.received += uint64(len(batch))
	return nil
}

// Received is the LSN up to which the log is here.
func (r *Replayer) Received() uint64 { return r.received }

// Executed is the LSN up to which every entry has been handed out by Next.
func (r *Replayer) Executed() uint64 { return r.executed }

// Resolving says that the next entry is a reference: after a Wait, that it is what
// the replay waits for.
func (r *Replayer) Resolving() bool { return r.have && r.head.Kind == event.DiskRef }

// Next says what to do at position pos. Run is handed out again until the
// machine has moved on; everything else is handed out once. Entry.Data is
// valid until the next Feed. An error means that the log doesn't fit the
// machine: it is corrupt, or the machine overran it.
func (r *Replayer) Next(pos uint64) (Step, error) {
	if !r.have {
		if len(r.buf) == 0 {
			return Step{Do: Wait}, nil
		}
		e, n, err := r.dec.Next(r.buf)
		if errors.Is(err, event.ErrPartial) {
			return Step{Do: Wait}, nil
		}
		if err != nil {
			return Step{}, err
		}
		r.head, r.headLen, r.have = e, n, true
	}
	e := r.head
	switch {
	case e.Pos < pos:
		return Step{}, &Divergence{Kind: "exit", Position: pos, Detail: fmt.Sprintf("it is beyond the log's %v at %d", e.Kind, e.Pos)}
	case e.Pos > pos:
		return Step{Do: Run, Stop: Free}, nil
	}
	if e.Kind == event.DiskRef {
		if r.Resolve == nil {
			return Step{}, errRef
		}
		done, ok := r.Resolve(e)
		if !ok {
			return Step{Do: Wait}, nil
		}
		e = done
	}
	r.have = false
	r.buf = r.buf[r.headLen:]
	r.executed += uint64(r.headLen)
	switch e.Kind {
	case event.Stop:
		return Step{Do: Run, Stop: e.Traps}, nil
	case event.Mark:
		return Step{Do: Check, Entry: e, LSN: r.executed}, nil
	}
	return Step{Do: Apply, Entry: e, LSN: r.executed}, nil
}
