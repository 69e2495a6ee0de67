package virtio

import "testing"

// TestQuietIsState: what makes a queue quiet is in a device's state, bounded.
func TestQuietIsState(t *testing.T) {
	for _, c := range []struct {
		q  Quiet
		ok bool
	}{
		{Quiet{}, true},
		{Quiet{On: true, Need: maxStreak, Overdue: maxOverdue}, true},
		{Quiet{Streak: minStreak - 1}, true},
		{Quiet{Streak: minStreak}, false},
		{Quiet{Need: maxStreak + 1}, false},
		{Quiet{Overdue: maxOverdue + 1}, false},
		{Quiet{Since: soon + 1}, false},
	} {
		if c.q.valid() != c.ok {
			t.Errorf("%+v: valid %t", c.q, !c.ok)
		}
	}
}
