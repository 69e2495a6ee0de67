package mem

import (
	"encoding/binary"

	"github.com/zeebo/xxh3"
)

// The bits of a page table's entry that count here (AMD64 APM volume 2, 5.3).
const (
	entryPresent  = 1 << 0
	entryAccessed = 1 << 5
	entryFrame    = 1<<40 - 1 // of the entry shifted right by 12
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
	var bare [PageSize]byte
	if !m.withoutAccessed(page, &bare) {
		return xxh3.Hash(page)
	}
	return xxh3.Hash(bare[:])
}

// MayBeTable says that page n may be one of the guest's page tables, as HashPage
// sees it, and has an accessed bit set: a processor may have written it without
// the guest's doing.
func (m *Memory) MayBeTable(n int) bool {
	var bare [PageSize]byte
	return m.withoutAccessed(m.Page(n), &bare)
}

// withoutAccessed copies page into bare without its accessed bits, and reports
// false if it is no page table or has none of them set.
func (m *Memory) withoutAccessed(page []byte, bare *[PageSize]byte) bool {
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
	if any&entryAccessed == 0 {
		return false
	}
	copy(bare[:], page)
	for i := 0; i < PageSize; i += 8 {
		if w := binary.LittleEndian.Uint64(page[i:]); w&entryPresent != 0 {
			binary.LittleEndian.PutUint64(bare[i:], w&^entryAccessed)
		}
	}
	return true
}
