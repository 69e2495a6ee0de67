package mux

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeGuest is a guest that listens on guestPort and sends everything back,
// within its credit. It buffers 8 KiB, and closes when its client has ended.
type fakeGuest struct {
	mu     sync.Mutex
	server *Server
	conns  map[uint32]*echo
}

// echo is the guest's end of a connection.
type echo struct {
	pending        []byte
	sent, received uint32
	ended          bool
}

// fromHost takes a packet as the device would.
func (g *fakeGuest) fromHost(p []byte) {
	h, payload, err := decode(p)
	if err != nil {
		panic(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	send := func(o op, flags uint32, payload []byte) {
		answer := header{
			srcCID: guestCID, dstCID: HostCID, srcPort: h.dstPort, dstPort: h.srcPort,
			typ: typeStream, op: o, flags: flags, bufAlloc: 8 << 10,
		}
		if c := g.conns[h.srcPort]; c != nil {
			answer.fwdCnt = c.received - uint32(len(c.pending))
		}
		g.server.FromGuest(answer.encode(payload))
	}
	switch h.op {
	case opRequest:
		if h.dstPort != guestPort {
			send(opReset, 0, nil)
			return
		}
		g.conns[h.srcPort] = &echo{}
		send(opResponse, 0, nil)
	case opReset:
		delete(g.conns, h.srcPort)
	}
	c := g.conns[h.srcPort]
	if c == nil {
		return
	}
	if h.op == opData {
		c.received += uint32(len(payload))
		c.pending = append(c.pending, payload...)
	}
	if n := min(len(c.pending), int(h.bufAlloc-(c.sent-h.fwdCnt))); n > 0 {
		part := c.pending[:n]
		c.pending, c.sent = c.pending[n:], c.sent+uint32(n)
		send(opData, 0, part)
	}
	c.ended = c.ended || h.op == opShutdown
	if c.ended && len(c.pending) == 0 {
		send(opShutdown, shutdownSend|shutdownReceive, nil)
	}
}

func serve(t *testing.T) (*fakeGuest, string) {
	t.Helper()
	g := &fakeGuest{conns: map[uint32]*echo{}}
	path := filepath.Join(t.TempDir(), "vsock")
	s, err := Listen(path, guestCID, g.fromHost)
	if err != nil {
		t.Fatal(err)
	}
	g.server = s
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return g, path
}

// dial connects as a client does and returns the server's answer.
func dial(t *testing.T, path, request string) (*net.UnixConn, *bufio.Reader, string) {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil && err != io.EOF && !strings.Contains(err.Error(), "reset") {
		t.Fatal(err)
	}
	return c, r, line
}

func TestServerEcho(t *testing.T) {
	_, path := serve(t)
	var wg sync.WaitGroup
	for i := range 4 {
		c, r, line := dial(t, path, fmt.Sprintf("CONNECT %d\n", guestPort))
		if !strings.HasPrefix(line, "OK ") {
			t.Fatalf("answer %q", line)
		}
		sent := bytes.Repeat([]byte{byte(i), 1, 2, 3, 5, 7, 11}, 50_000)
		wg.Go(func() {
			if _, err := c.Write(sent); err != nil {
				t.Error(err)
			}
			if err := c.CloseWrite(); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%d bytes back of %d, %v", len(got), len(sent), err)
			}
		})
	}
	wg.Wait()
}

func TestServerKeepsWhatFollowsTheRequest(t *testing.T) {
	_, path := serve(t)
	c, r, line := dial(t, path, fmt.Sprintf("CONNECT %d\nhello", guestPort))
	if !strings.HasPrefix(line, "OK ") {
		t.Fatalf("answer %q", line)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestServerRefuses(t *testing.T) {
	_, path := serve(t)
	for _, request := range []string{
		"CONNECT 99\n", "CONNECT\n", "CONNECT x\n", "CONNECT 4294967296\n", "GET / HTTP/1.1\n", strings.Repeat("x", 100),
	} {
		if _, _, line := dial(t, path, request); line != "" {
			t.Errorf("%q was answered by %q", request, line)
		}
	}
}

func TestServerReset(t *testing.T) {
	g, path := serve(t)
	_, r, line := dial(t, path, fmt.Sprintf("CONNECT %d\n", guestPort))
	if !strings.HasPrefix(line, "OK ") {
		t.Fatalf("answer %q", line)
	}
	g.server.Reset()
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("the stream goes on: %v", err)
	}
	if _, _, line := dial(t, path, fmt.Sprintf("CONNECT %d\n", guestPort)); !strings.HasPrefix(line, "OK ") {
		t.Errorf("after the reset the answer is %q", line)
	}
}

// TestServerLosesOnlyAnswers lets packets pile up before a guest that takes none, while it floods the host.
func TestServerLosesOnlyAnswers(t *testing.T) {
	s := &Server{machine: NewMachine(guestCID), streams: map[ID]*stream{}}
	s.changed.L = &s.mu
	want := 0 // packets that must not be lost
	var last ID
	for range 4 {
		id, err := s.machine.Connect(guestPort)
		if err != nil {
			t.Fatal(err)
		}
		want++
		s.FromGuest(reply(id, opResponse, 0, 1<<20, 0, ""))
		for s.machine.Window(id) > 0 {
			for sent := 0; sent < 500; {
				sent += s.machine.Send(id, []byte("x"))
				want++
			}
			rest := min(s.machine.Window(id), 10*MaxPayload)
			s.do(func() { s.machine.Send(id, make([]byte, rest)) })
			want += (rest + MaxPayload - 1) / MaxPayload
		}
		last = id
	}
	if s.outSize < 2*maxOut {
		t.Fatalf("only %d bytes wait", s.outSize)
	}
	for range 3 * maxAnswers {
		s.FromGuest(reply(last, opCreditRequest, 0, 1<<20, 0, ""))
		s.FromGuest(reply(last+1, opData, 0, 1<<20, 0, "x"))
	}
	if n := len(s.out); n < want || n > want+maxAnswers {
		t.Errorf("%d packets wait, want %d and at most %d answers", n, want, maxAnswers)
	}
}

func TestServerClientGone(t *testing.T) {
	g, path := serve(t)
	c, _, _ := dial(t, path, fmt.Sprintf("CONNECT %d\n", guestPort))
	c.Close()
	s := g.server
	s.mu.Lock()
	defer s.mu.Unlock()
	late := false
	defer time.AfterFunc(30*time.Second, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		late = true
		s.changed.Broadcast()
	}).Stop()
	for len(s.streams)+len(s.clients) > 0 && !late {
		s.changed.Wait()
	}
	if late {
		t.Errorf("%d streams and %d sockets left", len(s.streams), len(s.clients))
	}
}

func TestListenReplacesADeadSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vsock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	s, err := Listen(path, guestCID, func([]byte) {})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
