package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of perf_event_open (include/uapi/linux/perf_event.h, perf_event_open(2)).
const (
	perfPinned      = 1 << 2
	perfExcludeHost = 1 << 19
	perfNever       = 1 << 62 // a period that doesn't end

	setOwnEx    = 15 // F_SETOWN_EX
	ownerThread = 0  // F_OWNER_TID
)

// EventCounter counts an event of the processor while the thread that opened it
// executes a guest: the kernel switches it on at each entry and off at each
// exit. Its methods belong to that thread.
type EventCounter struct{ fd int }

// OpenCounter opens a counter of a raw event (event, umask << 8). It is pinned:
// it counts always or, when something else holds the processor's counters, Read
// says that it doesn't.
func OpenCounter(config uint64) (*EventCounter, error) {
	attr := unix.PerfEventAttr{
		Type: unix.PERF_TYPE_RAW, Config: config, Sample: perfNever, Bits: perfPinned | perfExcludeHost,
	}
	attr.Size = uint32(unsafe.Sizeof(attr))
	fd, err := unix.PerfEventOpen(&attr, 0, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.EOPNOTSUPP):
		return nil, errors.New("the processor offers this host no performance counters")
	case errors.Is(err, unix.ENOSYS):
		return nil, errors.New("the kernel was built without performance counters")
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return nil, errors.New("the kernel keeps performance counters from this process (kernel.perf_event_paranoid)")
	case err != nil:
		return nil, fmt.Errorf("open a performance counter: %w", err)
	}
	c := &EventCounter{fd}
	// The overflow's signal goes to this thread alone, where it ends Run.
	owner := struct{ kind, id int32 }{ownerThread, int32(unix.Gettid())}
	_, _, e := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), setOwnEx, uintptr(unsafe.Pointer(&owner)))
	if e == 0 {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETSIG, int(unix.SIGURG))
	} else {
		err = e
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_ASYNC|unix.O_NONBLOCK)
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("have a performance counter signal: %w", err)
	}
	return c, nil
}

// Close gives the counter back.
func (c *EventCounter) Close() error { return unix.Close(c.fd) }

// Arm makes the counter signal the thread after n more events; 0 for never.
func (c *EventCounter) Arm(n uint64) error {
	if n == 0 {
		n = perfNever
	}
	if err := ioctlPtr(c.fd, unix.PERF_EVENT_IOC_PERIOD, unsafe.Pointer(&n)); err != nil {
		return fmt.Errorf("arm a performance counter: %w", err)
	}
	return nil
}

// Read is the count since the counter was opened.
func (c *EventCounter) Read() (uint64, error) {
	var b [8]byte
	n, err := unix.Read(c.fd, b[:])
	if err != nil {
		return 0, fmt.Errorf("read a performance counter: %w", err)
	}
	if n != len(b) {
		return 0, errors.New("a performance counter doesn't count: something else holds all of the processor's")
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}
