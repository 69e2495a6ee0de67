package bzimage

import (
	"errors"
	"io"

	"github.com/pierrec/lz4/v4"
)

// lz4Reader unpacks LZ4's legacy frame, which is what the kernel uses: after
// the magic number, blocks of up to 8 MiB, each with its packed size in four
// bytes before it.
type lz4Reader struct {
	b   []byte // packed, from the next block on
	buf []byte // room for one unpacked block
	out []byte // unpacked, and not read yet
}

// lz4Block is the unpacked size of every block but the last.
const lz4Block = 8 << 20

// Read implements io.Reader.
func (r *lz4Reader) Read(p []byte) (int, error) {
	for len(r.out) == 0 {
		if len(r.b) == 0 {
			return 0, io.EOF
		}
		if len(r.b) < 4 {
			return 0, io.ErrUnexpectedEOF
		}
		size := le.Uint32(r.b)
		if uint64(size) > uint64(len(r.b)-4) {
			return 0, errors.New("a block goes past the end")
		}
		if r.buf == nil {
			r.buf = make([]byte, lz4Block)
		}
		n, err := lz4.UncompressBlock(r.b[4:4+size], r.buf)
		if err != nil {
			return 0, err
		}
		r.out, r.b = r.buf[:n], r.b[4+size:]
	}
	n := copy(p, r.out)
	r.out = r.out[n:]
	return n, nil
}
