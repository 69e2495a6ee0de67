package iscsi

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"time"
)

// readLoop takes PDUs until one can't be taken.
func (c *conn) readLoop() error {
	var h header
	for {
		if c.br.Buffered() == 0 {
			// Callers whose command is done may send the next one before this
			// goroutine goes to sleep.
			runtime.Gosched()
		}
		if err := c.framing.readHeader(c.br, &h); err != nil {
			return err
		}
		if err := c.receive(&h); err != nil {
			return err
		}
		c.lastReceived.Store(time.Now().UnixNano())
	}
}

// receive takes one PDU, its data still in the stream.
func (c *conn) receive(h *header) error {
	if h.op() == opDataIn {
		return c.dataIn(h)
	}
	var data []byte
	if n := h.dataLen(); n > 0 {
		data = make([]byte, n)
		if err := c.framing.readData(c.br, h, data); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	c.pingOut = false
	switch h.op() {
	case opSCSIResponse:
		c.acknowledge(h, true)
		return c.scsiResponse(h, data)
	case opR2T:
		c.acknowledge(h, false)
		return c.readyToTransfer(h)
	case opNopIn:
		c.acknowledge(h, h.itt() != noTag)
		return c.nopIn(h, data)
	case opTaskResponse:
		c.acknowledge(h, true)
		return c.managed(h)
	case opLogoutReply:
		c.acknowledge(h, true)
		if c.logoutOut != nil {
			close(c.logoutOut)
			c.logoutOut = nil
		}
		return nil
	case opAsync:
		c.acknowledge(h, true)
		return c.async(h, data)
	case opReject:
		return rejected(h, data)
	}
	return fmt.Errorf("target sends PDU 0x%02x, which makes no sense here", h[0])
}

// acknowledge takes over the target's sequence numbers (RFC 7143, section
// 4.2.2). status says that the PDU used up a StatSN.
func (c *conn) acknowledge(h *header, status bool) {
	if status && after(h.statSN()+1, c.expStatSN) {
		c.expStatSN = h.statSN() + 1
	}
	m := h.maxCmdSN()
	if after(m, c.maxCmdSN) && !after(h.expCmdSN(), m+1) {
		c.maxCmdSN = m
		if len(c.queue) > 0 { // else the writer would be woken for nothing, at each answer
			c.wake.Signal()
		}
	}
}

// dataIn reads data straight into the task's buffer.
func (c *conn) dataIn(h *header) error {
	n, offset := h.dataLen(), int(h.bufferOffset())
	c.mu.Lock()
	t := c.tasks[h.itt()]
	c.mu.Unlock()
	if t == nil {
		return fmt.Errorf("target sends data for tag 0x%x, which is not open", h.itt())
	}
	if err := c.fill(t, h, n, offset); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	c.pingOut = false
	c.acknowledge(h, h.has(flagStatus))
	if !h.has(flagStatus) {
		return nil
	}
	_, status := h.status()
	return c.finish(t, status, Sense{})
}

func (c *conn) fill(t *task, h *header, n, offset int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if offset != t.got || n > len(t.in)-t.got {
		return fmt.Errorf("%s: target sends bytes %d to %d; expected from %d, at most to %d", t.op, offset, offset+n, t.got, len(t.in))
	}
	dst := t.in[offset : offset+n]
	if t.released.Load() {
		dst = make([]byte, n)
	}
	if err := c.framing.readData(c.br, h, dst); err != nil {
		return err
	}
	t.got += n
	return nil
}

// scsiResponse is RFC 7143, section 11.4.
func (c *conn) scsiResponse(h *header, data []byte) error {
	t := c.tasks[h.itt()]
	if t == nil {
		return fmt.Errorf("target answers tag 0x%x, which is not open", h.itt())
	}
	response, status := h.status()
	if response != 0 {
		return fmt.Errorf("%s: target failed in itself (response 0x%02x)", t.op, response)
	}
	var s Sense
	if status == statusCheckCondition {
		s = parseSense(data)
	}
	if left := h.u32(44); status == statusGood && len(t.out) > 0 && h.has(flagUnderflow|flagOverflow) && left != 0 {
		return fmt.Errorf("%s: target says that it's done, but %d bytes are left over", t.op, left)
	}
	return c.finish(t, status, s)
}

// finish completes a task with the target's verdict; c.mu is held.
func (c *conn) finish(t *task, status byte, s Sense) error {
	if status == statusGood && !t.short && !t.released.Load() && t.got != len(t.in) {
		return fmt.Errorf("%s: target sent %d bytes of %d and says that this is all", t.op, t.got, len(t.in))
	}
	if n := int(t.taken.Load()); status == statusGood && !t.released.Load() && n < len(t.out) {
		return fmt.Errorf("%s: target took %d bytes of %d and says that this is all", t.op, n, len(t.out))
	}
	delete(c.tasks, t.itt)
	t.status, t.sense = status, s
	c.complete(t, nil)
	return nil
}

// readyToTransfer queues the data that the target asks for (RFC 7143, section
// 11.8).
func (c *conn) readyToTransfer(h *header) error {
	t := c.tasks[h.itt()]
	if t == nil {
		return fmt.Errorf("target wants data of tag 0x%x, which is not open", h.itt())
	}
	from, n := int(h.bufferOffset()), int(h.desiredLength())
	if n == 0 || from > len(t.out) || n > len(t.out)-from || n > c.p.maxBurst {
		return fmt.Errorf("%s: target wants bytes %d to %d of %d", t.op, from, from+n, len(t.out))
	}
	if len(c.control) >= maxControl {
		return errors.New("target wants more and more without taking it")
	}
	var d header
	d[0] = byte(opDataOut)
	copy(d[8:16], h[8:16])
	d.put32(16, t.itt)
	d.put32(20, h.transferTag())
	t.taken.Add(int64(n))
	c.enqueue(controlPDU{h: d, task: t, from: from, n: n})
	return nil
}

// nopIn answers a target's ping; the answer to ours has done its work by
// arriving (RFC 7143, sections 11.18 and 11.19).
func (c *conn) nopIn(h *header, data []byte) error {
	if h.transferTag() == noTag {
		return nil
	}
	if c.pongs >= maxPongs {
		return errors.New("target pings more and more without taking the answers")
	}
	c.pongs++
	var r header
	r[0] = byte(opNopOut) | flagImmediate
	r[1] = flagFinal
	copy(r[8:16], h[8:16])
	r.put32(16, noTag)
	r.put32(20, h.transferTag())
	c.enqueue(controlPDU{h: r, pong: true, data: bytes.Clone(data[:min(len(data), c.p.targetMaxRecv)])})
	return nil
}

// async is an asynchronous message (RFC 7143, section 11.9). Event 0 carries
// sense data, event 1 asks for a logout within so many seconds, 255 is a
// vendor's; all others end the connection, soon.
func (c *conn) async(h *header, data []byte) error {
	switch event := h[36]; event {
	case 0:
		if parseSense(data).capacityChanged() {
			// The login looks at the unit anew.
			return errors.New("logical unit's capacity changed")
		}
		return nil
	case 255:
		return nil
	case 1:
		c.leave(time.Duration(h.u32(44)&0xffff) * time.Second)
		return nil
	case 2, 3:
		return errors.New("target drops the connection")
	case 4:
		return errors.New("target asks to negotiate anew")
	default:
		return fmt.Errorf("target sends asynchronous event %d", event)
	}
}

// leave logs out when the commands under way are done, or when the target's time
// for it is nearly over; c.mu is held. Commands that wait go out on the next
// connection.
func (c *conn) leave(within time.Duration) {
	if c.leaving {
		return
	}
	c.leaving = true
	c.held++
	end := deadlineIn(min(within/2, c.timeout))
	c.wg.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			c.mu.Lock()
			busy := len(c.tasks) > 0
			c.mu.Unlock()
			if !busy || time.Now().After(end) {
				break
			}
			select {
			case <-tick.C:
			case <-c.dead:
				return
			}
		}
		c.logout(time.Second)
		c.fail(errors.New("target asked for a logout"))
	})
}

// rejected is RFC 7143, section 11.17: the target didn't take a PDU of ours.
func rejected(h *header, data []byte) error {
	what := "a PDU"
	if len(data) >= headerLen {
		what = fmt.Sprintf("PDU 0x%02x", data[0])
	}
	return fmt.Errorf("target rejects %s (reason 0x%02x)", what, h[2])
}
