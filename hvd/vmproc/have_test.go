package vmproc

import (
	"context"
	"errors"
	"testing"

	"github.com/duet-ft/duet/ftlink/wire"
	"github.com/duet-ft/duet/hvd/transfer"
)

// The sender knows exactly the pages of which it was told.
func TestHave(t *testing.T) {
	const pages, salt = 5000, 42
	page := func(n int) []byte {
		b := make([]byte, transfer.PageSize)
		b[n%len(b)] = byte(n>>8) | 1
		return b
	}
	h := newHave(salt, pages)
	for first := 0; first < pages; first += wire.MaxHave {
		var sums []byte
		for n := first; n < min(pages, first+wire.MaxHave); n++ {
			s := transfer.SumOf(page(n), salt)
			sums = append(sums, s[:]...)
		}
		payload, err := wire.AppendHave(nil, first, sums)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.take(payload); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.take(nil); err != nil {
		t.Fatal(err)
	}
	if err := h.wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	for n := range pages {
		if !h.known(n, page(n)) {
			t.Fatalf("page %d isn't known", n)
		}
		other := page(n)
		other[7] ^= 4
		if h.known(n, other) {
			t.Fatalf("page %d is known with another content", n)
		}
	}
	if h.known(pages, page(0)) {
		t.Error("a page is known of which nobody told")
	}
}

// A list with gaps, overlaps, too many pages or something behind its end is
// refused, and one without an end isn't waited for longer than the transfer.
func TestHaveRefuses(t *testing.T) {
	frame := func(first, n int) []byte {
		b, err := wire.AppendHave(nil, first, make([]byte, n*wire.SumSize))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, frames := range map[string][][]byte{
		"a gap":          {frame(0, 2), frame(3, 1)},
		"an overlap":     {frame(0, 2), frame(1, 1)},
		"too many":       {frame(0, 8), frame(8, 3)},
		"behind its end": {frame(0, 2), nil, frame(2, 1)},
		"two ends":       {nil, nil},
		"no frame":       {{0xff}},
	} {
		h := newHave(1, 10)
		var err error
		for _, f := range frames {
			if err != nil {
				t.Errorf("%s: refused early: %v", name, err)
			}
			err = h.take(f)
		}
		if err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := newHave(1, 10).wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a list without an end: %v", err)
	}
}
