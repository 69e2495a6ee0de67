package transfer

import (
	"encoding/binary"
	"maps"
)

// MaxMemo bounds the pages that a Memo remembers: 8 MiB. With more, it forgets all
// and begins anew.
const MaxMemo = 2048

// Memo remembers the pages that deltas brought, as they were then, so that the next
// delta which has such a page needs only what changed. The copy that makes
// the deltas and the one that applies them have one each; both forget at the same
// delta. The zero value remembers nothing.
type Memo struct{ pages map[int]*[PageSize]byte }

// Forget forgets all pages.
func (m *Memo) Forget() { m.pages = nil }

// Empty says that it remembers none.
func (m *Memo) Empty() bool { return len(m.pages) == 0 }

// Clone is a memory of the same pages.
func (m *Memo) Clone() Memo { return Memo{maps.Clone(m.pages)} }

// keep remembers pages with their contents, as they are now.
func (m *Memo) keep(pages []int, content func(i int) []byte) {
	if len(pages) > MaxMemo {
		m.pages = nil
		return
	}
	fresh := 0
	for _, p := range pages {
		if m.pages[p] == nil {
			fresh++
		}
	}
	if m.pages == nil || len(m.pages)+fresh > MaxMemo {
		m.pages = make(map[int]*[PageSize]byte, len(pages))
	}
	for i, p := range pages {
		c := [PageSize]byte(content(i))
		m.pages[p] = &c // not into the old one, which a clone may have
	}
}

// differs appends what differs between a page and what is remembered of it, if
// much of it is the same.
func (m *Memo) differs(dst []byte, page int, content []byte) ([]byte, bool) {
	old := m.pages[page]
	if old == nil {
		return dst, false
	}
	same := 0
	start := len(dst)
	for i := 0; i < PageSize; i += 8 {
		v := binary.LittleEndian.Uint64(content[i:]) ^ binary.LittleEndian.Uint64(old[i:])
		if v == 0 {
			same++
		}
		dst = binary.LittleEndian.AppendUint64(dst, v)
	}
	if same < PageSize/8/2 {
		return dst[:start], false
	}
	return dst, true
}

// add makes a page of what differs.
func (m *Memo) add(page int, diff []byte) {
	for i, v := range m.pages[page] {
		diff[i] ^= v
	}
}

// has says whether a page is remembered.
func (m *Memo) has(page int) bool { return m.pages[page] != nil }
