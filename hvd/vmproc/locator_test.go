package vmproc

import (
	"errors"
	"testing"

	"github.com/duet-ft/duet/ftlink/wire"
	"github.com/duet-ft/duet/hvd/locate"
)

func TestChooseLocator(t *testing.T) {
	for want, method := range map[string]locate.Method{"step": locate.ByStep, "none": locate.None} {
		if by, why, err := chooseLocator(nil, want); err != nil || by.Method != method || why == "" {
			t.Errorf("%s: %v, %q, %v", want, by.Method, why, err)
		}
	}
	if _, _, err := chooseLocator(nil, "fastest"); err == nil {
		t.Error("a locator that doesn't exist was chosen")
	}
}

// TestControlSaysWhetherPointsAreFound: a log has points only where its reader
// finds them.
func TestControlSaysWhetherPointsAreFound(t *testing.T) {
	for _, can := range []bool{false, true, false} {
		p := &Process{by: locate.Locator{Method: locate.ByPMU}}
		p.blind = can
		if err := p.heardControl(nil, control{Points: &can}.encode()); err != nil {
			t.Fatal(err)
		}
		if p.blind == can {
			t.Errorf("the peer finds points: %t, and this host takes it for the contrary", can)
		}
		want := "pmu"
		if !can {
			want = "trap, since the other host has no pmu"
		}
		if got := p.locator(); got != want {
			t.Errorf("locator %q, want %q", got, want)
		}
	}
	p := &Process{}
	if err := p.heardControl(nil, []byte("{")); !errors.Is(err, wire.ErrFrame) {
		t.Errorf("half a frame: %v", err)
	}
	if got := p.locator(); got != "trap" {
		t.Errorf("locator %q without a counter", got)
	}
}
