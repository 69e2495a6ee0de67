package vm

import (
	"os"
	"runtime"
	"runtime/debug"
	"testing"
)

// TestMain leaves Go processors beside the one that the guest's thread holds
// while it is in the kernel, and lets the heap grow, as hvd/vmproc does.
func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(max(4, runtime.NumCPU()+1))
	debug.SetGCPercent(400)
	os.Exit(m.Run())
}
