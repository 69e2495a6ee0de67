// Package mux is the host's end of a guest's vsock device: it carries streams
// between clients of a Unix socket and ports of the guest, by the convention of
// Firecracker.
//
// # Place
//
// hvd runs one beside each VM, on the host that is its primary. Of ours it
// imports hvd/virtio/vsock, for the packet's sizes. Machine is pure: packets and
// bytes in, events out. Server is the rim around it: sockets and goroutines.
//
// # Convention
//
// A client connects to the Unix socket, sends "CONNECT <port>\n", and gets
// "OK <port of the host>\n" when the guest has accepted; from then on the bytes
// of the stream flow. A refusal closes the socket. The guest can't connect to
// the host: it is refused.
//
// # A connection (VIRTIO 1.2 section 5.10.6)
//
//	Connect: REQUEST out
//	    |
//	connecting -- RESPONSE in --> open -- RST in or out --> gone
//	    |                          |                         ^
//	    +-- RST in, Abort ---------|-------------------------+
//	                               | CloseSend: SHUTDOWN out |
//	                               | SHUTDOWN in             |
//	                               +-- both ended: RST out --+
//
// Credit: each side says how much it buffers (buf_alloc) and has passed on
// (fwd_cnt), and sends no more than the other can buffer. What a client hasn't
// taken yet is therefore bounded by Buffer per connection; a guest that sends
// more loses the connection.
package mux

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

const (
	// MaxConns is how many connections there may be.
	MaxConns = 64
	// Buffer is how many bytes of a guest's stream wait for their client.
	Buffer = 64 << 10
	// MaxWindow is how many bytes of a client's stream are on their way to the
	// guest's application, even if the guest could buffer more.
	MaxWindow = 128 << 10
	// MaxPayload fits the receive buffers that Linux posts: 4 KiB with the
	// packet's header and some bookkeeping.
	MaxPayload = 3584

	firstPort = 1 << 30
	lastPort  = 1<<31 - 1
)

// ErrTooMany says that there are MaxConns connections already.
var ErrTooMany = errors.New("too many vsock connections to this guest")

// ID names a connection; it is the host's port.
type ID uint32

// EventKind says what an event is.
type EventKind uint8

// The kinds of events.
const (
	Packet EventKind = iota + 1 // Data is a packet for the guest
	Opened                      // the guest accepted
	Data                        // Data is for the client; report it by Consumed
	End                         // the guest sends no more
	Window                      // Send may accept more
	Gone                        // the connection is no more
)

// String is the kind's name.
func (k EventKind) String() string {
	names := [...]string{"", "packet", "opened", "data", "end", "window", "gone"}
	if k == 0 || int(k) >= len(names) {
		return fmt.Sprintf("event %d", k)
	}
	return names[k]
}

// Event is an output of a Machine.
type Event struct {
	Kind EventKind
	ID   ID // but for Packet
	Data []byte
	// Answer marks a Packet that a guest can ask for as often as it likes, and
	// that may be lost.
	Answer bool
}

// conn is one connection.
type conn struct {
	id        ID
	guestPort uint32
	open      bool

	sent       uint32 // bytes sent to the guest
	guestAlloc uint32 // what the guest buffers
	guestFwd   uint32 // what it has passed on
	sendEnded  bool   // we sent SHUTDOWN
	recvClosed bool   // the guest takes no more

	received uint32 // bytes from the guest
	consumed uint32 // of these, what the client took
	told     uint32 // the value of consumed that the guest knows
	ended    bool   // the guest sends no more
}

// window is how many bytes the guest can take.
func (c *conn) window() int {
	if !c.open || c.sendEnded || c.recvClosed {
		return 0
	}
	inFlight := c.sent - c.guestFwd
	limit := min(c.guestAlloc, MaxWindow)
	if inFlight >= limit {
		return 0
	}
	return int(limit - inFlight)
}

// Machine is the connections of one guest. It isn't safe for concurrent use.
type Machine struct {
	cid    uint64
	next   ID
	conns  map[ID]*conn
	events []Event
}

// NewMachine returns a machine for the guest with a CID.
func NewMachine(cid uint64) *Machine {
	return &Machine{cid: cid, next: firstPort, conns: map[ID]*conn{}}
}

// Take returns what happened since the last call, in order. The events' data
// belongs to the caller.
func (m *Machine) Take() []Event {
	e := m.events
	m.events = nil
	return e
}

func (m *Machine) emit(k EventKind, id ID, data []byte) {
	m.events = append(m.events, Event{Kind: k, ID: id, Data: data})
}

// Connect asks the guest for a connection to one of its ports. Opened or Gone
// follows; how long to wait is for the caller to say, by Abort.
func (m *Machine) Connect(port uint32) (ID, error) {
	if len(m.conns) >= MaxConns {
		return 0, ErrTooMany
	}
	for m.conns[m.next] != nil {
		m.advance()
	}
	c := &conn{id: m.next, guestPort: port}
	m.advance()
	m.conns[c.id] = c
	m.packet(c, opRequest, 0, nil)
	return c.id, nil
}

func (m *Machine) advance() {
	if m.next++; m.next > lastPort {
		m.next = firstPort
	}
}

// packet sends a packet of a connection. Each carries our credit.
func (m *Machine) packet(c *conn, o op, flags uint32, payload []byte) {
	c.told = c.consumed
	m.emit(Packet, 0, header{
		srcCID: HostCID, dstCID: m.cid, srcPort: uint32(c.id), dstPort: c.guestPort,
		typ: typeStream, op: o, flags: flags, bufAlloc: Buffer, fwdCnt: c.consumed,
	}.encode(payload))
}

// Window is how many bytes Send accepts.
func (m *Machine) Window(id ID) int {
	if c := m.conns[id]; c != nil {
		return c.window()
	}
	return 0
}

// Send sends a client's bytes to the guest and returns how many of them: no
// more than Window.
func (m *Machine) Send(id ID, p []byte) int {
	c := m.conns[id]
	if c == nil {
		return 0
	}
	n := min(len(p), c.window())
	for at := 0; at < n; at += MaxPayload {
		part := p[at:min(at+MaxPayload, n)]
		c.sent += uint32(len(part))
		m.packet(c, opData, 0, part)
	}
	return n
}

// CloseSend says that the client sends no more.
func (m *Machine) CloseSend(id ID) {
	c := m.conns[id]
	if c == nil || c.sendEnded {
		return
	}
	c.sendEnded = true
	if c.open {
		m.packet(c, opShutdown, shutdownSend, nil)
	}
	m.finish(c)
}

// Abort ends a connection at once: the client is gone or has waited too long.
func (m *Machine) Abort(id ID) {
	if c := m.conns[id]; c != nil {
		m.packet(c, opReset, 0, nil)
		m.drop(c)
	}
}

// Consumed says that the client took n bytes of Data.
func (m *Machine) Consumed(id ID, n int) {
	c := m.conns[id]
	if c == nil {
		return
	}
	c.consumed += min(uint32(n), c.received-c.consumed)
	if c.open && !c.ended && c.consumed-c.told >= Buffer/2 {
		m.packet(c, opCreditUpdate, 0, nil)
	}
	m.finish(c)
}

// finish ends a connection of which both directions have ended, once the
// client has all data.
func (m *Machine) finish(c *conn) {
	if c.open && c.ended && c.consumed == c.received && (c.sendEnded || c.recvClosed) {
		m.packet(c, opReset, 0, nil)
		m.drop(c)
	}
}

func (m *Machine) drop(c *conn) {
	delete(m.conns, c.id)
	m.emit(Gone, c.id, nil)
}

// Reset ends all connections without a word to the guest, which learns it by
// its device's transport reset.
func (m *Machine) Reset() {
	m.events = nil
	for _, id := range slices.Sorted(maps.Keys(m.conns)) {
		m.emit(Gone, id, nil)
	}
	clear(m.conns)
}

// FromGuest takes a packet that the guest sent. What makes no sense is refused
// or ignored.
func (m *Machine) FromGuest(pkt []byte) {
	h, payload, err := decode(pkt)
	if err != nil || h.srcCID != m.cid || h.dstCID != HostCID {
		return
	}
	c := m.conns[ID(h.dstPort)]
	if c == nil || c.guestPort != h.srcPort || h.typ != typeStream {
		if h.op != opReset {
			m.refuse(h)
		}
		return
	}
	before := c.window()
	if c.sent-h.fwdCnt > c.sent-c.guestFwd { // back, or beyond what was sent
		m.Abort(c.id)
		return
	}
	c.guestAlloc, c.guestFwd = h.bufAlloc, h.fwdCnt
	m.handle(c, h, payload)
	if before == 0 && c.window() > 0 && m.conns[c.id] == c {
		m.emit(Window, c.id, nil)
	}
}

// refuse answers a packet that belongs to no connection.
func (m *Machine) refuse(h header) {
	m.emit(Packet, 0, header{
		srcCID: HostCID, dstCID: m.cid, srcPort: h.dstPort, dstPort: h.srcPort,
		typ: h.typ, op: opReset,
	}.encode(nil))
	m.answer()
}

// answer marks the last event as an Answer.
func (m *Machine) answer() { m.events[len(m.events)-1].Answer = true }

// handle does what a packet of a connection says.
func (m *Machine) handle(c *conn, h header, payload []byte) {
	switch {
	case h.op == opReset:
		m.drop(c)
	case h.op == opResponse && !c.open:
		c.open = true
		m.emit(Opened, c.id, nil)
		if c.sendEnded {
			m.packet(c, opShutdown, shutdownSend, nil)
		}
	case h.op == opData && c.open && !c.ended:
		m.data(c, payload)
	case h.op == opShutdown && c.open:
		c.recvClosed = c.recvClosed || h.flags&shutdownReceive != 0
		if h.flags&shutdownSend != 0 && !c.ended {
			c.ended = true
			m.emit(End, c.id, nil)
		}
		m.finish(c)
	case h.op == opCreditRequest && c.open:
		m.packet(c, opCreditUpdate, 0, nil)
		m.answer()
	case h.op == opCreditUpdate && c.open:
	default:
		m.Abort(c.id)
	}
}

// data passes the guest's bytes on, if it keeps to its credit.
func (m *Machine) data(c *conn, payload []byte) {
	if uint32(len(payload)) > Buffer-(c.received-c.consumed) {
		m.Abort(c.id)
		return
	}
	c.received += uint32(len(payload))
	if len(payload) > 0 {
		m.emit(Data, c.id, append([]byte(nil), payload...))
	}
}
