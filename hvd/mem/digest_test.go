package mem

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// TestHashPage: every bit of a page counts, but for accessed bits in what may
// be a page table.
func TestHashPage(t *testing.T) {
	m, err := New(4 * PageSize)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	const table, text = 1, 2
	for i := range 100 {
		binary.LittleEndian.PutUint64(m.Page(table)[i*40:], uint64(i%4)<<12|0x8000000000000067)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range m.Page(text) {
		m.Page(text)[i] = byte(r.Uint32())
	}
	for page, want := range []bool{false, true, false} {
		if m.MayBeTable(page) != want {
			t.Errorf("page %d: MayBeTable is %t", page, !want)
		}
	}
	for _, page := range []int{0, table, text} {
		was := m.HashPage(page)
		for bit := range PageSize * 8 {
			b := m.Page(page)
			word := binary.LittleEndian.Uint64(b[bit/64*8:])
			b[bit/8] ^= 1 << (bit % 8)
			seen := m.HashPage(page) != was
			b[bit/8] ^= 1 << (bit % 8)
			want := page != table || word&1 == 0 || bit%64 != 5
			if seen != want {
				t.Fatalf("page %d, bit %d of word %#x: seen %t, want %t", page, bit%64, word, seen, want)
			}
		}
	}
}

// BenchmarkHashPage is what the memory window costs, by what is in a page.
func BenchmarkHashPage(b *testing.B) {
	m, err := New(3 * PageSize)
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	for i := range PageSize {
		m.Page(1)[i] = byte(rand.Uint32())
	}
	for i := 0; i < PageSize; i += 8 {
		binary.LittleEndian.PutUint64(m.Page(2)[i:], 0x1067)
	}
	for n, name := range []string{"zero", "data", "table"} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(PageSize)
			for b.Loop() {
				m.HashPage(n)
			}
		})
	}
}
