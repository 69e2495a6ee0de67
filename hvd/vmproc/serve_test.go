package vmproc

import "testing"

func TestResting(t *testing.T) {
	if got := resting(nil); got != "" {
		t.Errorf("nothing rests, and it says %q", got)
	}
	want := "the guest's driver broke a rule, and the device rests until the guest resets it: net: a; root: b"
	if got := resting([]string{"net: a", "root: b"}); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
