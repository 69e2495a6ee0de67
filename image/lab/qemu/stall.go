package qemu

import "time"

// stall finds out that a machine has stopped doing anything at all. QEMU's SVM can lose an interrupt of the machine
// that it nests: the CPU then sits in HLT, and no timer ever wakes it. A machine that is merely idle still has its
// timer ticks.
//
// Pure: the times are inputs.
type stall struct {
	// cpu and progress are the last values, and since is when one of them last changed.
	cpu      time.Duration
	progress uint64
	since    time.Duration
	told     bool
}

const (
	// stallAfter is how long a running machine may do nothing.
	stallAfter = 15 * time.Second
	// stallCPU is what QEMU itself may use in that time without the guest running.
	stallCPU = 50 * time.Millisecond
)

// observe takes the time, QEMU's CPU time and a count of bytes and frames, and whether the machine is meant to run.
// It reports true once for each stall.
func (s *stall) observe(now, cpu time.Duration, progress uint64, running bool) bool {
	if !running || progress != s.progress || cpu-s.cpu > stallCPU {
		s.cpu, s.progress, s.since, s.told = cpu, progress, now, false
		return false
	}
	if s.told || now-s.since < stallAfter {
		return false
	}
	s.told = true
	return true
}
