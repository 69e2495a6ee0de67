package iscsi

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Task management functions (RFC 7143, section 11.5.1).
const (
	functionAbortTask = 1
	functionResetUnit = 5 // LOGICAL UNIT RESET
)

// Answers to them (section 11.6.1).
const (
	functionComplete = 0
	functionNoTask   = 1
)

// function is a task management function that waits for its answer.
type function struct {
	kind  byte
	task  *task // to abort, or nil
	since time.Time
	done  chan struct{}
	// Valid after done is closed.
	response byte
	err      error // the connection was lost
}

func (f *function) name() string {
	if f.kind == functionResetUnit {
		return "LOGICAL UNIT RESET"
	}
	return "ABORT TASK"
}

// manage sends a task management function, an immediate command; c.mu is held.
func (c *conn) manage(kind byte, t *task) *function {
	f := &function{kind: kind, task: t, since: time.Now(), done: make(chan struct{})}
	h := header{0: byte(opTaskRequest) | flagImmediate, 1: flagFinal | kind}
	h.put64(8, c.lun)
	tag := c.tag()
	h.put32(16, tag)
	h.put32(20, noTag)
	if t != nil {
		h.put32(20, t.itt)
		h.put32(32, t.cmdSN) // RefCmdSN
	}
	c.functions[tag] = f
	c.enqueue(controlPDU{h: h})
	return f
}

// managed takes the answer to a task management function; c.mu is held.
func (c *conn) managed(h *header) error {
	f := c.functions[h.itt()]
	if f == nil {
		return fmt.Errorf("target answers task management tag 0x%x, which is not open", h.itt())
	}
	delete(c.functions, h.itt())
	f.response = h[2]
	switch done := f.response == functionComplete; {
	case f.kind == functionResetUnit && done:
		// The commands that were under way are gone, those of others, too. None
		// was sent while the function was under way.
		for itt, t := range c.tasks {
			delete(c.tasks, itt)
			c.complete(t, errAborted)
		}
	case f.kind == functionAbortTask && (done || f.response == functionNoTask):
		if t := f.task; c.tasks[t.itt] == t {
			delete(c.tasks, t.itt)
			c.complete(t, errAborted)
		}
	}
	close(f.done)
	return nil
}

// errAborted is the end of a command that a task management function aborted:
// like that of one whose connection was lost.
var errAborted = fmt.Errorf("%w: aborted", errLost)

// resetUnit runs LOGICAL UNIT RESET. No command goes out meanwhile.
func (c *conn) resetUnit(ctx context.Context) error {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return c.err
	}
	c.held++
	f := c.manage(functionResetUnit, nil)
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.held--
		c.wake.Signal()
		c.mu.Unlock()
	}()
	select {
	case <-f.done:
	case <-ctx.Done():
		return fmt.Errorf("%w (%w)", ErrUnknownOutcome, ctx.Err())
	}
	switch {
	case f.err != nil:
		return fmt.Errorf("%w (%w)", ErrUnknownOutcome, f.err)
	case f.response != functionComplete:
		return fmt.Errorf("%w (answer 0x%02x)", ErrUnsupported, f.response)
	}
	return nil
}

// ResetUnit resets the logical unit (LOGICAL UNIT RESET, SAM-5 section 7.7):
// every command of every host that the target had taken is over when it
// returns. Persistent reservations and what is written stay. Commands of other
// hosts, and this session's, are issued again by themselves, except those that
// end with ErrUnknownOutcome. It is never issued again itself.
func (s *Session) ResetUnit(ctx context.Context) error {
	c, _, err := s.online(ctx)
	if err == nil {
		err = c.resetUnit(ctx)
	}
	if err != nil {
		return s.named(fmt.Errorf("LOGICAL UNIT RESET: %w", err))
	}
	return nil
}

// abortOthers makes an end to commands that the target took of a host whose
// registration has just been removed without PREEMPT AND ABORT. A connection
// lost meanwhile is no reason not to try again: a reset does no harm twice.
func (s *Session) abortOthers(ctx context.Context) error {
	var err error
	for range maxFenceRounds {
		if err = s.ResetUnit(ctx); !errors.Is(err, ErrUnknownOutcome) || ctx.Err() != nil {
			return err
		}
	}
	return err
}
