package transfer

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestDeltas makes one delta after the other of pages that change a little or
// wholly, with memories that forget now and then.
func TestDeltas(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const limit = 5000
		var here, there Memo
		contents, applied := map[int][]byte{}, map[int][]byte{}
		for range rapid.IntRange(1, 6).Draw(t, "deltas") {
			pages := rapid.SliceOfNDistinct(rapid.IntRange(0, 60), 0, 20, rapid.ID[int]).Draw(t, "pages")
			slices.Sort(pages)
			for _, p := range pages {
				if c := contents[p]; c == nil || rapid.Bool().Draw(t, "anew") {
					contents[p] = bytes.Repeat([]byte{rapid.Byte().Draw(t, "content")}, PageSize)
				} else {
					copy(c[rapid.IntRange(0, PageSize-1).Draw(t, "at"):], rapid.SliceOfN(rapid.Byte(), 1, 3000).Draw(t, "change"))
				}
			}
			head := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "head")
			b := AppendDelta(nil, head, pages, func(p int) []byte { return contents[p] }, &here)
			n := 0
			got, err := ApplyDelta(b, len(head), limit, &there, func(p int, content []byte) {
				applied[p] = bytes.Clone(content)
				n++
			})
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, head) || n != len(pages) {
				t.Fatalf("head %x became %x; %d pages of %d arrived", head, got, n, len(pages))
			}
			for p := range contents {
				if !bytes.Equal(contents[p], applied[p]) {
					t.Fatalf("page %d has other content", p)
				}
			}
			if rapid.Bool().Draw(t, "clone") { // as whoever comes back to here does
				there = there.Clone()
			}
			if rapid.IntRange(0, 3).Draw(t, "forget") == 0 {
				here.Forget()
				there.Forget()
			}
		}
	})
}

// TestMemoSparesWhatIsKnown: a page that came before costs what changed in it.
func TestMemoSparesWhatIsKnown(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	contents := make([][]byte, 40)
	var pages []int
	for p := range contents {
		contents[p] = make([]byte, PageSize)
		for i := range contents[p] {
			contents[p][i] = byte(r.Uint32())
		}
		pages = append(pages, p)
	}
	var memo Memo
	page := func(p int) []byte { return contents[p] }
	first := AppendDelta(nil, nil, pages, page, &memo)
	for _, c := range contents {
		c[100]++
	}
	if second := AppendDelta(nil, nil, pages, page, &memo); len(second) > 2000 || len(first) < 40*PageSize {
		t.Errorf("40 pages of noise take %d bytes, one byte in each of them %d", len(first), len(second))
	}
}

// TestMemoHasALimit: it never remembers more than MaxMemo pages, and both sides
// forget at the same delta.
func TestMemoHasALimit(t *testing.T) {
	var here, there Memo
	page := func(p int) []byte { return bytes.Repeat([]byte{byte(p) | 1}, PageSize) }
	for _, n := range []int{MaxMemo - 1, MaxMemo + 1, 3, MaxMemo, MaxMemo, 1} {
		var pages []int
		for p := range n {
			pages = append(pages, p+n)
		}
		b := AppendDelta(nil, nil, pages, page, &here)
		if _, err := ApplyDelta(b, 0, 4*MaxMemo, &there, func(p int, c []byte) {
			if !bytes.Equal(c, page(p)) {
				t.Fatalf("page %d has other content", p)
			}
		}); err != nil {
			t.Fatal(err)
		}
		if len(here.pages) > MaxMemo || len(here.pages) != len(there.pages) {
			t.Errorf("%d pages are remembered here, %d there", len(here.pages), len(there.pages))
		}
	}
}

// TestDeltaIsAppliedWholeOrNotAtAll cuts a delta everywhere.
func TestDeltaIsAppliedWholeOrNotAtAll(t *testing.T) {
	whole := AppendDelta(nil, []byte("head"), []int{1, 2, 700}, func(p int) []byte { return bytes.Repeat([]byte{byte(p), 3}, PageSize/2) }, &Memo{})
	for n := range whole {
		_, err := ApplyDelta(whole[:n], 4, 1000, &Memo{}, func(int, []byte) { t.Fatalf("a page was set from %d of %d bytes", n, len(whole)) })
		if !errors.Is(err, ErrDelta) {
			t.Fatalf("%d of %d bytes: %v, want ErrDelta", n, len(whole), err)
		}
	}
	if _, err := ApplyDelta(whole, 4, 700, &Memo{}, func(int, []byte) { t.Error("a page was set") }); !errors.Is(err, ErrDelta) {
		t.Errorf("page 700 of 700: %v, want ErrDelta", err)
	}
	for _, headLen := range []int{0, 3, 5} {
		if _, err := ApplyDelta(whole, headLen, 1000, &Memo{}, func(int, []byte) { t.Error("a page was set") }); !errors.Is(err, ErrDelta) {
			t.Errorf("a head of %d bytes instead of 4: %v, want ErrDelta", headLen, err)
		}
	}
}

// TestZeroPagesTakeNoContent: a page of zeroes costs its number.
func TestZeroPagesTakeNoContent(t *testing.T) {
	var pages []int
	for p := range 1000 {
		pages = append(pages, p)
	}
	b := AppendDelta(nil, nil, pages, func(int) []byte { return make([]byte, PageSize) }, &Memo{})
	if len(b) > 1100 {
		t.Errorf("1,000 pages of zeroes take %d bytes", len(b))
	}
}

func FuzzApplyDelta(f *testing.F) {
	page := func(p int) []byte { return bytes.Repeat([]byte{byte(p)}, PageSize) }
	remembered := func() *Memo {
		var m Memo
		AppendDelta(nil, nil, []int{5, 9}, page, &m)
		return &m
	}
	f.Add(AppendDelta(nil, []byte{7}, []int{0, 5}, page, &Memo{}))
	f.Add(AppendDelta(nil, []byte{7}, []int{0, 5}, page, remembered()))
	f.Add([]byte{1, 2, 3, 0x80, 0x80, 1})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 64
		last := -1
		_, err := ApplyDelta(b, 1, limit, remembered(), func(p int, content []byte) {
			if p <= last || p >= limit || len(content) != PageSize {
				t.Fatalf("page %d behind %d with %d bytes", p, last, len(content))
			}
			last = p
		})
		if err != nil && !errors.Is(err, ErrDelta) {
			t.Fatalf("error %v isn't ErrDelta", err)
		}
	})
}
