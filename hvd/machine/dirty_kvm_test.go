package machine

import (
	"slices"
	"testing"

	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/mem"
)

// touch reads a word of each of 1,024 pages from 2 MiB on, makes an exit,
// writes to each 8th of them, makes an exit, and begins again.
var touch = []byte{
	0x66, 0xba, 0x80, 0x00, // mov dx, 80h
	0xbe, 0x00, 0x00, 0x20, 0x00, // mov esi, 200000h
	0xb9, 0x00, 0x04, 0x00, 0x00, // mov ecx, 1024
	0x48, 0x8b, 0x06, // 1: mov rax, [rsi]
	0x81, 0xc6, 0x00, 0x10, 0x00, 0x00, // add esi, 4096
	0xff, 0xc9, // dec ecx
	0x75, 0xf3, // jnz 1b
	0xee,                         // out dx, al
	0xbe, 0x00, 0x00, 0x20, 0x00, // mov esi, 200000h
	0xb9, 0x80, 0x00, 0x00, 0x00, // mov ecx, 128
	0x89, 0x0e, // 2: mov [rsi], ecx
	0x81, 0xc6, 0x00, 0x80, 0x00, 0x00, // add esi, 32768
	0xff, 0xc9, // dec ecx
	0x75, 0xf4, // jnz 2b
	0xee,       // out dx, al
	0xeb, 0xcf, // jmp to the first mov esi
}

// TestDirtyLogHasOnlyWrites: reading marks no page, however its pages came to be
// there; writing marks just what is written. So it is on a secondary, whose
// memory is mapped beforehand, and on a primary.
func TestDirtyLogHasOnlyWrites(t *testing.T) {
	t.Run("secondary", func(t *testing.T) {
		m := newTiny(t, touch)
		if err := m.Track(); err != nil {
			t.Fatal(err)
		}
		onlyWrites(t, m)
	})
	t.Run("primary", func(t *testing.T) {
		m := newTiny(t, touch)
		if err := m.LogDirty(true); err != nil {
			t.Fatal(err)
		}
		onlyWrites(t, m)
	})
}

func onlyWrites(t *testing.T, m *Machine) {
	t.Helper()
	if err := m.SetLogged(true); err != nil {
		t.Fatal(err)
	}
	run := func() []int {
		t.Helper()
		if _, err := m.Run(lockstep.Free); err != nil {
			t.Fatal(err)
		}
		set := make([]uint64, len(m.dirty))
		if err := m.TakeDirty(set); err != nil {
			t.Fatal(err)
		}
		// The guest's page directory gets accessed and dirty bits.
		return slices.DeleteFunc(mem.PageSet(set), func(p int) bool { return p < 16 })
	}
	var written []int
	for p := 0x200; p < 0x600; p += 8 {
		written = append(written, p)
	}
	for round := range 50 {
		if got := run(); len(got) != 0 {
			t.Fatalf("round %d: reading marked %d pages, the first %#x", round, len(got), got[0])
		}
		if got := run(); !slices.Equal(got, written) {
			t.Fatalf("round %d: writing marked %d pages, want %d", round, len(got), len(written))
		}
		// What a resync does to pages.
		for p := 0x200; p < 0x600; p += 3 {
			m.Memory.Page(p)[100] = byte(round)
		}
	}
}

// TestFirstWritesStopBothCopiesAlike: a primary and a secondary that harvest at
// the same positions meet the same first writes, though the memory of one is
// mapped beforehand and that of the other isn't.
func TestFirstWritesStopBothCopiesAlike(t *testing.T) {
	a, b := newTiny(t, touch), newTiny(t, touch)
	if err := a.LogDirty(true); err != nil {
		t.Fatal(err)
	}
	if err := b.Track(); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*Machine{a, b} {
		if err := m.SetLogged(true); err != nil {
			t.Fatal(err)
		}
		if err := m.setTraps(kvm.FlagWrite, 1); err != nil {
			t.Fatal(err)
		}
	}
	for position := range 2000 {
		stop := a.Counted()[kvm.KindWrite] + uint64(position%5)
		for _, m := range []*Machine{a, b} {
			if _, err := m.Run(stop); err != nil {
				t.Fatal(err)
			}
			if position%7 == 0 {
				if err := m.tick(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if a.Fingerprint() != b.Fingerprint() || *a.cpu.Regs() != *b.cpu.Regs() {
			t.Fatalf("position %d: %x with %d first writes, the other copy %x with %d", a.Position(),
				a.Fingerprint(), a.Counted()[kvm.KindWrite], b.Fingerprint(), b.Counted()[kvm.KindWrite])
		}
	}
	if n := a.Counted()[kvm.KindWrite]; n < 1000 {
		t.Errorf("%d first writes in 2,000 positions, want more", n)
	}
}
