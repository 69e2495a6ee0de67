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
//	count x (page less the page before, the first less -1)
//	length of the compressed contents
//	contents of all pages, one behind the other, one S2 block
//
// S2 rather than zstd: a resync is made while the guest stands still.
package transfer

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/klauspost/compress/s2"
)

// PageSize is the unit of a transfer in bytes.
const PageSize = 4096

// MaxDelta bounds the pages of one delta: 256 MiB.
const MaxDelta = 64 << 10

// ErrDelta says that bytes are no delta.
var ErrDelta = errors.New("corrupt page delta")

// AppendDelta encodes pages, which are in rising order, behind dst. page
// returns the content of one.
func AppendDelta(dst []byte, pages []int, page func(int) []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(pages)))
	last := -1
	raw := make([]byte, 0, len(pages)*PageSize)
	for _, p := range pages {
		dst = binary.AppendUvarint(dst, uint64(p-last))
		last = p
		raw = append(raw, page(p)...)
	}
	z := s2.Encode(nil, raw)
	dst = binary.AppendUvarint(dst, uint64(len(z)))
	return append(dst, z...)
}

// ApplyDelta decodes what AppendDelta wrote and calls set for each page, after
// it has checked everything: a corrupt delta changes nothing. limit is the
// number of pages that exist.
func ApplyDelta(b []byte, limit int, set func(page int, content []byte)) error {
	count, b, ok := uvarint(b)
	if !ok || count > MaxDelta || count > uint64(limit) {
		return fmt.Errorf("%w: count", ErrDelta)
	}
	pages := make([]int, count)
	last := -1
	for i := range pages {
		var d uint64
		if d, b, ok = uvarint(b); !ok || d == 0 || d > uint64(limit-1-last) {
			return fmt.Errorf("%w: page number", ErrDelta)
		}
		last += int(d)
		pages[i] = last
	}
	n, b, ok := uvarint(b)
	if !ok || n != uint64(len(b)) {
		return fmt.Errorf("%w: length", ErrDelta)
	}
	if size, err := s2.DecodedLen(b); err != nil || size != len(pages)*PageSize {
		return fmt.Errorf("%w: size of the contents", ErrDelta)
	}
	raw, err := s2.Decode(nil, b)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDelta, err)
	}
	for i, p := range pages {
		set(p, raw[i*PageSize:(i+1)*PageSize])
	}
	return nil
}

func uvarint(b []byte) (uint64, []byte, bool) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, false
	}
	return v, b[n:], true
}
