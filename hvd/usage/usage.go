// Package usage tells what a program and its host use of memory and open files, so that a leak shows.
//
// # Place
//
// hvd/daemon and hvd/vmproc tell it by the host's interface. It imports hvd/api, for the types.
//
// # Where it looks (proc(5))
//
//	/proc/self/statm     "size resident shared ...", in pages
//	/proc/self/fd        a link for each open file
//	/proc/meminfo        "MemAvailable:    1234 kB"
//	/proc/sys/fs/file-nr "allocated free limit"
//
// A field that can't be read stays 0: the figures are for people and for tests, and nothing depends on them.
package usage

import (
	"bufio"
	"bytes"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/duet-ft/duet/hvd/api"
)

// OfProcess is what this process uses.
func OfProcess() *api.Usage {
	u := &api.Usage{PID: os.Getpid(), Goroutines: runtime.NumGoroutine()}
	if b, err := os.ReadFile("/proc/self/statm"); err == nil {
		u.ResidentBytes = field(b, 1) * uint64(os.Getpagesize())
	}
	if names, err := os.ReadDir("/proc/self/fd"); err == nil {
		u.Files = len(names) - 1 // one is the directory's
	}
	return u
}

// OfHost is what all processes of this host leave, and hold open.
func OfHost() (availableBytes, openFiles uint64) {
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		availableBytes = available(b)
	}
	if b, err := os.ReadFile("/proc/sys/fs/file-nr"); err == nil {
		openFiles = field(b, 0)
	}
	return availableBytes, openFiles
}

// field is the n-th number of a line, 0 if there is none.
func field(b []byte, n int) uint64 {
	all := strings.Fields(string(b))
	if n >= len(all) {
		return 0
	}
	v, _ := strconv.ParseUint(all[n], 10, 64) // not a number: 0
	return v
}

// available finds MemAvailable in /proc/meminfo, in bytes.
func available(meminfo []byte) uint64 {
	lines := bufio.NewScanner(bytes.NewReader(meminfo))
	for lines.Scan() {
		if rest, ok := bytes.CutPrefix(lines.Bytes(), []byte("MemAvailable:")); ok {
			return field(rest, 0) << 10
		}
	}
	return 0
}
