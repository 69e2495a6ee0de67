package locate

import (
	"errors"
	"runtime"
	"testing"

	"github.com/duet-ft/duet/hvd/kvm/kvmtest"
	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/vcpu"
)

// forgetful is a counter that misses an event now and then.
type forgetful struct{ *Stepper }

func (f forgetful) Count() (uint64, error) {
	n, err := f.Stepper.Count()
	return n - n/1000, err
}

// TestSelfTest: what counts right passes, however late its overflows are; what
// doesn't fails; and the host's own counters pass or say in one line why not.
func TestSelfTest(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	sys := kvmtest.Open(t)
	err := Check(sys, 50, func(cpu *vcpu.CPU, m *mem.Memory) (Target, error) {
		s := NewStepper(cpu, m)
		s.Late = func() uint64 { return 50 }
		return s, nil
	})
	if err != nil {
		t.Error("counting by steps: ", err)
	}
	err = Check(sys, 50, func(cpu *vcpu.CPU, m *mem.Memory) (Target, error) { return forgetful{NewStepper(cpu, m)}, nil })
	if err == nil {
		t.Error("a counter that loses events passed")
	}
	err = Check(sys, 5, func(cpu *vcpu.CPU, m *mem.Memory) (Target, error) {
		s := NewStepper(cpu, m)
		s.Late = func() uint64 { return 500 }
		return s, nil
	})
	if !errors.Is(err, ErrMissed) {
		t.Error("a counter whose overflow is too late: ", err)
	}
	event, err := Probe(sys)
	t.Logf("this host: %+v, %v", event, err)
}
