package locate

import "fmt"

// Method is a way to count branches.
type Method uint8

// The methods.
const (
	None    Method = iota // points aren't found
	ByPMU                 // the processor's counters: Counter
	ByStep                // single-stepping: Stepper. For tests, and to replay elsewhere
	methods               // how many there are
)

var methodNames = [methods]string{None: "none", ByPMU: "pmu", ByStep: "step"}

// String is the method's name.
func (m Method) String() string {
	if m < methods {
		return methodNames[m]
	}
	return fmt.Sprintf("method(%d)", uint8(m))
}

// Locator says how a machine finds points.
type Locator struct {
	Method Method
	Event  Event         // ByPMU: as Probe returns it
	Late   func() uint64 // ByStep: as Stepper.Late, at most Event.Skid; nil: never
}
