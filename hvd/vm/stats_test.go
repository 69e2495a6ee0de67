package vm

import (
	"slices"
	"testing"
)

// TestFaults expects a device's fault to be told within a second of ticks, and to
// be forgotten when it is gone.
func TestFaults(t *testing.T) {
	var s Stats
	faults := []string{"net: queue 0: descriptor 9999 of 256"}
	second := func() {
		for range ticksPerLook {
			s.ticked(func() []string { return faults })
		}
	}
	if f := s.Faults(); f != nil {
		t.Errorf("before the first tick: %q", f)
	}
	if second(); !slices.Equal(s.Faults(), faults) {
		t.Errorf("%q are told as %q", faults, s.Faults())
	}
	faults = nil
	if second(); len(s.Faults()) != 0 {
		t.Errorf("still %q", s.Faults())
	}
}
