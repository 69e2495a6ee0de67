package vm

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// TestDoorbell: no ring is missed, whenever it comes, and none counts twice.
func TestDoorbell(t *testing.T) {
	var d doorbell
	d.ring() // before there is a loop
	if err := d.open(); err != nil {
		t.Fatal(err)
	}
	defer d.close()
	const long = time.Minute
	begun := time.Now()
	d.wait(long)
	d.ring()
	d.ring()
	d.wait(long)
	var seen atomic.Int64
	go func() {
		for i := range int64(10000) {
			d.ring()
			for seen.Load() <= i && time.Since(begun) < long {
				runtime.Gosched()
			}
		}
	}()
	for range 10000 {
		d.wait(long)
		seen.Add(1)
	}
	if got := time.Since(begun); got > long/2 {
		t.Errorf("a ring was missed: %v", got)
	}
	begun = time.Now()
	for time.Since(begun) < 20*time.Millisecond {
		before := time.Now()
		if d.wait(20 * time.Millisecond); time.Since(before) == 0 {
			t.Fatal("it didn't wait")
		}
	}
	d.wait(-time.Second)
}
