package recording

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Ref is where a block lies in a file, to read it once more.
type Ref struct {
	Offset int64
	Number uint32
}

// Reader reads a recording from its beginning.
type Reader struct {
	r      io.Reader
	offset int64
	next   uint32
	head   Head
	ahead  *Block // read, not yet given out
	ref    Ref    // of the last block that was read
	lsn    uint64 // behind the log so far
	end    *End
}

// NewReader reads a recording's header and head.
func NewReader(r io.Reader) (*Reader, error) {
	x := &Reader{r: r, offset: headerSize}
	var h [headerSize]byte
	if n, err := io.ReadFull(r, h[:]); err != nil && !isEnd(err) {
		return nil, err
	} else if err := checkHeader(h[:n]); err != nil {
		return nil, err
	}
	b, err := x.block()
	if err != nil {
		return nil, err
	}
	if b.Kind != KindHead || len(b.raw) > maxHead || json.Unmarshal(b.raw, &x.head) != nil {
		return nil, fmt.Errorf("%w: its first block makes no sense", ErrDamaged)
	}
	if m := x.head.Memory; m == 0 || m > maxMemory || m%PageSize != 0 {
		return nil, fmt.Errorf("%w: it is of a machine with %d bytes of memory", ErrDamaged, m)
	}
	return x, nil
}

func isEnd(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// Head is what the recording is of.
func (r *Reader) Head() Head { return r.head }

// block reads the next block of whatever kind.
func (r *Reader) block() (Block, error) {
	b, err := readBlock(r.r, r.offset)
	if err != nil {
		return b, err
	}
	if b.Number != r.next {
		return b, fmt.Errorf("%w: at byte %d is block %d where block %d belongs", ErrDamaged, r.offset, b.Number, r.next)
	}
	r.ref = Ref{r.offset, b.Number}
	r.offset += int64(b.Stored)
	r.next++
	return b, nil
}

// readBlock reads the block that lies at offset, for whoever reads the error.
func readBlock(r io.Reader, offset int64) (Block, error) {
	var h [blockHeaderSize]byte
	switch n, err := io.ReadFull(r, h[:]); {
	case n == 0 && isEnd(err):
		return Block{}, fmt.Errorf("%w: it was cut, at byte %d: it has no end", ErrDamaged, offset)
	case isEnd(err):
		return Block{}, fmt.Errorf("%w: it was cut, inside the block at byte %d", ErrDamaged, offset)
	case err != nil:
		return Block{}, err
	}
	head, err := parseBlockHeader(h[:])
	if err != nil {
		return Block{}, fmt.Errorf("%w (at byte %d)", err, offset)
	}
	stored := make([]byte, head.stored)
	if _, err := io.ReadFull(r, stored); isEnd(err) {
		return Block{}, fmt.Errorf("%w: it was cut, inside the block at byte %d", ErrDamaged, offset)
	} else if err != nil {
		return Block{}, err
	}
	b, err := head.unpack(h[:], stored)
	if err != nil {
		return b, fmt.Errorf("%w (%v, at byte %d)", err, head.kind, offset)
	}
	return b, nil
}

// ReadAt reads a block once more.
func ReadAt(r io.ReaderAt, at Ref) (Block, error) {
	b, err := readBlock(io.NewSectionReader(r, at.Offset, blockHeaderSize+maxStored), at.Offset)
	if err == nil && b.Number != at.Number {
		err = fmt.Errorf("%w: at byte %d is another block than before", ErrDamaged, at.Offset)
	}
	return b, err
}

// State reads on to the end of the machine's state. memory is called for each
// block of memory on the way. Without an error, all of the state is good.
func (r *Reader) State(memory func(Ref, Block) error) (s State, err error) {
	var blob []byte
	for {
		b, err := r.block()
		if err != nil {
			return s, err
		}
		switch {
		case b.Kind == KindPages && blob == nil:
			if err := memory(r.ref, b); err != nil {
				return s, err
			}
		case b.Kind == KindState:
			if len(blob)+len(b.raw) > maxState {
				return s, fmt.Errorf("%w: more than %d bytes of state", ErrDamaged, maxState)
			}
			blob = append(blob, b.raw...)
		case (b.Kind == KindLog || b.Kind == KindEnd) && blob != nil:
			r.ahead = &b
			if err := json.Unmarshal(blob, &s); err != nil || s.Snapshot == nil {
				return s, fmt.Errorf("%w: the machine's state makes no sense", ErrDamaged)
			}
			return s, nil
		case b.Kind == KindEnd:
			end, err := b.end()
			if err == nil {
				err = fmt.Errorf("%w: %q", ErrUnfinished, end.Why)
			}
			return s, err
		default:
			return s, fmt.Errorf("%w: a block of kind %v where it doesn't belong, at byte %d", ErrDamaged, b.Kind, r.ref.Offset)
		}
	}
}

// Log returns the next bytes of the log, and where they lie. io.EOF is the
// recording's proper end; see End. After any other error, what came before is
// good all the same.
func (r *Reader) Log() (lsn uint64, log []byte, at Ref, err error) {
	if r.end != nil {
		return 0, nil, r.ref, io.EOF
	}
	var b Block
	if r.ahead != nil {
		b, r.ahead = *r.ahead, nil
	} else if b, err = r.block(); err != nil {
		return 0, nil, r.ref, err
	}
	switch b.Kind {
	case KindLog:
		lsn, log, err = b.Log()
		if err == nil && lsn != r.lsn {
			err = fmt.Errorf("%w: at byte %d the log goes on at LSN %d, not %d", ErrDamaged, r.ref.Offset, lsn, r.lsn)
		}
		r.lsn += uint64(len(log))
		return lsn, log, r.ref, err
	case KindEnd:
		end, err := b.end()
		if err == nil && end.LSN != r.lsn {
			err = fmt.Errorf("%w: its end is at LSN %d, but the log ends at %d", ErrDamaged, end.LSN, r.lsn)
		}
		if err != nil {
			return 0, nil, r.ref, err
		}
		r.end = &end
		return 0, nil, r.ref, io.EOF
	}
	return 0, nil, r.ref, fmt.Errorf("%w: a block of kind %v where it doesn't belong, at byte %d", ErrDamaged, b.Kind, r.ref.Offset)
}

// End is how the recording ended, once Log has returned io.EOF; else nil.
func (r *Reader) End() *End { return r.end }
