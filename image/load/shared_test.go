package load

import (
	"testing"
	"time"
)

func at(n int) time.Duration { return time.Duration(n) }

func TestHistory(t *testing.T) {
	write := func(v string) access { return access{value: v} }
	read := access{read: true}
	for name, c := range map[string]struct {
		do   func(h *history)
		now  string
		fair bool
	}{
		"one after the other": {func(h *history) {
			h.add(0, write("x"), "", at(1), at(2))
			h.add(1, read, "x", at(3), at(4))
		}, "x", true},
		"both at once, either order": {func(h *history) {
			h.add(0, write("x"), "", at(1), at(5))
			h.add(1, write("y"), "", at(2), at(6))
			h.add(2, read, "x", at(3), at(7))
		}, "y", true},
		"an acknowledged write is gone": {func(h *history) {
			h.add(0, write("x"), "", at(1), at(2))
			h.add(1, read, "old", at(3), at(4))
		}, "x", false},
		"and comes back later": {func(h *history) {
			h.add(0, write("x"), "", at(1), at(2))
			h.add(0, write("y"), "", at(3), at(4))
			h.add(1, read, "y", at(5), at(6))
			h.add(1, read, "x", at(7), at(8))
		}, "y", false},
		"the last one is gone in the end": {func(h *history) {
			h.add(0, write("x"), "", at(1), at(2))
		}, "old", false},
		"a lost answer may have been a write": {func(h *history) {
			h.lose(0, write("x"), at(1))
			h.add(1, read, "old", at(3), at(4))
			h.add(1, read, "x", at(5), at(6))
		}, "x", true},
		"but not before it was asked for": {func(h *history) {
			h.add(1, read, "x", at(1), at(2))
			h.lose(0, write("x"), at(3))
		}, "x", false},
	} {
		h := newHistory(2)
		h.start = []string{"old", "other"}
		c.do(h)
		if err := h.judge([]string{c.now, "other"}, at(100)); (err == nil) != c.fair {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHistoryGoesOn(t *testing.T) {
	h := newHistory(1)
	h.add(0, access{value: "x"}, "", at(1), at(2))
	h.lose(1, access{value: "late"}, at(1))
	if err := h.judge([]string{"x"}, at(3)); err != nil {
		t.Fatal(err)
	}
	h.add(2, access{read: true}, "late", at(4), at(5))
	if err := h.judge([]string{"late"}, at(6)); err != nil {
		t.Errorf("a write that was never answered lands in the next stretch: %v", err)
	}
	h.add(2, access{read: true}, "x", at(7), at(8))
	if err := h.judge([]string{"late"}, at(9)); err == nil {
		t.Error("the last stretch's value is read again, and nobody minds")
	}
}
