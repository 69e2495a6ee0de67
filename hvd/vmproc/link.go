package vmproc

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/ftlink/session"
	"github.com/duet-ft/duet/ftlink/wire"
)

// handler is the process as the link sees it.
type handler Process

var _ session.Handler = (*handler)(nil)

// Up notes a new stream. One to a process that refused this VM's state is of no
// use; the protocol doesn't learn of it.
func (h *handler) Up(c *session.Conn) {
	p := (*Process)(h)
	if p.unwanted(c.Peer().Incarnation) {
		return
	}
	p.mu.Lock()
	p.conn = c
	p.mu.Unlock()
	p.post(pair.LinkUp{Incarnation: c.Peer().Incarnation})
}

// Down forgets it, and what was arriving on it.
func (h *handler) Down(c *session.Conn, err error) {
	p := (*Process)(h)
	p.mu.Lock()
	p.conn = nil
	offered := p.offered == c
	p.offered, p.offer = nil, nil
	in := p.incoming
	p.incoming = nil
	p.mu.Unlock()
	if in != nil {
		in.drop()
	}
	p.post(pair.LinkDown{})
	switch {
	case errors.Is(err, session.ErrBye) && offered:
		p.turnedDown(c.Peer().Incarnation, err)
	case !errors.Is(err, session.ErrClosed):
		p.say(fmt.Sprintf("link: %v", err))
	}
}

// Heartbeat hands a message of the peer's to the protocol.
func (h *handler) Heartbeat(path session.Path, payload []byte) {
	p := (*Process)(h)
	m, err := pair.Decode(payload)
	if err != nil {
		p.say(err.Error())
		return
	}
	p.mu.Lock()
	p.heard = time.Now()
	p.mu.Unlock()
	p.watchPause(m)
	if len(p.inputs) > cap(p.inputs)/2 {
		return // the loop waits for something, and needs room for what it posts itself
	}
	from := pair.Direct
	if path == session.Management {
		from = pair.Management
	}
	p.post(pair.Received{Path: from, Msg: m})
}

// Trouble is for people; a host that has no peer has none.
func (h *handler) Trouble(err error) {
	if p := (*Process)(h); p.tie.Load().peer != nil {
		p.say("link: " + err.Error())
	}
}

// Frame takes a frame of the stream.
func (h *handler) Frame(c *session.Conn, f wire.Frame) {
	p := (*Process)(h)
	err := p.frame(c, f)
	var no refusedError
	switch {
	case errors.As(err, &no):
		c.Close(string(no))
	case err != nil:
		p.say("link: " + err.Error())
		c.Abort(err)
	}
}

func (p *Process) frame(c *session.Conn, f wire.Frame) error {
	p.mu.Lock()
	in := p.incoming
	p.mu.Unlock()
	switch f.Type {
	case wire.TypeAck:
		received, verified, err := wire.ParseAck(f)
		if err != nil {
			return err
		}
		return p.acknowledged(received, verified)
	case wire.TypeSeedBegin:
		var s seedHeader
		if err := json.Unmarshal(f.Payload, &s); err != nil {
			return fmt.Errorf("%w: seed header: %w", wire.ErrFrame, err)
		}
		return p.beginSeed(c.Peer().Incarnation, c, s)
	case wire.TypeControl:
		return p.heardControl(c, f.Payload)
	case wire.TypeHave:
		p.mu.Lock()
		offer := p.offer
		p.mu.Unlock()
		if offer == nil {
			return fmt.Errorf("%w: pages that nobody asked for", wire.ErrFrame)
		}
		return offer.take(f.Payload)
	case wire.TypeWant:
		return p.giveBlocks(c, f.Payload)
	}
	if f.Type == wire.TypePacket {
		p.packet(f.Payload)
		return nil
	}
	if in == nil && f.Type == wire.TypeLog {
		return p.keepEarly(c, f)
	}
	if in == nil {
		return nil // of a transfer that was given up here
	}
	switch f.Type {
	case wire.TypePages:
		return wire.DecodePages(f.Payload, in.page)
	case wire.TypeState:
		return in.state(f.Payload)
	case wire.TypeSeedEnd:
		return p.finishSeed(c, in)
	case wire.TypeLog:
		return p.takeLog(c, in, f)
	case wire.TypeBlocks:
		return in.blocks(f.Payload)
	}
	return nil
}

// acknowledged lets go of what the secondary has.
func (p *Process) acknowledged(received, verified uint64) error {
	p.mu.Lock()
	g := p.guest
	p.mu.Unlock()
	if g == nil || !g.rim.live.Load() {
		return nil
	}
	if err := g.engine.Ack(received, verified); err != nil {
		return err
	}
	p.report(received, verified)
	if p.moving.hurry.Load() {
		p.post(pair.Progress{Received: received, Verified: verified})
	}
	return nil
}

// takeLog hands the log to the engine. At level received, that it is here, with
// what it refers to, is what the primary waits for.
func (p *Process) takeLog(c *session.Conn, in *incoming, f wire.Frame) error {
	lsn, log, err := wire.ParseLog(f, nil)
	if err != nil {
		return err
	}
	if !in.whole {
		return fmt.Errorf("%w: log before the state is complete", wire.ErrFrame)
	}
	g := in.g
	if g.sealed.Load() {
		return nil
	}
	if err := g.engine.Feed(lsn, append([]byte(nil), log...)); err != nil {
		p.post(pair.Faulted{Fault: pair.Crashed})
		return err
	}
	return in.holds(c, g.engine.Held(lsn+uint64(len(log))))
}
