package vm

import (
	"os"
	"runtime"
	"testing"
)

// TestMain leaves Go processors beside the one that the guest's thread holds
// while it is in the kernel, as hvd/vmproc does.
func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(max(4, runtime.NumCPU()+1))
	os.Exit(m.Run())
}
