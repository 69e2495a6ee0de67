package recording

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"

	"github.com/duet-ft/duet/hvd/event"
)

// Writer makes a recording on a stream. After an error it is of no use. It
// isn't safe for concurrent use.
type Writer struct {
	w      io.Writer
	number uint32
	pages  []uint64 // written as something else than zero
	lsn    uint64   // behind log
	log    []byte   // not yet written
}

// NewWriter begins a recording.
func NewWriter(w io.Writer, h Head) (*Writer, error) {
	b, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	if len(b) > maxHead || h.Memory == 0 || h.Memory > maxMemory || h.Memory%PageSize != 0 {
		return nil, fmt.Errorf("a recording of a machine with %d bytes of memory can't be made", h.Memory)
	}
	x := &Writer{w: w, pages: make([]uint64, (h.Memory/PageSize+63)/64)}
	if _, err := w.Write(appendHeader(nil)); err != nil {
		return nil, err
	}
	return x, x.block(KindHead, b)
}

func (w *Writer) block(kind Kind, raw []byte) error {
	_, err := w.w.Write(appendBlock(nil, kind, w.number, raw))
	w.number++
	return err
}

// Pages writes memory: pages are numbers in rising order, page returns the
// content of one.
func (w *Writer) Pages(pages []int, page func(int) []byte) error {
	var head, body []byte
	count, last := 0, -1
	flush := func() error {
		if count == 0 {
			return nil
		}
		raw := binary.AppendUvarint(nil, uint64(count))
		raw = append(append(raw, head...), body...)
		head, body, count, last = head[:0], body[:0], 0, -1
		return w.block(KindPages, raw)
	}
	for _, p := range pages {
		content := page(p)
		bit := uint64(1) << (p % 64)
		zero := isZero(content)
		if zero && w.pages[p/64]&bit == 0 {
			continue
		}
		tag := uint64(p-last) << 1
		last = p
		count++
		if zero {
			w.pages[p/64] &^= bit
			head = binary.AppendUvarint(head, tag|1)
		} else {
			w.pages[p/64] |= bit
			head = binary.AppendUvarint(head, tag)
			body = append(body, content...)
		}
		if count == pagesPerBlock {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

func isZero(b []byte) bool {
	for ; len(b) >= 8; b = b[8:] {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
	}
	return true
}

// State writes the rest of the machine: snapshot is JSON.
func (w *Writer) State(base event.Base, snapshot []byte) error {
	b, err := json.Marshal(State{base, snapshot})
	if err != nil {
		return err
	}
	if len(b) > maxState {
		return fmt.Errorf("a machine's state of %d bytes, at most %d can be recorded", len(b), maxState)
	}
	for len(b) > 0 {
		n := min(len(b), statePiece)
		if err := w.block(KindState, b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// Log adds bytes of the log. They are written when there are enough of them, or
// by Flush.
func (w *Writer) Log(b []byte) error {
	for len(b) > 0 {
		n := min(len(b), logPiece-len(w.log))
		w.log = append(w.log, b[:n]...)
		w.lsn += uint64(n)
		b = b[n:]
		if len(w.log) == logPiece {
			if err := w.Flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// Flush writes what Log has kept back.
func (w *Writer) Flush() error {
	if len(w.log) == 0 {
		return nil
	}
	raw := binary.LittleEndian.AppendUint64(nil, w.lsn-uint64(len(w.log)))
	raw = append(raw, w.log...)
	w.log = w.log[:0]
	return w.block(KindLog, raw)
}

// Pending is the number of bytes that Log has kept back.
func (w *Writer) Pending() int { return len(w.log) }

// End ends the recording. e.LSN is filled in.
func (w *Writer) End(e End) error {
	if err := w.Flush(); err != nil {
		return err
	}
	raw := binary.LittleEndian.AppendUint64(nil, e.Position)
	raw = binary.LittleEndian.AppendUint64(raw, e.Fingerprint)
	raw = binary.LittleEndian.AppendUint64(raw, w.lsn)
	return w.block(KindEnd, append(raw, e.Why[:min(len(e.Why), maxWhy)]...))
}
