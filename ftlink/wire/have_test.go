package wire

import (
	"bytes"
	"errors"
	"testing"
)

func TestHave(t *testing.T) {
	sums := bytes.Repeat([]byte{1, 2, 3, 4}, SumSize/4*3)
	for _, first := range []int{0, 300, MaxPage} {
		b, err := AppendHave(nil, first, sums)
		if err != nil {
			t.Fatal(err)
		}
		got, back, err := ParseHave(b)
		if err != nil || got != first || !bytes.Equal(back, sums) {
			t.Errorf("from page %d: %d, %d bytes, %v", first, got, len(back), err)
		}
	}
	if b, err := AppendHave(nil, 7, nil); err != nil || len(b) != 0 {
		t.Errorf("the list's end: %x, %v", b, err)
	}
	for _, bad := range []struct {
		first int
		sums  []byte
	}{{-1, sums}, {MaxPage + 1, sums}, {0, sums[1:]}, {0, make([]byte, (MaxHave+1)*SumSize)}} {
		if _, err := AppendHave(nil, bad.first, bad.sums); err == nil {
			t.Errorf("%d bytes from page %d on were taken", len(bad.sums), bad.first)
		}
	}
}

func FuzzHave(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{5})
	f.Add(append([]byte{0x80, 0x02}, make([]byte, 2*SumSize)...))
	f.Add(bytes.Repeat([]byte{0xff}, 30))
	f.Fuzz(func(t *testing.T, b []byte) {
		first, sums, err := ParseHave(b)
		if err != nil {
			if !errors.Is(err, ErrFrame) {
				t.Fatalf("%v isn't ErrFrame", err)
			}
			return
		}
		again, err := AppendHave(nil, first, sums)
		if err != nil {
			t.Fatal(err)
		}
		if f, s, err := ParseHave(again); err != nil || f != first || !bytes.Equal(s, sums) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}
