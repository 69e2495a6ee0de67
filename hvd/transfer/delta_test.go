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
		got := map[int]byte{}
		err := ApplyDelta(AppendDelta(nil, pages, page), limit, func(p int, content []byte) {
			if !bytes.Equal(content, page(p)) {
				t.Errorf("page %d has other content", p)
			}
			got[p] = content[0]
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(set) {
			t.Fatalf("%d pages of %d arrived", len(got), len(set))
		}
	})
}

// TestDeltaIsAppliedWholeOrNotAtAll cuts a delta everywhere.
func TestDeltaIsAppliedWholeOrNotAtAll(t *testing.T) {
	whole := AppendDelta(nil, []int{1, 2, 700}, func(p int) []byte { return bytes.Repeat([]byte{byte(p), 3}, PageSize/2) })
	for n := range whole {
		err := ApplyDelta(whole[:n], 1000, func(int, []byte) { t.Fatalf("a page was set from %d of %d bytes", n, len(whole)) })
		if !errors.Is(err, ErrDelta) {
			t.Fatalf("%d of %d bytes: %v, want ErrDelta", n, len(whole), err)
		}
	}
	if err := ApplyDelta(whole, 700, func(int, []byte) { t.Error("a page was set") }); !errors.Is(err, ErrDelta) {
		t.Errorf("page 700 of 700: %v, want ErrDelta", err)
	}
}

func FuzzApplyDelta(f *testing.F) {
	f.Add(AppendDelta(nil, []int{0, 5}, func(int) []byte { return make([]byte, PageSize) }))
	f.Add([]byte{1, 1, 3, 0x80, 0x80, 1})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 64
		last := -1
		err := ApplyDelta(b, limit, func(p int, content []byte) {
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
