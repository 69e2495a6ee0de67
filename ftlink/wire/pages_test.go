package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// fill makes a page of one of three sorts: zero, text, noise.
func fill(sort int, seed uint64) []byte {
	words := []string{"position ", "interrupt ", "the ", "guest ", "executes ", "completion "}
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 0, 2*PageSize)
	for sort != 0 && len(b) < PageSize {
		if sort == 1 {
			b = append(b, words[r.IntN(len(words))]...)
		} else {
			b = append(b, byte(r.Uint32()))
		}
	}
	return b[:PageSize]
}

func TestPagesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		numbers := rapid.SliceOfNDistinct(rapid.IntRange(0, MaxPage), 1, 40, rapid.ID).Draw(t, "pages")
		if rapid.Bool().Draw(t, "dense") {
			for i := range numbers {
				numbers[i] = 100 + i
			}
		}
		slices.Sort(numbers)
		contents := map[int][]byte{}
		for i, n := range numbers {
			contents[n] = fill(rapid.IntRange(0, 2).Draw(t, "sort"), uint64(i))
		}
		payload, err := AppendPages([]byte("before"), numbers, func(n int) []byte { return contents[n] })
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(payload, []byte("before")) {
			t.Fatal("what stood in dst is lost")
		}
		payload = payload[len("before"):]
		if err := (Frame{Type: TypePages, Payload: payload}).Check(); err != nil {
			t.Fatal(err)
		}
		var got []int
		err = DecodePages(payload, func(n int, data []byte) error {
			if !bytes.Equal(data, contents[n]) {
				t.Fatalf("page %d differs", n)
			}
			got = append(got, n)
			return nil
		})
		if err != nil || !slices.Equal(got, numbers) {
			t.Fatalf("pages %v, %v; want %v", got, err, numbers)
		}
	})
}

func TestPagesSize(t *testing.T) {
	var numbers []int
	for i := range MaxPages {
		numbers = append(numbers, 1<<20+i)
	}
	for _, c := range []struct {
		name string
		sort int
		most int
	}{
		{"zero", 0, 270},
		{"text", 1, MaxPages * PageSize * 6 / 10},
		{"noise", 2, MaxPages*PageSize + 270},
	} {
		payload, err := AppendPages(nil, numbers, func(n int) []byte { return fill(c.sort, uint64(n)) })
		if err != nil {
			t.Fatal(err)
		}
		if len(payload) > c.most {
			t.Errorf("%d %s pages: %d bytes, want at most %d", MaxPages, c.name, len(payload), c.most)
		}
	}
}

func TestAppendPagesRefuses(t *testing.T) {
	page := func(int) []byte { return zeroPage[:] }
	for _, numbers := range [][]int{nil, make([]int, MaxPages+1), {2, 1}, {1, 1}, {-1}, {MaxPage + 1}} {
		if _, err := AppendPages(nil, numbers, page); err == nil {
			t.Errorf("%d pages %.20v: no error", len(numbers), numbers)
		}
	}
	if _, err := AppendPages(nil, []int{1}, func(int) []byte { return zeroPage[1:] }); err == nil {
		t.Error("short page: no error")
	}
}

func TestDecodePagesRefuses(t *testing.T) {
	page := hex.EncodeToString(fill(2, 9))
	for _, c := range []struct{ name, payload string }{
		{"empty", ""},
		{"unknown coding", "020100"},
		{"no count", "00"},
		{"count 0", "0000"},
		{"count above the limit", "008102" + "00"},
		{"fewer numbers than pages", "000200"},
		{"number above the limit", "0001" + "808080808040"},
		{"second number above the limit", "0002" + "feffffffff3f" + "00"},
		{"number of 10 bytes", "0001" + "ffffffffffffffffff01"},
		{"contents missing", "000101"},
		{"contents too long", "000101" + page + "00"},
		{"contents of a zero page", "000100" + "00"},
		{"compressed nothing", "010100"},
		{"no zstd frame", "010101" + "aabbccdd"},
		{"one RLE block, too short", "010101" + "28b52ffd" + "20c8" + "430600" + "7a"},
	} {
		payload, err := hex.DecodeString(c.payload)
		if err != nil {
			t.Fatal(err)
		}
		err = DecodePages(payload, func(int, []byte) error {
			t.Errorf("%s: a page came out", c.name)
			return nil
		})
		if !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v, want ErrFrame", c.name, err)
		}
	}
}

func TestDecodePagesStops(t *testing.T) {
	payload, err := AppendPages(nil, []int{1, 2, 3}, func(int) []byte { return zeroPage[:] })
	if err != nil {
		t.Fatal(err)
	}
	stop := errors.New("no such page")
	calls := 0
	err = DecodePages(payload, func(n int, _ []byte) error {
		if calls++; n == 2 {
			return stop
		}
		return nil
	})
	if err != stop || calls != 2 {
		t.Errorf("%d calls, %v", calls, err)
	}
}

func BenchmarkPages(b *testing.B) {
	pages := make([][]byte, 64)
	numbers := make([]int, len(pages))
	for i := range pages {
		pages[i], numbers[i] = fill(i%3, uint64(i)), i
	}
	var dst []byte
	b.SetBytes(int64(len(pages) * PageSize))
	for b.Loop() {
		var err error
		if dst, err = AppendPages(dst[:0], numbers, func(n int) []byte { return pages[n] }); err != nil {
			b.Fatal(err)
		}
		if err = DecodePages(dst, func(int, []byte) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
