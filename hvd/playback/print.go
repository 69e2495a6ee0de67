package playback

import (
	"errors"
	"fmt"
	"io"

	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/recording"
)

// tally counts the log by kinds of entry.
type tally struct {
	head           recording.Head
	end            *recording.End
	first, last    uint64 // positions
	entries, bytes [event.Kinds]uint64
	data           [event.Kinds]uint64 // of bytes, what the entries carry
}

// readLog reads a recording's log without executing it. line, if set, is called
// for each entry with its size in the log. What comes before an error counts.
func readLog(r io.Reader, line func(e event.Entry, size int) error) (*tally, error) {
	x, err := recording.NewReader(r)
	if err != nil {
		return nil, err
	}
	state, err := x.State(func(recording.Ref, recording.Block) error { return nil })
	if err != nil {
		return nil, err
	}
	t := &tally{head: x.Head(), first: state.Base.Pos, last: state.Base.Pos}
	dec := event.NewDecoder(state.Base)
	var buf []byte
	for {
		_, log, _, err := x.Log()
		if errors.Is(err, io.EOF) {
			t.end = x.End()
			if len(buf) > 0 {
				return t, fmt.Errorf("%w: its log ends inside an entry", recording.ErrDamaged)
			}
			return t, nil
		}
		if err != nil {
			return t, err
		}
		buf = append(buf, log...)
		for len(buf) > 0 {
			e, n, err := dec.Next(buf)
			if errors.Is(err, event.ErrPartial) {
				break
			}
			if err != nil {
				return t, err
			}
			t.count(e, n)
			if line != nil {
				if err := line(e, n); err != nil {
					return t, err
				}
			}
			buf = buf[n:]
		}
	}
}

func (t *tally) count(e event.Entry, size int) {
	t.entries[e.Kind]++
	t.bytes[e.Kind] += uint64(size)
	t.data[e.Kind] += uint64(len(e.Data))
	t.last = e.Pos
}

// print says what the log consists of.
func (t *tally) print(out io.Writer) {
	var entries, bytes uint64
	fmt.Fprintf(out, "%-12s %10s %12s %10s\n", "kind", "entries", "bytes", "each")
	for k := range event.Kinds {
		if t.entries[k] > 0 {
			fmt.Fprintf(out, "%-12v %10d %12d %10.1f\n", k, t.entries[k], t.bytes[k], ratio(t.bytes[k], t.entries[k]))
			entries, bytes = entries+t.entries[k], bytes+t.bytes[k]
		}
	}
	fmt.Fprintf(out, "%-12s %10d %12d %10.1f\n", "all", entries, bytes, ratio(bytes, entries))
	fmt.Fprintf(out, "positions %d to %d, %.2f bytes an exit\n", t.first, t.last, ratio(bytes, t.last-t.first))
	if ticks := t.entries[event.Deadline]; ticks > 0 {
		fmt.Fprintf(out, "%d timer ticks: %.1f bytes of log each, %.1f without packets, disk data and resyncs\n", ticks,
			ratio(bytes, ticks), ratio(bytes-t.bytes[event.Frame]-t.bytes[event.DiskDone]-t.bytes[event.Resync], ticks))
	}
	if n := t.entries[event.Frame]; n > 0 {
		fmt.Fprintf(out, "%d packets: %.1f bytes of log each, %.3f bytes a byte received\n", n,
			ratio(t.bytes[event.Frame], n), ratio(t.bytes[event.Frame], t.data[event.Frame]))
	}
	if t.end != nil {
		fmt.Fprintf(out, "ends at position %d: %s\n", t.end.Position, printable([]byte(t.end.Why)))
	}
}

func ratio(a, b uint64) float64 { return float64(a) / float64(max(1, b)) }

// describe is an entry in one line.
func describe(e event.Entry, size int) string {
	s := fmt.Sprintf("%d\t%v\t%d bytes", e.Pos, e.Kind, size)
	switch e.Kind {
	case event.Time, event.Jump:
		s += fmt.Sprintf("\tnow %d.%09d s", e.Now/1e9, e.Now%1e9)
	case event.DiskDone:
		s += fmt.Sprintf("\tdisk %d, request %d, status %d, data %d", e.Disk, e.ID, e.Status, len(e.Data))
	case event.DiskRef:
		s += fmt.Sprintf("\tdisk %d, request %d, reference %x", e.Disk, e.ID, e.Data[:min(len(e.Data), 64)])
	case event.Stop:
		s += fmt.Sprintf("\tat trap %d", e.Traps)
	case event.Point:
		s += fmt.Sprintf("\tafter %d branches, at %#x", e.Count, e.RIP)
	case event.Mark:
		s += fmt.Sprintf("\tfingerprint %08x", e.Hash)
	case event.Live:
		s += fmt.Sprintf("\tepoch %d", e.ID)
	case event.Frame, event.Vsock, event.Console, event.Resync, event.Digest:
		s += fmt.Sprintf("\tdata %d: %x", len(e.Data), e.Data[:min(len(e.Data), 16)])
	}
	return s
}
