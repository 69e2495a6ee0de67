package kallsyms

import (
	"bytes"
	"slices"
)

// digits is how the tokens of the ten digits follow each other. A character
// that occurs in a name stands for itself, and all digits do.
var digits = []byte("0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00")

// candidate is a table whose tokens are found and whose names aren't yet.
type candidate struct {
	Table
	tokenTable int // offset in the segment
	indexEnd   int // offset of what is behind token_index
}

// maxTokens limits the token table, in bytes.
const maxTokens = 256 * 64

// findTokens looks for token_table and token_index from offset at on, and says
// where to go on if that proves wrong; nil when there are none.
func findTokens(s Segment, at int, work *int) (*candidate, int) {
	for ; *work > 0; at++ {
		*work -= 256
		i := bytes.Index(s.Data[at:], digits)
		if i < 0 {
			return nil, 0
		}
		at += i
		start := before(s.Data, at, '0')
		if start < 0 {
			continue
		}
		c := &candidate{tokenTable: start}
		c.segment = s
		if c.readTokens() {
			return c, at + 1
		}
	}
	return nil, 0
}

// before goes back over n strings from offset at, where a string begins; -1
// when there aren't so many.
func before(b []byte, at, n int) int {
	low := max(0, at-maxTokens)
	for range n {
		if at-1 < low || b[at-1] != 0 {
			return -1
		}
		// Strings may be empty: an unused token.
		at = low + bytes.LastIndexByte(b[low:at-1], 0) + 1
	}
	return at
}

// readTokens reads the 256 tokens and proves them by the index behind them.
func (c *candidate) readTokens() bool {
	b := c.segment.Data
	b = b[:min(len(b), c.tokenTable+maxTokens)]
	at := c.tokenTable
	var index [256]int
	for k := range c.tokens {
		n := bytes.IndexByte(b[at:], 0)
		if n < 0 {
			return false
		}
		c.tokens[k], index[k] = b[at:at+n], at-c.tokenTable
		at += n + 1
	}
	at = c.align(at, 4)
	for ; at <= c.align(at, 8); at += 4 {
		if at+512 > len(c.segment.Data) {
			return false
		}
		same := true
		for k, v := range index {
			same = same && int(le.Uint16(c.segment.Data[at+2*k:])) == v
		}
		if same {
			c.indexEnd = at + 512
			return true
		}
		if at == c.align(at, 8) {
			break
		}
	}
	return false
}

// align rounds an offset up so that its address is a multiple of n.
func (c *candidate) align(at, n int) int {
	return at + int(-(c.segment.Addr+uint64(at))&uint64(n-1))
}

// findNames looks backwards from the token table for num_syms, and then for the
// addresses.
func (c *candidate) findNames(work *int) bool {
	b := c.segment.Data
	first := c.align(max(0, c.tokenTable-maxDistance), 4)
	for at := c.align(c.tokenTable, 4) - 8; at >= first; at -= 4 {
		n := le.Uint32(b[at:])
		if n < minSymbols || n > maxSymbols {
			continue
		}
		if *work <= 0 {
			return false
		}
		for _, names := range []int{at + 4, at + 8} {
			if names == at+8 && le.Uint32(b[at+4:]) != 0 {
				continue
			}
			if !c.walk(names, int(n), work) {
				continue
			}
			c.names, c.count = b[names:c.tokenTable], int(n)
			if c.findAddresses(at) {
				return true
			}
		}
	}
	return false
}

// walk goes over n names and proves them by the markers behind them.
func (c *candidate) walk(start, n int, work *int) bool {
	names := c.segment.Data[start:c.tokenTable]
	if n > len(names)/2 {
		return false
	}
	var markers []uint64
	at := 0
	for i := range n {
		if i%256 == 0 {
			markers = append(markers, uint64(at))
		}
		*work--
		tokens, next := nextName(names, at)
		if tokens == nil {
			return false
		}
		at = next
	}
	end := start + at
	return c.markers(c.align(end, 4), 4, markers) || c.markers(c.align(end, 8), 4, markers) ||
		c.markers(c.align(end, 8), 8, markers)
}

// markers tells whether the markers at an offset, of 4 or 8 bytes, are these.
func (c *candidate) markers(at, size int, want []uint64) bool {
	if at+size*len(want) > c.tokenTable {
		return false
	}
	for i, w := range want {
		p := c.segment.Data[at+size*i:]
		if size == 4 && uint64(le.Uint32(p)) != w || size == 8 && le.Uint64(p) != w {
			return false
		}
	}
	return true
}

// findAddresses tries the places where the offsets may be, and their codings.
// num is the offset of num_syms.
func (c *candidate) findAddresses(num int) bool {
	size := 4 * c.count
	offsets, old := c.align(c.indexEnd, 4), num-8
	// Relative offsets read as places are in order as well, so those come last.
	return c.decode(offsets, c.align(offsets+size, 8)) || c.decode(old-(size+7)&^7, old) || c.place(offsets)
}

// decode reads the offsets with the relative base at an offset.
func (c *candidate) decode(offsets, base int) bool {
	b := c.segment.Data
	if offsets < 0 || base < 0 || base+8 > len(b) || offsets+4*c.count > len(b) {
		return false
	}
	from := le.Uint64(b[base:])
	if from < linkBase {
		return false
	}
	return c.rising(func(i int) uint64 {
		o := int32(le.Uint32(b[offsets+4*i:]))
		if o >= 0 {
			return uint64(o)
		}
		return from - 1 - uint64(int64(o))
	}) || c.rising(func(i int) uint64 {
		return from + uint64(le.Uint32(b[offsets+4*i:]))
	})
}

// place reads offsets that are relative to their own place.
func (c *candidate) place(offsets int) bool {
	b := c.segment.Data
	if offsets+4*c.count > len(b) {
		return false
	}
	return c.rising(func(i int) uint64 {
		at := offsets + 4*i
		return c.segment.Addr + uint64(at) + uint64(int64(int32(le.Uint32(b[at:]))))
	})
}

// linkBase is the lowest address at which a kernel's code is mapped
// (__START_KERNEL_map).
const linkBase = 0xffffffff80000000

// rising takes the addresses if they are in order and end in the kernel.
func (c *candidate) rising(addr func(int) uint64) bool {
	if addr(c.count-1) < linkBase {
		return false
	}
	list := make([]uint64, 0, c.count)
	for i := range c.count {
		a := addr(i)
		if i > 0 && a < list[i-1] {
			return false
		}
		list = append(list, a)
	}
	c.addrs = slices.Clip(list)
	return true
}
