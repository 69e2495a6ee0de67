// Package supervise keeps a child process running.
//
// # Place
//
// hvd/daemon runs one of these for each VM definition. It imports nothing of ours.
//
//	          start                 ended              pause is over
//	(Run) ------------> running ----------------> waiting -----------+
//	                     ^  |                        |               |
//	                     |  | ctx: SIGTERM, after    | ctx           |
//	                     |  | Grace SIGKILL          v               |
//	                     |  +--------------------> (Run returns)     |
//	                     +-------------------------------------------+
//
// The child is in a session of its own, so that no signal to the daemon's terminal or group hits it; and the kernel
// kills it when the daemon dies, since two processes of the same VM must never run at once.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Spec is the process to run.
type Spec struct {
	Path string   // of the program
	Args []string // without the program's name
	Env  []string // nil: as the daemon's
	// Grace is how long the process has to end after SIGTERM. Default: 5 s.
	Grace time.Duration
	// Prepare runs before each start, if it isn't nil; an error counts as a process that ended at once.
	Prepare func() error
	// Line is told each line that the process writes, to standard output or standard error.
	Line func(line string)
	// Changed is told when the process starts and when it has ended, one call after the other.
	Changed func(Change)
}

// Change is what became of a process.
type Change struct {
	Running bool
	PID     int           // while running
	Reason  string        // why it ended, one line
	Last    string        // the last line that it wrote, or empty
	Again   time.Duration // the pause before the next start
	Final   bool          // it isn't started again: Run was told to end
}

// Run keeps the process running until ctx ends, and returns when it is gone.
func Run(ctx context.Context, s Spec) {
	if s.Grace == 0 {
		s.Grace = 5 * time.Second
	}
	var backoff Backoff
	for ctx.Err() == nil {
		start := time.Now()
		reason, last := once(ctx, s)
		again := backoff.Next(time.Since(start))
		final := ctx.Err() != nil
		s.Changed(Change{Reason: reason, Last: last, Again: again, Final: final})
		if final {
			return
		}
		wait(ctx, again)
	}
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// once runs the process once, and returns why and with which last words it ended.
func once(ctx context.Context, s Spec) (reason, last string) {
	// Pdeathsig is sent when the thread ends that forked, so that thread has to stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if s.Prepare != nil {
		if err := s.Prepare(); err != nil {
			return oneLine(err), ""
		}
	}
	out := &lines{pass: s.Line}
	cmd := exec.CommandContext(ctx, s.Path, s.Args...)
	cmd.Env = s.Env
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	// After this, exec kills the process, and doesn't wait for a grandchild that holds the pipe.
	cmd.WaitDelay = s.Grace
	if err := cmd.Start(); err != nil {
		return oneLine(err), ""
	}
	s.Changed(Change{Running: true, PID: cmd.Process.Pid})
	err := cmd.Wait()
	// What it may have left behind in its process group, which its session keeps apart from all others.
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	last = out.end()
	var exit *exec.ExitError
	switch {
	case cmd.ProcessState == nil:
		return oneLine(err), last
	case err == nil || errors.As(err, &exit) || errors.Is(err, exec.ErrWaitDelay) || ctx.Err() != nil:
		return cmd.ProcessState.String(), last
	}
	return fmt.Sprintf("%s (%s)", cmd.ProcessState, oneLine(err)), last
}

func oneLine(err error) string {
	return strings.ReplaceAll(err.Error(), "\n", " ")
}
