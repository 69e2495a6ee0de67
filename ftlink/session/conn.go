package session

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/duet-ft/duet/ftlink/wire"
)

const (
	// bulkQueue is how many bytes may wait on a Conn before another frame of
	// pages or state does: small, since the log waits behind them.
	bulkQueue = 1 << 20
	// maxQueue is the same for all other frames.
	maxQueue = 16 << 20
	// inlineMost is the most that a sender writes by itself, in bytes.
	inlineMost = 16 << 10
	// keepQueue is the size of a queue's buffer that is used again.
	keepQueue = 2 << 20
	// byeGrace is how long a stream that was closed may take to deliver what
	// is queued.
	byeGrace = 500 * time.Millisecond
)

// Conn is one stream to the peer. Sending is safe for concurrent use. A frame
// goes out at once; those that are sent while the one before is being written
// share the next write.
//
// A goroutine of its own writes. Little of the log and acknowledgements, which the
// guest's effects wait for, are written by who sends them if the network takes
// them without a wait: to wake a thread may take longer than the wire.
type Conn struct {
	net    *batched
	tls    *tls.Conn
	reader *wire.Reader
	peer   wire.Hello
	remote netip.AddrPort
	t      *traffic

	mu      sync.Mutex
	changed *sync.Cond // written or err
	work    *sync.Cond // for the writer: out, left, busy or err
	busy    bool       // somebody writes
	left    bool       // net holds what the network didn't take
	out     []byte     // frames that wait to be written
	spare   []byte
	queued  uint64 // bytes of frames sent so far
	taken   uint64 // those of them that have left out
	written uint64 // those of them that were handed to the network
	closing bool
	err     error // why the stream ended

	done chan struct{} // closed when Down has been called
}

func newConn(n *batched, t *tls.Conn, r *wire.Reader, peer wire.Hello, remote netip.AddrPort) *Conn {
	c := &Conn{net: n, tls: t, reader: r, peer: peer, remote: remote, t: n.t, done: make(chan struct{})}
	c.changed, c.work = sync.NewCond(&c.mu), sync.NewCond(&c.mu)
	return c
}

// Peer is the peer's hello.
func (c *Conn) Peer() wire.Hello { return c.peer }

// RoundTrip is the link's round trip without the programs at its ends: the
// shortest of the last minutes. 0 means that it isn't known.
func (c *Conn) RoundTrip() time.Duration { return roundTrip(c.net.Conn) }

// Remote is the peer's address.
func (c *Conn) Remote() netip.AddrPort { return c.remote }

// Send queues a frame. It blocks while much is queued already: 1 MiB for pages
// and state, 16 MiB for the rest. The error says why the stream ended, or what
// is wrong with the frame.
func (c *Conn) Send(f wire.Frame) error {
	if err := f.Check(); err != nil {
		return err
	}
	limit := uint64(maxQueue)
	if f.Type == wire.TypePages || f.Type == wire.TypeState {
		limit = bulkQueue
	}
	return c.enqueue(limit, false, func(dst []byte) []byte { return wire.Append(dst, f) })
}

// SendLog queues the bytes of the log that start at lsn.
func (c *Conn) SendLog(lsn uint64, log []byte) error {
	if len(log) == 0 {
		return nil
	}
	b := scratch.Get().(*[]byte)
	defer scratch.Put(b)
	*b = wire.AppendLog((*b)[:0], lsn, log)
	err := c.enqueue(maxQueue, true, func(dst []byte) []byte { return append(dst, *b...) })
	if cap(*b) > keepQueue {
		*b = nil
	}
	return err
}

// SendAck queues an acknowledgement: the LSNs that are received and verified.
func (c *Conn) SendAck(received, verified uint64) error {
	return c.enqueue(maxQueue, true, func(dst []byte) []byte { return wire.AppendAck(dst, received, verified) })
}

// SendPages queues a Pages frame; see wire.AppendPages.
func (c *Conn) SendPages(pages []int, page func(int) []byte) error {
	b := scratch.Get().(*[]byte)
	defer scratch.Put(b)
	payload, err := wire.AppendPages((*b)[:0], pages, page)
	if err != nil {
		return err
	}
	*b = payload
	return c.Send(wire.Frame{Type: wire.TypePages, Payload: payload})
}

// scratch holds buffers in which frames are made, outside of a Conn's lock.
var scratch = sync.Pool{New: func() any { return new([]byte) }}

// enqueue lets encode append a frame to the queue once less than limit bytes
// wait in it. One that is urgent is written here and now, if it can be.
func (c *Conn) enqueue(limit uint64, urgent bool, encode func([]byte) []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && !c.closing && c.queued-c.written >= limit {
		c.changed.Wait()
	}
	switch {
	case c.err != nil:
		return c.err
	case c.closing:
		return ErrClosed
	}
	c.push(encode)
	if urgent && !c.busy && !c.left && len(c.out) <= inlineMost {
		c.hand(c.offer)
	}
	if len(c.out) > 0 || c.left {
		c.work.Signal()
	}
	return nil
}

func (c *Conn) push(encode func([]byte) []byte) {
	n := len(c.out)
	c.out = encode(c.out)
	c.queued += uint64(len(c.out) - n)
	c.t.framesOut.Add(1)
}

// Pending is how many bytes of frames wait to be handed to the network.
func (c *Conn) Pending() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return int(c.queued - c.written)
}

// Flush waits until what was sent before has been handed to the network.
func (c *Conn) Flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for upto := c.queued; c.err == nil && c.written < upto; {
		c.changed.Wait()
	}
	return c.err
}

// Close ends the stream after what is queued, with a reason for the people at
// the other end. It returns at once; Down follows within half a second.
func (c *Conn) Close(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing || c.err != nil {
		return
	}
	c.closing = true
	c.push(func(dst []byte) []byte { return wire.Append(dst, byeFrame(reason)) })
	c.work.Signal()
	time.AfterFunc(byeGrace, func() { c.Abort(ErrClosed) })
}

// Abort ends the stream at once. Down gets err, unless the stream had ended
// before.
func (c *Conn) Abort(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	if c.closing {
		err = ErrClosed
	}
	c.err = err
	c.out, c.spare = nil, nil
	c.changed.Broadcast()
	c.work.Signal()
	// Not tls.Conn.Close: it would write an alert, and wait for it. What the
	// peer is to know has been said by Bye. The error says nothing new.
	_ = c.net.Close()
}

// drop ends a stream that was never up.
func (c *Conn) drop(err error) {
	c.Abort(err)
	close(c.done)
}

// write hands the queue to the network until the stream ends.
func (c *Conn) write() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		for c.err == nil && (c.busy || len(c.out) == 0 && !c.left) {
			c.work.Wait()
		}
		if c.err != nil {
			return
		}
		c.hand(c.writeOut)
	}
}

// hand takes the queue and has to write it, without the lock. Some may be left
// for the writer.
func (c *Conn) hand(to func([]byte) (left bool, err error)) {
	b := c.out
	c.out, c.busy = c.spare[:0], true
	c.mu.Unlock()
	left, err := to(b)
	if err != nil {
		c.Abort(lost(err))
	}
	c.mu.Lock()
	c.busy, c.left = false, left
	if c.taken += uint64(len(b)); !left {
		c.written = c.taken
	}
	c.spare = nil
	if cap(b) <= keepQueue {
		c.spare = b
	}
	c.changed.Broadcast()
}

// writeOut writes b and what offer has left.
func (c *Conn) writeOut(b []byte) (left bool, err error) {
	c.net.cork()
	if len(b) > 0 {
		if _, err := c.tls.Write(b); err != nil {
			return false, err
		}
	}
	return false, c.net.uncork()
}

// offer writes what the network takes of b at once. b is little, so TLS makes
// records of it without a write.
func (c *Conn) offer(b []byte) (left bool, err error) {
	c.net.cork()
	if _, err := c.tls.Write(b); err != nil {
		return false, err
	}
	return c.net.offer()
}

// read hands frames to h until the stream ends.
func (c *Conn) read(h Handler) {
	for {
		f, err := c.reader.Next()
		if err != nil {
			c.Abort(lost(err))
			return
		}
		c.t.framesIn.Add(1)
		switch f.Type {
		case wire.TypeHello:
			c.Abort(fmt.Errorf("%w: a second hello", wire.ErrFrame))
			return
		case wire.TypeBye:
			c.Abort(fmt.Errorf("%w: %q", ErrBye, f.Payload))
			return
		default:
			h.Frame(c, f)
		}
	}
}

func byeFrame(reason string) wire.Frame {
	return wire.Frame{Type: wire.TypeBye, Payload: []byte(reason)[:min(len(reason), wire.TypeBye.Limit())]}
}

// lost puts the error of a stream into words.
func lost(err error) error {
	switch {
	case errors.Is(err, wire.ErrFrame):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: it takes no more data: its VM process hangs, or the cable is out", ErrLost)
	case errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, syscall.EHOSTUNREACH),
		errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.ENETDOWN):
		return fmt.Errorf("%w: no answer on the direct NIC: the cable is out, or its host is down", ErrLost)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("%w: it ended without a word: its VM process died", ErrLost)
	}
	return fmt.Errorf("%w: %w", ErrLost, err)
}
