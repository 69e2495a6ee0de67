package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Reader reads frames from a stream. It holds one payload, of at most
// MaxPayload bytes.
type Reader struct {
	r      *bufio.Reader
	header [HeaderSize]byte
	buf    []byte
}

// keepBuffer is the payload buffer that a Reader keeps between frames.
const keepBuffer = 1 << 20

// NewReader returns a reader of the frames in r.
func NewReader(r io.Reader) *Reader {
	return &Reader{r: bufio.NewReaderSize(r, 32<<10)}
}

// Next reads a frame. Its payload is valid until the call after. The error is
// io.EOF when the stream ends between two frames, io.ErrUnexpectedEOF inside
// of one, and wraps ErrFrame when the bytes are no frame; nothing can be read
// after an error.
func (r *Reader) Next() (Frame, error) {
	if _, err := io.ReadFull(r.r, r.header[:]); err != nil {
		return Frame{}, err
	}
	t, flags := Type(r.header[0]), r.header[1]
	if reserved := binary.LittleEndian.Uint16(r.header[2:]); reserved != 0 {
		return Frame{}, fmt.Errorf("%w: reserved field is %#x", ErrFrame, reserved)
	}
	length := int(binary.LittleEndian.Uint32(r.header[4:]))
	if err := check(t, flags, length); err != nil {
		return Frame{}, err
	}
	if cap(r.buf) < length || (cap(r.buf) > keepBuffer && length <= keepBuffer) {
		r.buf = make([]byte, length)
	}
	r.buf = r.buf[:length]
	if _, err := io.ReadFull(r.r, r.buf); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	return Frame{Type: t, Flags: flags, Payload: r.buf}, nil
}
