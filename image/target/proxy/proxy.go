// Package proxy stands between an iSCSI initiator and its target, for tests: it holds commands up, cuts connections, has
// the target refuse commands, and counts what was written.
//
// # Place
//
// image/pairlab gives each host one of its own, so that a volume can be lost to one host and not to the other. It imports
// nothing of ours.
//
//	host --TCP--> Proxy --TCP--> istgt
//	              each PDU is read whole, looked at, and passed on with digests made anew
//
// A command that is to fail reaches the target with an operation code that no target knows, and the target's refusal is
// made the wanted answer on its way back. So all of the session's numbers (CmdSN, StatSN) stay right, and the command has
// certainly done nothing.
package proxy

import (
	"bufio"
	"errors"
	"net"
	"sync"
	"time"
)

// Mode is what the proxy does to its connections. The zero value passes everything on.
type Mode struct {
	// Cut closes all connections and refuses new ones.
	Cut bool
	// Stall lets nothing through, in either direction; what is held up goes on later.
	Stall bool
	// Delay holds each answer of the target back.
	Delay time.Duration
	// Refuse is the answer that commands get instead of being executed.
	Refuse Refusal
}

// Refusal is an answer of a target that does nothing.
type Refusal int

// The refusals.
const (
	// None lets commands be executed.
	None Refusal = iota
	// Busy answers each command for blocks with status BUSY.
	Busy
	// Broken fails each command for blocks with a medium error: "write error" (03h, 0Ch, 00h).
	Broken
	// Full fails writes as a thin volume without space does: "space allocation failed write protect" (07h, 27h, 07h).
	Full
)

// refuses tells whether a command is refused.
func (r Refusal) refuses(cdb []byte) bool {
	switch r {
	case Busy, Broken:
		return blocks(cdb)
	case Full:
		return writes(cdb)
	}
	return false
}

func (r Refusal) answer(p *pdu) {
	switch r {
	case Busy:
		p.answer(statusBusy, nil)
	case Broken:
		p.answer(statusCheck, fixedSense(3, 0x0c, 0))
	case Full:
		p.answer(statusCheck, fixedSense(7, 0x27, 7))
	}
}

// Counts are commands that change blocks.
type Counts struct {
	// Written were done, Refused were answered with anything but GOOD, by the target or by the proxy.
	Written, Refused uint64
}

// Proxy is one host's way to a target.
type Proxy struct {
	target string
	ln     net.Listener
	all    sync.WaitGroup

	mu      sync.Mutex
	mode    Mode
	changed chan struct{} // closed and replaced when the mode changes
	conns   map[*link]bool
	closed  bool
	counts  Counts
}

// New makes a proxy on a free port of this computer's loopback, for the target at an address.
func New(target string) (*Proxy, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{target: target, ln: ln, changed: make(chan struct{}), conns: map[*link]bool{}}
	p.all.Go(p.accept)
	return p, nil
}

// Port is where it listens, on 127.0.0.1.
func (p *Proxy) Port() int { return p.ln.Addr().(*net.TCPAddr).Port }

// Set changes what it does.
func (p *Proxy) Set(m Mode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mode = m
	close(p.changed)
	p.changed = make(chan struct{})
	if m.Cut {
		for l := range p.conns {
			l.close()
		}
	}
}

// Counts returns what was counted so far.
func (p *Proxy) Counts() Counts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts
}

// Close ends it, with all connections.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.closed = true
	close(p.changed)
	p.changed = make(chan struct{})
	for l := range p.conns {
		l.close()
	}
	p.mu.Unlock()
	err := p.ln.Close()
	p.all.Wait()
	return err
}

// pass waits while nothing is let through, and for the delay, and returns the mode. It fails when the proxy is closed.
func (p *Proxy) pass(l *link, delayed bool) (Mode, error) {
	var over <-chan time.Time
	for waited := false; ; {
		p.mu.Lock()
		mode, changed, closed := p.mode, p.changed, p.closed
		p.mu.Unlock()
		switch {
		case closed:
			return mode, net.ErrClosed
		case mode.Stall:
		case !delayed || mode.Delay == 0 || waited:
			return mode, nil
		case over == nil:
			over = time.After(mode.Delay)
		}
		select {
		case <-changed:
		case <-over:
			waited, over = true, nil
		case <-l.done:
			return mode, net.ErrClosed
		}
	}
}

func (p *Proxy) count(good bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if good {
		p.counts.Written++
	} else {
		p.counts.Refused++
	}
}

func (p *Proxy) accept() {
	for {
		host, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.all.Go(func() { p.serve(host) })
	}
}

// serve carries one connection.
func (p *Proxy) serve(host net.Conn) {
	l := &link{proxy: p, host: host, done: make(chan struct{}), tags: map[uint32]fate{}}
	p.mu.Lock()
	refused := p.closed || p.mode.Cut
	if !refused {
		p.conns[l] = true
	}
	p.mu.Unlock()
	if refused {
		host.Close()
		return
	}
	defer func() {
		l.close()
		p.mu.Lock()
		delete(p.conns, l)
		p.mu.Unlock()
	}()
	if _, err := p.pass(l, false); err != nil {
		return
	}
	target, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	if !l.join(target) {
		return
	}
	var down sync.WaitGroup
	down.Go(func() {
		defer l.close()
		l.down()
	})
	l.up()
	l.close()
	down.Wait()
}

// fate is what is known of a command that the target hasn't answered.
type fate struct {
	refused Refusal
	writes  bool
}

// maxTags bounds the commands of a connection that are under way; a target of tests takes 64.
const maxTags = 4096

var errTags = errors.New("too many commands are under way")

// link is one connection of the host's with the one that was made for it.
type link struct {
	proxy *Proxy
	host  net.Conn
	done  chan struct{}
	once  sync.Once

	mu     sync.Mutex
	target net.Conn
	ended  bool
	full   bool    // logged in: digests count from here on
	used   digests // what was negotiated
	tags   map[uint32]fate
}

// join notes the connection to the target, unless the link has ended.
func (l *link) join(target net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		target.Close()
		return false
	}
	l.target = target
	return true
}

func (l *link) close() {
	l.once.Do(func() {
		close(l.done)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.ended = true
		l.host.Close()
		if l.target != nil {
			l.target.Close()
		}
	})
}

func (l *link) digests() (d digests) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.full {
		d = l.used
	}
	return d
}

// up carries the host's PDUs.
func (l *link) up() {
	r := bufio.NewReader(l.host)
	var out []byte
	for {
		// The digests are settled when the first byte behind the login is there: the host has the last login response by then.
		if _, err := r.Peek(1); err != nil {
			return
		}
		d := l.digests()
		p, err := read(r, d)
		if err != nil {
			return
		}
		mode, err := l.proxy.pass(l, false)
		if err != nil {
			return
		}
		if p.op() == opCommand && l.command(p, mode) != nil {
			return
		}
		out = p.append(out[:0], d)
		if _, err := l.target.Write(out); err != nil {
			return
		}
	}
}

// command notes a command, and spoils it if it is to be refused.
func (l *link) command(p *pdu, mode Mode) error {
	f := fate{writes: writes(p.head[32:])}
	if mode.Refuse.refuses(p.head[32:]) {
		f.refused = mode.Refuse
		p.spoil()
	}
	if f == (fate{}) {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.tags) >= maxTags {
		return errTags
	}
	l.tags[p.tag()] = f
	return nil
}

// down carries the target's PDUs.
func (l *link) down() {
	r := bufio.NewReader(l.target)
	var out []byte
	for {
		d := l.digests()
		p, err := read(r, d)
		if err != nil {
			return
		}
		if _, err := l.proxy.pass(l, true); err != nil {
			return
		}
		switch p.op() {
		case opLoginResponse:
			l.mu.Lock()
			l.full = p.loggedIn(&l.used)
			l.mu.Unlock()
		case opResponse:
			l.response(p)
		}
		out = p.append(out[:0], d)
		if _, err := l.host.Write(out); err != nil {
			return
		}
	}
}

// response makes the answer to a refused command the wanted one, and counts.
func (l *link) response(p *pdu) {
	l.mu.Lock()
	f, known := l.tags[p.tag()]
	delete(l.tags, p.tag())
	l.mu.Unlock()
	if !known {
		return
	}
	f.refused.answer(p)
	if f.writes {
		l.proxy.count(p.head[2] == 0 && p.head[3] == statusGood)
	}
}
