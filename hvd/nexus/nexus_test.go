package nexus

import "testing"

func TestPorts(t *testing.T) {
	if got, want := Initiator("a"), "iqn.2026-01.org.duet-ft:a"; got != want {
		t.Errorf("Initiator = %q, want %q", got, want)
	}
	if got, want := ISID(Daemon), [6]byte{0x80, 'D', 'T', 0, 0, 0}; got != want {
		t.Errorf("the daemon's ISID is %x, want %x", got, want)
	}
	seen := map[[6]byte]int{}
	for slot := Daemon; slot < 64; slot++ {
		id := ISID(slot)
		if other, ok := seen[id]; ok {
			t.Errorf("slots %d and %d have the same ISID", other, slot)
		}
		if seen[id] = slot; id[0]>>6 != 2 {
			t.Errorf("ISID of slot %d is not of type random: %x", slot, id)
		}
	}
}
