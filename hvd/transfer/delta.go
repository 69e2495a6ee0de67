// Package transfer is the form in which pages of a machine's memory go into the
// log: what a resync ships.
//
// # Place
//
// hvd/machine makes and applies deltas. A seeding's pages travel as ftlink/wire's
// frames instead, because they go beside the log and not in it. Pure. It imports
// nothing of ours.
//
// # Delta
//
// Page numbers are of the mapping, in rising order. All integers are varints.
//
//	count
//	count x (page less the page before, the first less -1) << 2 + form
//	length of the block
//	block   one zstd frame with its content size: a head of a length that
//	        both sides know, then the contents of the pages, 4096 bytes each
//
//	form 0  the page itself
//	     1  all of the page is zero; it isn't in the block
//	     2  the page, each byte XOR that of the page as a Memo remembers it
//
// A guest that must be stopped by resyncs loops, and writes the same pages between
// two of them. What differs in those is little.
//
// A resync is made while the guest stands still, so the frame is of zstd's
// fastest level: 3 ms for a megabyte of programs, three times what S2 takes, for
// a fifth to a third fewer bytes.
package transfer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// PageSize is the unit of a transfer in bytes.
const PageSize = 4096

// MaxDelta bounds the pages of one delta: 256 MiB.
const MaxDelta = 64 << 10

// MaxHead bounds the bytes that travel in front of the pages.
const MaxHead = 64 << 10

// ErrDelta says that bytes are no delta.
var ErrDelta = errors.New("corrupt page delta")

// Both are made for use by several goroutines and keep nothing from call to
// call but buffers. Neither option can be wrong.
var (
	encoder = sync.OnceValue(func() *zstd.Encoder {
		e, _ := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
			zstd.WithEncoderCRC(false), zstd.WithZeroFrames(true), zstd.WithSingleSegment(true), zstd.WithWindowSize(1<<20))
		return e
	})
	decoder = sync.OnceValue(func() *zstd.Decoder {
		d, _ := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxDelta*PageSize+MaxHead))
		return d
	})
)

var zeroPage [PageSize]byte

// The forms of a page in a delta.
const (
	plain = iota
	zero
	differs
	forms
)

// AppendDelta encodes head and pages, which are in rising order, behind dst.
// page returns the content of one. memo remembers them.
func AppendDelta(dst, head []byte, pages []int, page func(int) []byte, memo *Memo) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(pages)))
	last := -1
	raw := make([]byte, 0, len(head)+len(pages)*PageSize)
	raw = append(raw, head...)
	for _, p := range pages {
		content := page(p)
		form, known := plain, false
		if [PageSize]byte(content) == zeroPage {
			form = zero
		} else if raw, known = memo.differs(raw, p, content); known {
			form = differs
		} else {
			raw = append(raw, content...)
		}
		dst = binary.AppendUvarint(dst, uint64(p-last)<<2|uint64(form))
		last = p
	}
	memo.keep(pages, func(i int) []byte { return page(pages[i]) })
	z := encoder().EncodeAll(raw, nil)
	dst = binary.AppendUvarint(dst, uint64(len(z)))
	return append(dst, z...)
}

// ApplyDelta decodes what AppendDelta wrote: it calls set for each page and
// returns the head, of headLen bytes, after it has checked everything: a corrupt
// delta changes nothing. limit is the number of pages that exist. memo remembers the
// same pages as AppendDelta's.
func ApplyDelta(b []byte, headLen, limit int, memo *Memo, set func(page int, content []byte)) ([]byte, error) {
	count, b, ok := uvarint(b)
	if !ok || count > MaxDelta || count > uint64(limit) {
		return nil, fmt.Errorf("%w: count", ErrDelta)
	}
	pages, form := make([]int, count), make([]uint64, count)
	last, full := -1, 0
	for i := range pages {
		var d uint64
		if d, b, ok = uvarint(b); !ok || d>>2 == 0 || d>>2 > uint64(limit-1-last) {
			return nil, fmt.Errorf("%w: page number", ErrDelta)
		}
		last += int(d >> 2)
		pages[i], form[i] = last, d&3
		if form[i] >= forms || form[i] == differs && !memo.has(last) {
			return nil, fmt.Errorf("%w: form %d of page %#x", ErrDelta, form[i], last)
		}
		if form[i] != zero {
			full++
		}
	}
	n, b, ok := uvarint(b)
	if !ok || n != uint64(len(b)) {
		return nil, fmt.Errorf("%w: length", ErrDelta)
	}
	raw, err := inflate(b, headLen+full*PageSize)
	if err != nil {
		return nil, err
	}
	left := raw[headLen:]
	contents := make([][]byte, count)
	for i, p := range pages {
		contents[i] = zeroPage[:]
		if form[i] == zero {
			continue
		}
		contents[i], left = left[:PageSize], left[PageSize:]
		if form[i] == differs {
			memo.add(p, contents[i])
		}
	}
	memo.keep(pages, func(i int) []byte { return contents[i] })
	for i, p := range pages {
		set(p, contents[i])
	}
	return raw[:headLen], nil
}

// inflate decodes a frame of just size bytes; the frame's own word is looked at
// before memory is set aside for it.
func inflate(z []byte, size int) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(z); err != nil || !h.HasFCS || h.FrameContentSize != uint64(size) {
		return nil, fmt.Errorf("%w: size of the contents", ErrDelta)
	}
	raw, err := decoder().DecodeAll(z, make([]byte, 0, size))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDelta, err)
	}
	if len(raw) != size {
		return nil, fmt.Errorf("%w: %d bytes of contents, want %d", ErrDelta, len(raw), size)
	}
	return raw, nil
}

func uvarint(b []byte) (uint64, []byte, bool) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, false
	}
	return v, b[n:], true
}
