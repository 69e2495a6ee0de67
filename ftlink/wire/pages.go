package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"sync"
)

const (
	// PageSize is the size of a page, in bytes.
	PageSize = 4096
	// MaxPages is how many pages one Pages frame carries at most. With fewer
	// at a time, the log between two frames waits less: 64 pages are at most
	// 2 ms at 1 Gbit/s.
	MaxPages = maxRaw / PageSize
	// MaxPage is the largest page number.
	MaxPage = 1<<40 - 1
)

// The codings of page contents.
const (
	codingPlain = 0
	codingZstd  = 1
)

var zeroPage [PageSize]byte

// scratch holds buffers of MaxPages pages.
var scratch = sync.Pool{New: func() any {
	b := make([]byte, 0, MaxPages*PageSize)
	return &b
}}

// IsZero tells whether a page has no byte but 0.
func IsZero(page []byte) bool {
	return bytes.Equal(page, zeroPage[:min(len(page), PageSize)])
}

// AppendPages appends the payload of a Pages frame: the pages with the given
// numbers, which rise and are at most MaxPages. page returns the PageSize
// bytes of one; it is called once for each.
func AppendPages(dst []byte, pages []int, page func(int) []byte) ([]byte, error) {
	if len(pages) == 0 || len(pages) > MaxPages {
		return nil, fmt.Errorf("%d pages in a frame, want 1 to %d", len(pages), MaxPages)
	}
	buf := scratch.Get().(*[]byte)
	defer scratch.Put(buf)
	contents := (*buf)[:0]

	coding := len(dst)
	dst = append(dst, codingPlain)
	dst = binary.AppendUvarint(dst, uint64(len(pages)))
	next := 0
	for _, n := range pages {
		if n < next || n > MaxPage {
			return nil, fmt.Errorf("page %d in a frame where %d to %d can stand", n, next, MaxPage)
		}
		data := page(n)
		if len(data) != PageSize {
			return nil, fmt.Errorf("page %d has %d bytes", n, len(data))
		}
		entry := uint64(n-next) << 1
		if !IsZero(data) {
			entry |= 1
			contents = append(contents, data...)
		}
		dst = binary.AppendUvarint(dst, entry)
		next = n + 1
	}
	if len(contents) == 0 {
		return dst, nil
	}
	head := len(dst)
	dst = pagesEncoder().EncodeAll(contents, dst)
	if len(dst)-head >= len(contents) {
		return append(dst[:head], contents...), nil
	}
	dst[coding] = codingZstd
	return dst, nil
}

// DecodePages calls fn for each page in the payload of a Pages frame, in
// rising order of their numbers. The whole payload is checked before. data has
// PageSize bytes, is valid during the call and must not be written to. Numbers
// are at most MaxPage: whether there is such a page is for fn to say, whose
// error ends the call.
func DecodePages(payload []byte, fn func(page int, data []byte) error) error {
	list, contents, coding, err := parsePages(payload)
	if err != nil {
		return err
	}
	if coding == codingZstd {
		buf := scratch.Get().(*[]byte)
		defer scratch.Put(buf)
		raw := (*buf)[:list.data*PageSize]
		if err := decompress(pagesDecoder(), raw, contents); err != nil {
			return err
		}
		contents = raw
	}
	if len(contents) != list.data*PageSize {
		return fmt.Errorf("%w: %d bytes for %d pages", ErrFrame, len(contents), list.data)
	}
	for i, n := range list.numbers[:list.count] {
		data := zeroPage[:]
		if list.zero[i/64]>>(i%64)&1 == 0 {
			data, contents = contents[:PageSize], contents[PageSize:]
		}
		if err := fn(n, data); err != nil {
			return err
		}
	}
	return nil
}

// pageList is the head of a Pages payload.
type pageList struct {
	numbers [MaxPages]int
	zero    [MaxPages / 64]uint64 // bit i: page numbers[i] is all zero
	count   int                   // pages
	data    int                   // pages with contents
}

// parsePages splits a Pages payload into its list of pages and what follows.
func parsePages(b []byte) (*pageList, []byte, byte, error) {
	if len(b) == 0 || b[0] > codingZstd {
		return nil, nil, 0, fmt.Errorf("%w: pages with an unknown coding", ErrFrame)
	}
	coding, b := b[0], b[1:]
	count, n := binary.Uvarint(b)
	if n <= 0 || count == 0 || count > MaxPages {
		return nil, nil, 0, fmt.Errorf("%w: pages with a bad count", ErrFrame)
	}
	b = b[n:]
	list := &pageList{count: int(count)}
	next := uint64(0)
	for i := range list.count {
		entry, n := binary.Uvarint(b)
		// next is at most MaxPage+1 and the difference below 2^63: no overflow.
		if n <= 0 || next+entry>>1 > MaxPage {
			return nil, nil, 0, fmt.Errorf("%w: bad number of page %d of %d", ErrFrame, i, count)
		}
		b = b[n:]
		list.numbers[i] = int(next + entry>>1)
		list.zero[i/64] |= (^entry & 1) << (i % 64)
		next += entry>>1 + 1
	}
	zeros := 0
	for _, w := range list.zero {
		zeros += bits.OnesCount64(w)
	}
	list.data = list.count - zeros
	if list.data == 0 && coding != codingPlain {
		return nil, nil, 0, fmt.Errorf("%w: compressed pages without contents", ErrFrame)
	}
	return list, b, coding, nil
}
