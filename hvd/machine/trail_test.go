package machine

import "testing"

func TestTrail(t *testing.T) {
	m := &Machine{trail: trail{ring: make([]Crumb, 8)}}
	for i := uint64(1); i <= 20; i++ {
		m.trail.drop(Crumb{Position: i, Fingerprint: i * i})
	}
	got := m.Trail(14, 3)
	if len(got) != 3 || got[0].Position != 15 || got[2].Position != 17 {
		t.Errorf("3 exits behind 14: %v", got)
	}
	if got := m.Trail(0, 100); len(got) != 8 || got[0].Position != 13 {
		t.Errorf("all that is remembered: %v", got)
	}
	theirs := m.Trail(14, 100)
	if _, _, ok := m.FirstDifference(theirs); ok {
		t.Error("equal exits differ")
	}
	theirs[2].Data, theirs[3].Data = 1, 1
	if here, there, ok := m.FirstDifference(theirs); !ok || here.Position != 17 || there.Data != 1 {
		t.Errorf("first difference: %v, %v, %t; want exit 17", here, there, ok)
	}
	beyond := []Crumb{{Position: 20, Fingerprint: 400}, {Position: 21}}
	if here, there, ok := m.FirstDifference(beyond); !ok || here != (Crumb{}) || there.Position != 21 {
		t.Errorf("an exit that isn't here: %v, %v, %t", here, there, ok)
	}
}
