package iscsi

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// conn runs commands on a logged-in stream: a writer that keeps the order of
// CmdSN, a reader that completes tasks, and a keeper that notices silence.
type conn struct {
	stream
	lun     uint64 // encoded
	timeout time.Duration

	lastReceived atomic.Int64 // UnixNano
	writeLimit   time.Time    // the write deadline; the sender's

	mu        sync.Mutex
	wake      sync.Cond // of the writer: queue, window or end
	queue     []*task   // not on the wire yet
	writing   bool      // somebody sends: the writer, or a caller whose command is alone
	control   []controlPDU
	tasks     map[uint32]*task
	functions map[uint32]*function // task management, by its own tag
	nextTag   uint32
	pingOut   bool
	pongs     int           // answers to pings of the target that wait
	logoutOut chan struct{} // closed by the answer to our logout
	held      int           // no command may go out while it isn't 0
	leaving   bool          // the target asked for a logout
	stuck     time.Time     // since when the target's window keeps commands back

	dead chan struct{} // closed when err is set
	err  error
	wg   sync.WaitGroup
}

// controlPDU is a PDU that goes before commands: answers to R2T, pings,
// ABORT TASK, logout. The writer fills in the sequence numbers.
type controlPDU struct {
	h    header
	data []byte // own copy, if not of a task
	pong bool   // it answers a ping of the target
	task *task  // data are out[from:from+n] of this task, in as many PDUs as needed
	from int
	n    int
}

const (
	// maxControl limits queued control PDUs; a target that provokes more is
	// broken.
	maxControl = 1024
	// maxPongs limits answers to pings among them, which hold data.
	maxPongs = 16
)

func newConn(st *stream, cfg Config) *conn {
	c := &conn{
		stream: *st, lun: encodeLUN(cfg.LUN), timeout: cfg.Timeout,
		tasks: map[uint32]*task{}, functions: map[uint32]*function{}, dead: make(chan struct{}),
	}
	c.wake.L = &c.mu
	c.lastReceived.Store(time.Now().UnixNano())
	c.wg.Add(3)
	go func() { defer c.wg.Done(); c.fail(c.readLoop()) }()
	go func() { defer c.wg.Done(); c.fail(c.writeLoop()) }()
	go func() { defer c.wg.Done(); c.fail(c.keepLoop()) }()
	return c
}

// fail ends the connection once; all tasks get the error.
func (c *conn) fail(err error) {
	if err == nil {
		err = errors.New("closed")
	}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = fmt.Errorf("%w: %w", errLost, shortNetError(err))
	close(c.dead)
	c.nc.Close()
	for _, t := range c.queue {
		c.complete(t, c.err)
	}
	for _, t := range c.tasks {
		c.complete(t, c.err)
	}
	for _, f := range c.functions {
		f.err = c.err
		close(f.done)
	}
	c.functions = nil
	c.queue, c.tasks, c.control = nil, nil, nil
	c.wake.Broadcast()
	c.mu.Unlock()
}

// complete hands a task back; c.mu is held and the task is in no list any
// more, or all lists are about to go.
func (c *conn) complete(t *task, err error) {
	t.err = err
	if !t.since.IsZero() && !t.sent { // a caller that went away has set it, and may be reading it
		t.sent = true
	}
	close(t.done)
}

// do runs a command. The error is errLost (see task.sent), or ctx's.
func (c *conn) do(ctx context.Context, cmd command) (*task, error) {
	t := &task{command: cmd, done: make(chan struct{})}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return t, c.err
	}
	c.queue = append(c.queue, t)
	if c.alone(t) {
		c.sendAlone(t) // unlocks
	} else {
		c.wake.Signal()
		c.mu.Unlock()
	}
	select {
	case <-t.done:
		t.release()
		return t, t.err
	case <-ctx.Done():
	}
	t.release()
	if c.abandon(t) { // it came through in the last moment
		return t, t.err
	}
	return t, ctx.Err()
}

// abandon gives a released task up whose caller went away. It answers true when
// the task has completed already.
func (c *conn) abandon(t *task) (completed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-t.done:
		return true
	default:
	}
	for i, q := range c.queue {
		if q == t {
			c.queue = append(c.queue[:i], c.queue[i+1:]...)
			return false
		}
	}
	t.sent = true
	c.manage(functionAbortTask, t)
	return false
}

// tag returns a free initiator task tag; c.mu is held.
func (c *conn) tag() uint32 {
	for {
		c.nextTag++
		if c.nextTag == noTag {
			continue
		}
		if c.tasks[c.nextTag] == nil && c.functions[c.nextTag] == nil {
			return c.nextTag
		}
	}
}

// enqueue puts a control PDU before all commands; c.mu is held.
func (c *conn) enqueue(p controlPDU) {
	c.control = append(c.control, p)
	c.wake.Signal()
}

// aloneData limits the data of a command that its caller sends itself.
const aloneData = 16 << 10

// alone says that nothing but the task t, just queued, is under way, so that its
// caller may as well send it: waking the writer costs more than the rest. The data
// are few, so the network takes them at once unless it's stuck. With other commands
// under way the writer sends several in one go. c.mu is held.
func (c *conn) alone(t *task) bool {
	return len(c.queue) == 1 && c.mayIssue() && len(c.tasks) == 0 && len(c.control) == 0 && !c.writing && len(t.out) <= aloneData
}

// sendAlone sends the one queued command. It is entered with c.mu held and releases
// it.
func (c *conn) sendAlone(t *task) {
	c.queue = c.queue[:0]
	c.writing = true
	err := c.sendTask(t) // unlocks
	if err == nil {
		err = c.flush()
	}
	if err != nil {
		c.fail(err)
	}
	c.mu.Lock()
	c.writing = false
	if len(c.queue)+len(c.control) > 0 {
		c.wake.Signal()
	}
	c.mu.Unlock()
}

// writeLoop sends control PDUs first, then commands as the window allows. It
// flushes when nothing more is to be sent, and then others may send.
func (c *conn) writeLoop() error {
	mine := false // whether it has the turn, that is, c.writing
	for {
		c.mu.Lock()
		yielded := false
		for c.err == nil && (c.writing && !mine || len(c.control) == 0 && !c.mayIssue()) {
			if mine && c.bw.Buffered() > 0 {
				// Callers that the last answers woke may have more for the same call
				// of the kernel, which costs as much as all the rest.
				many := len(c.tasks) > 1 && !yielded
				c.mu.Unlock()
				if many {
					yielded = true
					runtime.Gosched()
				} else if err := c.flush(); err != nil {
					return err
				}
				c.mu.Lock()
				continue
			}
			if mine {
				c.writing, mine = false, false
			}
			c.wake.Wait()
		}
		if c.err != nil {
			c.mu.Unlock()
			return c.err
		}
		c.writing, mine = true, true
		var err error
		if len(c.control) > 0 {
			p := c.control[0]
			c.control = c.control[1:]
			if p.pong {
				c.pongs--
			}
			c.mu.Unlock()
			err = c.sendControl(p)
		} else {
			t := c.queue[0]
			c.queue = c.queue[1:]
			err = c.sendTask(t) // unlocks
		}
		if err != nil {
			return err
		}
	}
}

// mayIssue says that a command waits and fits the target's window; c.mu is held.
func (c *conn) mayIssue() bool {
	return len(c.queue) > 0 && c.held == 0 && !after(c.cmdSN, c.maxCmdSN)
}

// sendTask issues a command with as much immediate data as allowed. It is
// entered with c.mu held and releases it.
func (c *conn) sendTask(t *task) error {
	t.itt = c.tag()
	t.since = time.Now()
	c.tasks[t.itt] = t
	c.stuck = time.Time{}
	t.cmdSN = c.cmdSN
	h := t.header(c.lun, c.cmdSN, c.expStatSN)
	c.cmdSN++
	c.mu.Unlock()

	t.mu.Lock()
	defer t.mu.Unlock()
	data := t.out[:min(len(t.out), c.p.immediateLimit())]
	t.taken.Store(int64(len(data)))
	if t.released.Load() {
		// The CmdSN is spoken for, so something must go out; a TEST UNIT
		// READY in its place harms nobody.
		h = (&task{itt: t.itt}).header(c.lun, h.u32(24), h.u32(28))
		data = nil
	}
	c.limitWrite()
	return c.framing.write(c.bw, &h, data)
}

// sendControl sends a control PDU, or the Data-Out PDUs that an R2T asked for.
func (c *conn) sendControl(p controlPDU) error {
	c.limitWrite()
	if p.task == nil {
		c.mu.Lock()
		switch op := p.h.op(); {
		case op == opNopOut || op == opTaskRequest || op == opLogoutRequest:
			p.h.put32(24, c.cmdSN) // immediate: it doesn't advance
		}
		p.h.put32(28, c.expStatSN)
		c.mu.Unlock()
		return c.framing.write(c.bw, &p.h, p.data)
	}
	t := p.task
	c.mu.Lock()
	p.h.put32(28, c.expStatSN)
	c.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.released.Load() {
		return nil // it is over, or its ABORT TASK is under way
	}
	for sn := uint32(0); p.n > 0; sn++ {
		n := min(p.n, c.p.targetMaxRecv)
		h := p.h
		if n == p.n {
			h[1] = flagFinal
		}
		h.put32(36, sn)
		h.put32(40, uint32(p.from))
		if err := c.framing.write(c.bw, &h, t.out[p.from:p.from+n]); err != nil {
			return err
		}
		p.from += n
		p.n -= n
	}
	return nil
}

func (c *conn) flush() error {
	c.limitWrite()
	return c.bw.Flush()
}

// limitWrite sees to it that what is written next is over in time: within
// c.timeout and a quarter. A deadline costs, so each serves for a while. It is the
// sender's.
func (c *conn) limitWrite() {
	now := time.Now()
	if c.writeLimit.Sub(now) < c.timeout {
		c.writeLimit = now.Add(c.timeout + c.timeout/4)
		c.nc.SetWriteDeadline(c.writeLimit)
	}
}

// keepLoop pings a silent target and ends the connection when it stays silent,
// or when a command takes too long.
func (c *conn) keepLoop() error {
	tick := time.NewTicker(c.timeout / 8)
	defer tick.Stop()
	for {
		select {
		case <-c.dead:
			return nil
		case <-tick.C:
		}
		silent := time.Since(time.Unix(0, c.lastReceived.Load()))
		c.mu.Lock()
		if silent > c.timeout/3 && !c.pingOut {
			c.pingOut = true
			var h header
			h[0] = byte(opNopOut) | flagImmediate
			h[1] = flagFinal
			h.put32(16, c.tag())
			h.put32(20, noTag)
			c.enqueue(controlPDU{h: h})
		}
		slow := c.slow()
		c.mu.Unlock()
		if silent > c.timeout {
			return fmt.Errorf("target has been silent for %v", c.timeout)
		}
		if slow != "" {
			return fmt.Errorf("target %s in %v", slow, 3*c.timeout)
		}
	}
}

// slow says what the target should have done long ago; c.mu is held.
func (c *conn) slow() string {
	limit := 3 * c.timeout
	for _, t := range c.tasks {
		if time.Since(t.since) > limit {
			return "didn't finish " + t.op
		}
	}
	for _, f := range c.functions {
		if time.Since(f.since) > limit {
			return "didn't answer " + f.name()
		}
	}
	if len(c.queue) == 0 || c.mayIssue() {
		c.stuck = time.Time{}
	} else if c.stuck.IsZero() {
		c.stuck = time.Now()
	} else if time.Since(c.stuck) > limit {
		return "took no new command"
	}
	return ""
}

// close ends the connection, politely if the target takes part.
func (c *conn) close(polite time.Duration) {
	if polite > 0 {
		c.logout(polite)
	}
	c.fail(ErrClosed)
	c.wg.Wait()
}

// logout asks the target to close the session, and waits for its answer for a
// while.
func (c *conn) logout(wait time.Duration) {
	c.mu.Lock()
	if c.err != nil || c.logoutOut != nil {
		c.mu.Unlock()
		return
	}
	done := make(chan struct{})
	c.logoutOut = done
	h := header{0: byte(opLogoutRequest) | flagImmediate, 1: flagFinal} // reason 0: close the session
	h.put32(16, c.tag())
	c.enqueue(controlPDU{h: h})
	c.mu.Unlock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-done:
	case <-c.dead:
	case <-timer.C:
	}
}
