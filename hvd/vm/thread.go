package vm

import (
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// guestSlice is how long the guest's thread may run before the scheduler looks
// whose turn it is: the most that Linux takes (sched(7), SCHED_OTHER).
//
// A thread that is woken comes first if its deadline, the end of its own slice of 1
// to 3 ms, is before that of the guest, or if the guest has had more than its share
// (do_preempt_short). Of a slice of 10 ms the last third fails the first test, of
// 100 ms the last thirtieth. What a longer one could cost is another guest's wait on
// the same processor. BenchmarkSlice on a shared processor with Linux 6.18 shows
// neither: with 3, 10 and 100 ms a woken thread waits 65 us in the median, and each
// of two busy guests 2 to 8 ms at the 99th percentile, with no order in it.
const guestSlice = 100 * time.Millisecond

// holdThread locks the calling goroutine, which runs the guest, to its thread,
// and makes the scheduler stop that thread at once when another one has
// something to do: threads with shorter slices come first (PREEMPT_SHORT in
// Linux's fair.c, since 6.12). Those carry the log, the acknowledgements and the
// guest's packets, and are done within microseconds; on a busy core they would
// wait for the guest's slice to end, and all effects with them. It takes no
// privilege and changes no thread's share of the core.
//
// release takes it back.
func holdThread() (release func(), err error) { return holdFor(guestSlice) }

func holdFor(slice time.Duration) (release func(), err error) {
	runtime.LockOSThread()
	was, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("ask how the guest's thread is scheduled: %w", err)
	}
	modest := *was
	modest.Runtime = uint64(slice)
	if err := unix.SchedSetAttr(0, &modest, 0); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("set the slice of the guest's thread: %w", err)
	}
	return func() {
		// A thread that keeps the slice is a little slow, and no more.
		_ = unix.SchedSetAttr(0, was, 0)
		runtime.UnlockOSThread()
	}, nil
}
