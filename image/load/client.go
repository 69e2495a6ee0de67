package load

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"time"
)

// readBatch is how many values are asked for at once while reading back.
const readBatch = 64

// client is one connection with its ledger. Whoever holds its turn may use both.
type client struct {
	number int
	conn   net.Conn
	in     *bufio.Reader
	turn   chan struct{} // holds one token
	ledger *ledger
	share  *share // nil: no key is shared
	turns  int    // requests made
	broken error  // why the connection is lost
	buf    []byte

	timeout time.Duration
	pause   time.Duration
	note    func(connection int, sent, got time.Time)
	lost    func(err error)
}

// lose notes that the connection is of no more use.
func (c *client) lose(err error) {
	c.broken = fmt.Errorf("connection %d: %w", c.number, err)
	c.lost(c.broken)
}

// take waits for the client's turn.
func (c *client) take(ctx context.Context) error {
	select {
	case <-c.turn:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *client) give() { c.turn <- struct{}{} }

// run makes requests until ctx ends or the connection breaks.
func (c *client) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if c.take(ctx) != nil {
			return
		}
		err := c.request(ctx)
		c.give()
		if err != nil {
			return
		}
		timer.Reset(c.pause)
	}
}

// request makes one request and notes what came of it.
func (c *client) request(ctx context.Context) error {
	if c.turns++; c.share != nil && c.turns%sharedEach == 0 {
		return c.access(ctx)
	}
	q := c.ledger.next()
	sent := time.Now()
	c.buf = appendCommand(c.buf[:0], q.args()...)
	r, err := c.exchange()
	if err == nil {
		err = c.ledger.acknowledge(r)
	}
	if err != nil {
		if ctx.Err() == nil { // else we closed it
			c.lose(err)
		}
		return err
	}
	c.note(c.number, sent, time.Now())
	return nil
}

// access reads or writes a shared key.
func (c *client) access(ctx context.Context) error {
	a := c.share.next(c.number, c.turns/sharedEach)
	sent := time.Now()
	c.buf = appendCommand(c.buf[:0], a.args()...)
	r, err := c.exchange()
	if err == nil {
		err = a.accept(r)
	}
	if err != nil {
		c.share.lose(c.number, a, sent)
		if ctx.Err() == nil { // else we closed it
			c.lose(err)
		}
		return err
	}
	got := time.Now()
	c.share.add(c.number, a, r.text, sent, got)
	c.note(c.number, sent, got)
	return nil
}

// exchange sends buf, which holds one request, and reads one reply.
func (c *client) exchange() (reply, error) {
	if err := c.conn.SetDeadline(time.Now().Add(c.timeout)); err != nil {
		return reply{}, err
	}
	if _, err := c.conn.Write(c.buf); err != nil {
		return reply{}, err
	}
	return readReply(c.in)
}

// read reads keys over this connection; on an error, it returns what it has.
func (c *client) read(keys []string) (replies []reply, err error) {
	for len(keys) > 0 {
		n := min(readBatch, len(keys))
		c.buf = c.buf[:0]
		for _, k := range keys[:n] {
			c.buf = appendCommand(c.buf, "GET", k)
		}
		keys = keys[n:]
		r, err := c.exchange()
		for i := 1; err == nil; i++ {
			replies = append(replies, r)
			if i == n {
				break
			}
			r, err = readReply(c.in)
		}
		if err != nil {
			c.lose(err)
			return replies, err
		}
	}
	return replies, nil
}
