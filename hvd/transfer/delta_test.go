package transfer

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestDeltaRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const limit = 5000
		set := rapid.MapOfN(rapid.IntRange(0, limit-1), rapid.Byte(), 0, 40).Draw(t, "pages")
		var pages []int
		for p := range set {
			pages = append(pages, p)
		}
		slices.Sort(pages)
		page := func(p int) []byte { return bytes.Repeat([]byte{set[p]}, PageSize) }
		head := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "head")
		got := map[int]byte{}
		gotHead, err := ApplyDelta(AppendDelta(nil, head, pages, page), len(head), limit, func(p int, content []byte) {
			if !bytes.Equal(content, page(p)) {
				t.Errorf("page %d has other content", p)
			}
			got[p] = content[0]
		})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(gotHead, head) {
			t.Errorf("head %x became %x", head, gotHead)
		}
		if len(got) != len(set) {
			t.Fatalf("%d pages of %d arrived", len(got), len(set))
		}
	})
}

// TestDeltaIsAppliedWholeOrNotAtAll cuts a delta everywhere.
func TestDeltaIsAppliedWholeOrNotAtAll(t *testing.T) {
	whole := AppendDelta(nil, []byte("head"), []int{1, 2, 700}, func(p int) []byte { return bytes.Repeat([]byte{byte(p), 3}, PageSize/2) })
	for n := range whole {
		_, err := ApplyDelta(whole[:n], 4, 1000, func(int, []byte) { t.Fatalf("a page was set from %d of %d bytes", n, len(whole)) })
		if !errors.Is(err, ErrDelta) {
			t.Fatalf("%d of %d bytes: %v, want ErrDelta", n, len(whole), err)
		}
	}
	if _, err := ApplyDelta(whole, 4, 700, func(int, []byte) { t.Error("a page was set") }); !errors.Is(err, ErrDelta) {
		t.Errorf("page 700 of 700: %v, want ErrDelta", err)
	}
	for _, headLen := range []int{0, 3, 5} {
		if _, err := ApplyDelta(whole, headLen, 1000, func(int, []byte) { t.Error("a page was set") }); !errors.Is(err, ErrDelta) {
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
	b := AppendDelta(nil, nil, pages, func(int) []byte { return make([]byte, PageSize) })
	if len(b) > 1100 {
		t.Errorf("1,000 pages of zeroes take %d bytes", len(b))
	}
}

func FuzzApplyDelta(f *testing.F) {
	f.Add(AppendDelta(nil, []byte{7}, []int{0, 5}, func(p int) []byte { return bytes.Repeat([]byte{byte(p)}, PageSize) }))
	f.Add([]byte{1, 2, 3, 0x80, 0x80, 1})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 64
		last := -1
		_, err := ApplyDelta(b, 1, limit, func(p int, content []byte) {
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
