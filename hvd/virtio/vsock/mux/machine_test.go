package mux

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/duet-ft/duet/hvd/virtio/vsock"
)

const (
	guestCID  = 42
	guestPort = 1024
)

// reply makes a packet of the guest's end of a connection.
func reply(id ID, o op, flags, alloc, fwd uint32, payload string) []byte {
	return header{
		srcCID: guestCID, dstCID: HostCID, srcPort: guestPort, dstPort: uint32(id),
		typ: typeStream, op: o, flags: flags, bufAlloc: alloc, fwdCnt: fwd,
	}.encode([]byte(payload))
}

// show writes events as a person reads them.
func show(t *testing.T, events []Event) string {
	t.Helper()
	var out []string
	for _, e := range events {
		if e.Kind != Packet {
			out = append(out, strings.TrimSpace(fmt.Sprintf("%v %s", e.Kind, e.Data)))
			continue
		}
		h, p, err := decode(e.Data)
		if err != nil {
			t.Fatal(err)
		}
		if h.srcCID != HostCID || h.dstCID != guestCID {
			t.Errorf("packet from %d to %d", h.srcCID, h.dstCID)
		}
		names := [...]string{"?", "request", "response", "reset", "shutdown", "data", "credit", "credit?"}
		out = append(out, strings.TrimSpace(fmt.Sprintf("<%s %d/%d> %s", names[h.op], h.flags, h.fwdCnt, p)))
	}
	return strings.Join(out, "; ")
}

// opened returns a machine with an open connection.
func opened(t *testing.T) (*Machine, ID) {
	t.Helper()
	m := NewMachine(guestCID)
	id, err := m.Connect(guestPort)
	if err != nil {
		t.Fatal(err)
	}
	m.FromGuest(reply(id, opResponse, 0, 1000, 0, ""))
	m.Take()
	return m, id
}

var long = strings.Repeat("x", Buffer)

// machineTests do something with an open connection; the events come out.
var machineTests = []struct {
	name string
	run  func(m *Machine, id ID)
	want string
}{
	{"data to the guest", func(m *Machine, id ID) { m.Send(id, []byte("hi")) }, "<data 0/0> hi"},
	{"data from the guest", func(m *Machine, id ID) { m.FromGuest(reply(id, opData, 0, 1000, 0, "hi")) }, "data hi"},
	{"the window opens", func(m *Machine, id ID) {
		m.Send(id, bytes.Repeat([]byte("x"), 1000))
		m.Take()
		m.Send(id, []byte("y"))
		m.FromGuest(reply(id, opCreditUpdate, 0, 1000, 10, ""))
		m.Send(id, []byte("z"))
	}, "window; <data 0/0> z"},
	{"credit is told when half of the buffer was taken", func(m *Machine, id ID) {
		m.FromGuest(reply(id, opData, 0, 1000, 0, long))
		m.Take()
		m.Consumed(id, Buffer/2-1)
		m.Consumed(id, 1)
	}, fmt.Sprintf("<credit 0/%d>", Buffer/2)},
	{"credit is told when asked for", func(m *Machine, id ID) {
		m.FromGuest(reply(id, opData, 0, 1000, 0, "hi"))
		m.Take()
		m.Consumed(id, 2)
		m.FromGuest(reply(id, opCreditRequest, 0, 1000, 0, ""))
	}, "<credit 0/2>"},
	{"a guest beyond its credit loses the connection", func(m *Machine, id ID) {
		m.FromGuest(reply(id, opData, 0, 1000, 0, long))
		m.Take()
		m.FromGuest(reply(id, opData, 0, 1000, 0, "x"))
	}, "<reset 0/0>; gone"},
	{"a guest that took what was never sent, too", func(m *Machine, id ID) {
		m.FromGuest(reply(id, opCreditUpdate, 0, 1000, 1, ""))
	}, "<reset 0/0>; gone"},
	{"the client ends, then the guest", func(m *Machine, id ID) {
		m.CloseSend(id)
		m.FromGuest(reply(id, opShutdown, shutdownSend, 1000, 0, ""))
	}, "<shutdown 2/0>; end; <reset 0/0>; gone"},
	{"the guest ends, then the client", func(m *Machine, id ID) {
		m.FromGuest(reply(id, opShutdown, shutdownSend, 1000, 0, ""))
		m.Send(id, []byte("more"))
		m.CloseSend(id)
	}, "end; <data 0/0> more; <shutdown 2/0>; <reset 0/0>; gone"},
	{"the guest closes: the client gets the rest first", func(m *Machine, id ID) {
		m.FromGuest(reply(id, opData, 0, 1000, 0, "hi"))
		m.FromGuest(reply(id, opShutdown, shutdownSend|shutdownReceive, 1000, 0, ""))
		m.Send(id, []byte("nobody listens"))
		m.Consumed(id, 2)
	}, "data hi; end; <reset 0/2>; gone"},
	{"the guest resets", func(m *Machine, id ID) { m.FromGuest(reply(id, opReset, 0, 0, 0, "")) }, "gone"},
	{"the client aborts", func(m *Machine, id ID) { m.Abort(id); m.Abort(id) }, "<reset 0/0>; gone"},
	{"a second response", func(m *Machine, id ID) { m.FromGuest(reply(id, opResponse, 0, 1000, 0, "")) }, "<reset 0/0>; gone"},
	{"an unknown operation", func(m *Machine, id ID) { m.FromGuest(reply(id, 99, 0, 1000, 0, "")) }, "<reset 0/0>; gone"},
	{"a stranger is refused", func(m *Machine, id ID) { m.FromGuest(reply(id+1, opRequest, 0, 1000, 0, "")) }, "<reset 0/0>"},
	{"but not his reset", func(m *Machine, id ID) { m.FromGuest(reply(id+1, opReset, 0, 1000, 0, "")) }, ""},
	{"another CID is ignored", func(m *Machine, id ID) {
		p := reply(id, opReset, 0, 1000, 0, "")
		p[0]++
		m.FromGuest(p)
	}, ""},
	{"a packet with a wrong length is ignored", func(m *Machine, id ID) {
		m.FromGuest(reply(id, opData, 0, 1000, 0, "hi")[:45])
		m.FromGuest(nil)
	}, ""},
	{"all are reset", func(m *Machine, id ID) {
		m.Send(id, []byte("never sent"))
		m.Reset()
		m.FromGuest(reply(id, opReset, 0, 1000, 0, ""))
	}, "gone"},
	{"calls for a connection that is no more", func(m *Machine, id ID) {
		m.Reset()
		m.Take()
		m.CloseSend(id)
		m.Consumed(id, 5)
		m.Send(id, []byte("x"))
	}, ""},
}

func TestMachine(t *testing.T) {
	for _, c := range machineTests {
		t.Run(c.name, func(t *testing.T) {
			m, id := opened(t)
			c.run(m, id)
			if got := show(t, m.Take()); got != c.want {
				t.Errorf("events: %s\nwant:   %s", got, c.want)
			}
		})
	}
}

func TestConnect(t *testing.T) {
	m := NewMachine(guestCID)
	id, err := m.Connect(guestPort)
	if err != nil {
		t.Fatal(err)
	}
	if m.Window(id) != 0 {
		t.Error("a window before the guest accepted")
	}
	m.CloseSend(id) // the client was quick
	m.FromGuest(reply(id, opResponse, 0, 1000, 0, ""))
	if got, want := show(t, m.Take()), "<request 0/0>; opened; <shutdown 2/0>"; got != want {
		t.Errorf("events %s, want %s", got, want)
	}
	var ids []ID
	for {
		id, err := m.Connect(guestPort)
		if err != nil {
			if !errors.Is(err, ErrTooMany) {
				t.Error(err)
			}
			break
		}
		if slices.Contains(ids, id) {
			t.Fatalf("port %d twice", id)
		}
		ids = append(ids, id)
	}
	if len(ids) != MaxConns-1 {
		t.Errorf("%d connections", len(ids)+1)
	}
}

func TestSendCutsIntoPackets(t *testing.T) {
	m, id := opened(t)
	m.FromGuest(reply(id, opCreditUpdate, 0, 1<<20, 0, ""))
	m.Take()
	p := bytes.Repeat([]byte("0123456789abcdef"), MaxWindow/16+1)
	if n := m.Send(id, p); n != MaxWindow {
		t.Fatalf("%d bytes accepted, want %d", n, MaxWindow)
	}
	var got []byte
	for _, e := range m.Take() {
		if len(e.Data) > vsock.HeaderSize+MaxPayload {
			t.Errorf("packet of %d bytes", len(e.Data))
		}
		got = append(got, e.Data[vsock.HeaderSize:]...)
	}
	if !bytes.Equal(got, p[:MaxWindow]) {
		t.Error("other bytes")
	}
}

// FuzzFromGuest gives a machine any packets; it must keep its limits.
func FuzzFromGuest(f *testing.F) {
	f.Add(reply(firstPort, opResponse, 0, 1000, 0, ""), uint8(1))
	f.Add(append(reply(firstPort, opResponse, 0, 1000, 0, ""), reply(firstPort, opData, 0, 1000, 0, "hi")...), uint8(7))
	f.Add(append(reply(firstPort, opResponse, 0, 1000, 0, ""), reply(firstPort, opShutdown, 3, 1000, 0, "")...), uint8(3))
	f.Fuzz(func(t *testing.T, p []byte, calls uint8) {
		m := NewMachine(guestCID)
		id, err := m.Connect(guestPort)
		if err != nil {
			t.Fatal(err)
		}
		waiting := 0
		for len(p) > 0 {
			n := min(len(p), vsock.HeaderSize+int(calls>>4))
			m.FromGuest(p[:n])
			p = p[n:]
			if calls&1 != 0 {
				m.Send(id, make([]byte, m.Window(id)))
			}
			if calls&2 != 0 {
				m.CloseSend(id)
			}
			for _, e := range m.Take() {
				if e.Kind == Data {
					waiting += len(e.Data)
				}
			}
			if waiting > Buffer {
				t.Fatalf("%d bytes wait for the client", waiting)
			}
			if calls&4 != 0 {
				m.Consumed(id, waiting)
				waiting = 0
			}
		}
	})
}
