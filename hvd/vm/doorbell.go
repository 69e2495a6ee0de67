package vm

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// doorbell wakes the loop. The loop is locked to its thread, so it waits in the
// kernel: one that waited for a channel or a timer of Go's would be found by
// another thread, which would have to wake it in turn. A loop that is awake costs
// who rings no system call.
//
//	       wait               ring
//	awake ------> asleep(fd) ------> rung, awake
//	  | ring                           | wait
//	  +-----> rung --------------------+--> awake at once
type doorbell struct {
	mu     sync.Mutex
	rung   bool
	asleep bool // fd is waited for
	fd     int  // eventfd; only while the loop runs
}

// open prepares for wait, close ends that. Ringing needs neither.
func (d *doorbell) open() (err error) {
	d.fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("make an eventfd for the guest's loop: %w", err)
	}
	return nil
}

func (d *doorbell) close() { _ = unix.Close(d.fd) } // holds no data

// ring ends the present wait or, without one, the next. Any goroutine may call it.
func (d *doorbell) ring() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.asleep && !d.rung {
		// Fails only when 2^64 are unread.
		_, _ = unix.Write(d.fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
	d.rung = true
}

// wait waits for ring, at most for limit. Now and then it ends early.
func (d *doorbell) wait(limit time.Duration) {
	d.mu.Lock()
	d.asleep = !d.rung
	d.rung = false
	asleep := d.asleep
	d.mu.Unlock()
	if !asleep {
		return
	}
	timeout := unix.NsecToTimespec(max(0, limit.Nanoseconds()))
	// An error is a signal, which Go's runtime sends now and then.
	_, _ = unix.Ppoll([]unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}}, &timeout, nil)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.rung {
		var count [8]byte
		_, _ = unix.Read(d.fd, count[:]) // it can't be empty
	}
	d.rung, d.asleep = false, false
}
