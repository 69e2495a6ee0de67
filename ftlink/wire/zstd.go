package wire

import (
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// maxRaw bounds what a compressed payload decodes to, in bytes.
const maxRaw = 1 << 20

// The log has coders of its own, so that a small batch of it never waits for
// a large one of pages.
var (
	logEncoder   = sync.OnceValue(newEncoder)
	logDecoder   = sync.OnceValue(newDecoder)
	pagesEncoder = sync.OnceValue(newEncoder)
	pagesDecoder = sync.OnceValue(newDecoder)
)

// newEncoder returns an encoder for EncodeAll, which may be called
// concurrently and then works on one input at a time. TLS guards the bytes,
// so there is no checksum. The options are constants: an error is a bug.
func newEncoder() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(maxRaw), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true))
	if err != nil {
		panic(err)
	}
	return e
}

// newDecoder returns a decoder for DecodeAll that writes no further than the
// capacity of its destination.
func newDecoder() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxRaw),
		zstd.WithDecoderMaxWindow(maxRaw), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic(err)
	}
	return d
}

// decompress decodes src into dst, which it fills exactly. len(dst) is at
// most maxRaw.
func decompress(d *zstd.Decoder, dst, src []byte) error {
	n := len(dst)
	out, err := d.DecodeAll(src, dst[:0:n])
	if err != nil {
		return fmt.Errorf("%w: %v", ErrFrame, err)
	}
	if len(out) != n {
		return fmt.Errorf("%w: %d bytes after decompression, want %d", ErrFrame, len(out), n)
	}
	return nil
}
