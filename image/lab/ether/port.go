package ether

import (
	"bufio"
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// Direction tells the two directions of a port apart.
type Direction int

// The directions, as seen from the machine that is plugged in.
const (
	FromMachine Direction = iota
	ToMachine
)

// Both are the directions of a port, for loops.
var Both = []Direction{FromMachine, ToMachine}

// Port is where one machine's NIC is plugged in. It outlives the machine: when QEMU dies, the port waits for the
// next one. Frames that it can't deliver are dropped.
type Port struct {
	name  string
	ln    net.Listener
	lanes [2]*lane

	mu     sync.Mutex
	conn   net.Conn
	hear   func(frame []byte)
	gone   func()
	closed bool
}

// NewPort makes a port that listens on the Unix socket at path, for QEMU's
// "-netdev stream,id=..,server=off,addr.type=unix,addr.path=PATH".
func NewPort(path string) (*Port, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	p := newPort(path)
	p.ln = ln
	go p.accept()
	return p, nil
}

// NewPipe makes a port and the other end of its stream, for a network stack in this process.
func NewPipe(name string) (*Port, net.Conn) {
	p := newPort(name)
	ours, theirs := net.Pipe()
	if p.adopt(ours) {
		go p.serve(ours)
	}
	return p, theirs
}

func newPort(name string) *Port {
	p := &Port{name: name, hear: func([]byte) {}, gone: func() {}}
	p.lanes[FromMachine] = newLane(p.deliver)
	p.lanes[ToMachine] = newLane(p.write)
	return p
}

// Path is the socket that QEMU connects to.
func (p *Port) Path() string { return p.name }

// Send queues a frame for the machine. It never blocks; the frame must not be changed afterwards.
func (p *Port) Send(frame []byte) { p.lanes[ToMachine].put(frame) }

// Cut drops all frames of a direction, also those under way, until it is called with false: the cable is pulled.
func (p *Port) Cut(d Direction, cut bool) { p.lanes[d].cut.Store(cut) }

// SetDelay holds each frame of a direction back for that long; the order stays.
func (p *Port) SetDelay(d Direction, by time.Duration) { p.lanes[d].delay.Store(int64(by)) }

// SetLoss drops that many of a thousand frames of a direction, by chance.
func (p *Port) SetLoss(d Direction, perMille int) { p.lanes[d].loss.Store(int64(perMille)) }

// Only drops all frames of a direction but those that pass; nil lets all through.
func (p *Port) Only(d Direction, pass func(frame []byte) bool) {
	if pass == nil {
		p.lanes[d].only.Store(nil)
		return
	}
	p.lanes[d].only.Store(&pass)
}

// Counters returns what went through in a direction.
func (p *Port) Counters(d Direction) Counters { return p.lanes[d].counters() }

// Connected reports whether a machine is plugged in.
func (p *Port) Connected() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conn != nil
}

// connect says where the machine's frames go, and whom to tell when it is unplugged.
func (p *Port) connect(hear func(frame []byte), gone func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hear, p.gone = hear, gone
}

// Close unplugs the machine and stops listening.
func (p *Port) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	if p.conn != nil {
		p.conn.Close()
	}
	p.mu.Unlock()
	var err error
	if p.ln != nil {
		err = p.ln.Close()
	}
	for _, l := range p.lanes {
		l.close()
	}
	return err
}

func (p *Port) accept() {
	for {
		conn, err := p.ln.Accept()
		if err != nil {
			return
		}
		if p.adopt(conn) {
			go p.serve(conn)
		}
	}
}

// adopt makes conn the machine's stream. A new machine takes the port over from an old one.
func (p *Port) adopt(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		conn.Close()
		return false
	}
	if p.conn != nil {
		p.conn.Close()
	}
	p.conn = conn
	p.lanes[ToMachine].drain()
	return true
}

// serve reads a machine's frames until its stream ends.
func (p *Port) serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReaderSize(conn, MaxFrame)
	for {
		f, err := ReadFrame(r)
		if err != nil {
			break
		}
		p.lanes[FromMachine].put(f)
	}
	p.mu.Lock()
	last := p.conn == conn
	if last {
		p.conn = nil
	}
	gone := p.gone
	p.mu.Unlock()
	if last {
		gone()
	}
}

func (p *Port) deliver(frame []byte) bool {
	p.mu.Lock()
	hear := p.hear
	p.mu.Unlock()
	hear(frame)
	return true
}

func (p *Port) write(frame []byte) bool {
	p.mu.Lock()
	conn := p.conn
	p.mu.Unlock()
	if conn == nil {
		return false
	}
	_, err := conn.Write(AppendFrame(make([]byte, 0, len(frame)+4), frame))
	return err == nil
}
