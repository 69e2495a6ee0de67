package vm

import (
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/mem"
)

// TestUnheard: chains are seen that wait without a notification, and count from when
// they were first seen; others that come when those are taken count anew.
func TestUnheard(t *testing.T) {
	m, err := mem.New(mem.PageSize)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var u unheard
	start := time.Unix(1000, 0)
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	look := func(s, want int) {
		t.Helper()
		since, ok := u.look(m, at(s))
		if ok != (want >= 0) || ok && !since.Equal(at(want)) {
			t.Errorf("at %d s: since %v, %t; want %d s", s, since, ok, want)
		}
	}
	look(0, -1)
	u.queues[0].Store(0x100<<16 | 7)
	u.queues[1].Store(0x200<<16 | 9)
	for addr, index := range map[uint64]uint16{0x100: 7, 0x200: 9} {
		if err := m.PutUint16(addr, index); err != nil {
			t.Fatal(err)
		}
	}
	look(1, -1)
	if err := m.PutUint16(0x200, 11); err != nil {
		t.Fatal(err)
	}
	look(2, 2)
	look(3, 2)
	u.queues[1].Store(0x200<<16 | 11)
	look(4, -1)
	if err := m.PutUint16(0x200, 12); err != nil {
		t.Fatal(err)
	}
	look(5, 5)
	u.queues[1].Store(0)
	look(6, -1)
}
