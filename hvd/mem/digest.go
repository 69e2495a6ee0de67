package mem

import (
	"bytes"
	"encoding/binary"

	"github.com/zeebo/xxh3"
)

// The bits of a page table's entry that count here (AMD64 APM volume 2, 5.3).
const (
	entryPresent  = 1 << 0
	entryAccessed = 1 << 5
	entryFrame    = 1<<40 - 1 // of the entry shifted right by 12
)

// zeros is what many of a guest's pages are, and ofZeros its hash.
var (
	zeros   = make([]byte, PageSize)
	ofZeros = xxh3.Hash(zeros)
)

// HashPage hashes page n so that two copies of a guest can be compared: a page
// that may be one of the guest's page tables counts without its accessed bits.
//
// A processor sets those bits when it likes, by speculation too, so they are no
// function of what the guest did. Which pages are tables only the guest
// knows: here it is any page all of whose odd words could be entries that name
// memory or devices below 4 GiB. Text, code and most data fail that within a
// few words. What the hash can't see is bit 5 of an odd word in the others.
func (m *Memory) HashPage(n int) uint64 {
	page := m.Page(n)
	switch {
	case bytes.Equal(page, zeros): // a third of what hashing takes
		return ofZeros
	case !m.mayBeTable(page):
		return xxh3.Hash(page)
	}
	for i := 0; i < PageSize; i += 8 {
		w := binary.LittleEndian.Uint64(page[i:])
		binary.LittleEndian.PutUint64(m.bare[i:], w&^(w&entryPresent*entryAccessed))
	}
	return xxh3.Hash(m.bare[:])
}

// MayBeTable says that page n may be one of the guest's page tables, as HashPage
// sees it, and has an accessed bit set: a processor may have written it without
// the guest's doing.
func (m *Memory) MayBeTable(n int) bool { return m.mayBeTable(m.Page(n)) }

func (m *Memory) mayBeTable(page []byte) bool {
	frames := max(m.Size()+HighBase-LowMax, HighBase) / PageSize
	any := uint64(0)
	for i := 0; i < PageSize; i += 64 {
		line := page[i : i+64 : i+64]
		if (line[0]|line[8]|line[16]|line[24]|line[32]|line[40]|line[48]|line[56])&entryPresent == 0 {
			continue
		}
		for ; len(line) > 0; line = line[8:] {
			w := binary.LittleEndian.Uint64(line)
			if w&entryPresent == 0 {
				continue
			}
			if w>>12&entryFrame >= frames {
				return false
			}
			any |= w
		}
	}
	return any&entryAccessed != 0
}
