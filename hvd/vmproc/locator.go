package vmproc

import (
	"encoding/json"
	"fmt"

	"github.com/duet-ft/duet/ftlink/session"
	"github.com/duet-ft/duet/ftlink/wire"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/locate"
)

// chooseLocator says how this host finds points between two exits, and why so, in
// a line for people. want is one of
//
//	auto  the processor's counters, if they pass the self-test; else none: the guest
//	      is stopped at traps, and by resyncs
//	pmu   the counters, or the VM's process fails
//	step  single-stepping, for tests: the guest is slower by a factor of thousands
//	none  no points
func chooseLocator(sys *kvm.System, want string) (by locate.Locator, why string, err error) {
	switch want {
	case "step":
		return locate.Locator{Method: locate.ByStep}, "asked for", nil
	case "none":
		return by, "asked for", nil
	case "auto", "pmu", "":
	default:
		return by, "", fmt.Errorf("there is no locator %q: auto, pmu, step or none", want)
	}
	e, err := locate.Probe(sys)
	switch {
	case err == nil:
		return locate.Locator{Method: locate.ByPMU, Event: e}, "the counters of this " + e.Name + " passed the self-test", nil
	case want == "pmu":
		return by, "", err
	}
	return by, "no pmu: " + err.Error(), nil
}

// control is a Control frame of the stream, from the secondary's host.
type control struct {
	// Points comes before the Have frames: whether this host finds points, as the
	// log that follows may have them.
	Points *bool `json:"points,omitempty"`
	// Divergence is the last word of a copy.
	Divergence *divergenceReport `json:"divergence,omitempty"`
}

// tellPoints answers a state transfer's begin.
func (p *Process) tellPoints(c *session.Conn) error {
	can := p.by.Method != locate.None
	return c.Send(wire.Frame{Type: wire.TypeControl, Payload: control{Points: &can}.encode()})
}

// locator is what the guest is stopped by, in a word; p.mu is held.
func (p *Process) locator() string {
	switch {
	case p.by.Method == locate.None:
		return "trap"
	case p.blind:
		return "trap, since the other host has no " + p.by.Method.String()
	}
	return p.by.Method.String()
}

func (c control) encode() []byte {
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // numbers and texts only
	}
	return b
}
