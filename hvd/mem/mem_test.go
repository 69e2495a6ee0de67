package mem

import (
	"errors"
	"math"
	"slices"
	"testing"
)

func newMemory(t *testing.T, size uint64) *Memory {
	t.Helper()
	m, err := New(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func TestNewRefusesOddSizes(t *testing.T) {
	for _, size := range []uint64{0, 1, PageSize + 1} {
		if _, err := New(size); err == nil {
			t.Errorf("New(%d): no error", size)
		}
	}
}

func TestBounds(t *testing.T) {
	// 3 GiB below the hole and one page above it; nothing is touched but the edges.
	m := newMemory(t, LowMax+PageSize)
	for _, c := range []struct {
		addr, n uint64
		ok      bool
	}{
		{0, 1, true},
		{LowMax - 1, 1, true},
		{LowMax - 1, 2, false},
		{LowMax, 0, false},
		{HighBase - 1, 2, false},
		{HighBase, PageSize, true},
		{HighBase + 1, PageSize, false},
		{HighBase + PageSize, 1, false},
		{math.MaxUint64, 1, false},
		{1, math.MaxUint64, false},
		{HighBase, math.MaxUint64, false},
	} {
		_, err := m.View(c.addr, c.n)
		if (err == nil) != c.ok {
			t.Errorf("View(%#x, %#x): %v, want ok=%v", c.addr, c.n, err, c.ok)
		}
		if err != nil && !errors.Is(err, ErrRange) {
			t.Errorf("View(%#x, %#x): %v isn't ErrRange", c.addr, c.n, err)
		}
	}
	if err := m.PutUint64(HighBase, 0x1122334455667788); err != nil {
		t.Fatal(err)
	}
	if got := m.Bytes()[LowMax]; got != 0x88 {
		t.Errorf("first byte above the hole is %#x in the mapping", got)
	}
}

func TestDirtyPagesAreThoseTheVMMWrote(t *testing.T) {
	m := newMemory(t, 130*PageSize)
	set := make([]uint64, 3)
	if err := m.Write(2*PageSize-1, []byte{1, 2}); err != nil {
		t.Fatal(err)
	}
	if err := m.PutUint32(129*PageSize, 7); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Uint32(5 * PageSize); err != nil {
		t.Fatal(err)
	}
	m.TakeDirty(set)
	if got, want := PageSet(set), []int{1, 2, 129}; !slices.Equal(got, want) {
		t.Errorf("dirty pages %v, want %v", got, want)
	}
	clear(set)
	m.TakeDirty(set)
	if got := PageSet(set); len(got) != 0 {
		t.Errorf("dirty pages %v after they were taken", got)
	}
}

func TestIsZero(t *testing.T) {
	m, err := New(2 * PageSize)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if !m.IsZero(1) {
		t.Error("new memory isn't zero")
	}
	m.Page(1)[PageSize-1] = 1
	if m.IsZero(1) || !m.IsZero(0) {
		t.Error("the last byte of a page doesn't count, or that of its neighbour does")
	}
}
