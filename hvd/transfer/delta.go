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
//	block   one S2 block: a head of a length that both sides know, then the
//	        contents of the pages, 4096 bytes each
//
//	form 0  the page itself
//	     1  all of the page is zero; it isn't in the block
//	     2  the page, each byte XOR that of the page as a Memo remembers it
//
// A guest that must be stopped by resyncs loops, and writes the same pages between
// two of them. What differs in those is little.
//
// A resync is made while the guest stands still, and its secondary has to keep up:
// S2 takes a small part of the instructions of zstd's fastest level, to pack and to unpack, for a
// quarter more bytes.
package transfer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/klauspost/compress/s2"
)

// PageSize is the unit of a transfer in bytes.
const PageSize = 4096

// MaxDelta bounds the pages of one delta: 256 MiB.
const MaxDelta = 64 << 10

// MaxHead bounds the bytes that travel in front of the pages.
const MaxHead = 64 << 10

// ErrDelta says that bytes are no delta.
var ErrDelta = errors.New("corrupt page delta")

// scratch holds buffers for contents that aren't packed: a resync of a busy guest
// is some megabytes, too much to get anew from the system each time.
var scratch = sync.Pool{New: func() any { return new([]byte) }}

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
	buf := scratch.Get().(*[]byte)
	defer scratch.Put(buf)
	raw := append(slices.Grow((*buf)[:0], len(head)+len(pages)*PageSize), head...)
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
	*buf = raw
	packed := scratch.Get().(*[]byte)
	defer scratch.Put(packed)
	*packed = slices.Grow((*packed)[:0], s2.MaxEncodedLen(len(raw)))
	z := s2.Encode((*packed)[:cap(*packed)], raw)
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
	buf := scratch.Get().(*[]byte)
	defer scratch.Put(buf)
	raw, err := unpack(*buf, b, headLen+full*PageSize)
	if err != nil {
		return nil, err
	}
	*buf = raw
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
	return slices.Clone(raw[:headLen]), nil
}

// unpack decodes a block of just size bytes into buf, if that has room; the block's
// own word is looked at before memory is set aside for it.
func unpack(buf, z []byte, size int) ([]byte, error) {
	if n, err := s2.DecodedLen(z); err != nil || n != size {
		return nil, fmt.Errorf("%w: size of the contents", ErrDelta)
	}
	raw, err := s2.Decode(slices.Grow(buf[:0], size)[:size], z)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDelta, err)
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
