package mux

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// AcceptTimeout is how long a client may take to say CONNECT, and the
	// guest to accept.
	AcceptTimeout = 5 * time.Second

	acceptPause = 10 * time.Millisecond

	maxClients = 2 * MaxConns // sockets, those that haven't connected included
	maxRequest = 32           // bytes of a CONNECT line
	maxOut     = 256 << 10    // bytes of packets that wait for the guest before clients do
	maxAnswers = 1024         // packets that may wait before answers are dropped
)

// Server listens on a Unix socket and connects its clients to the guest.
type Server struct {
	listener *net.UnixListener
	toGuest  func(pkt []byte)
	wg       sync.WaitGroup

	mu      sync.Mutex
	changed sync.Cond // of mu: anything below changed
	machine *Machine
	streams map[ID]*stream
	clients map[*net.UnixConn]bool
	out     [][]byte // packets for the guest, in order
	outSize int
	closed  bool
}

// stream is a client with a connection to the guest.
type stream struct {
	conn    *net.UnixConn
	opened  bool
	end     bool   // the guest sends no more
	gone    bool   // the connection is no more
	pending []byte // for the client; Buffer bounds it
}

// Listen serves the Unix socket at path, which it makes, for the guest with a
// CID. toGuest takes the packets for the guest, one at a time; it may block, but
// must not wait for a call of the server.
func Listen(path string, cid uint64, toGuest func(pkt []byte)) (*Server, error) {
	if st, err := os.Lstat(path); err == nil && st.Mode()&os.ModeSocket != 0 {
		if err := os.Remove(path); err != nil { // one that a dead process left
			return nil, fmt.Errorf("vsock socket: %w", err)
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("vsock socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("vsock socket: %w", err)
	}
	s := &Server{
		listener: l, toGuest: toGuest, machine: NewMachine(cid),
		streams: map[ID]*stream{}, clients: map[*net.UnixConn]bool{},
	}
	s.changed.L = &s.mu
	s.wg.Go(s.accept)
	s.wg.Go(s.deliver)
	return s, nil
}

// FromGuest takes a packet that the guest sent. It doesn't wait for anything.
func (s *Server) FromGuest(pkt []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.machine.FromGuest(pkt)
	s.spread()
}

// Reset ends all connections: the guest goes on elsewhere, or has been reset.
// The device must tell the guest by its transport reset.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.machine.Reset()
	s.out, s.outSize = nil, 0
	s.spread()
}

// Close stops listening, ends all connections and waits until no goroutine is
// left; toGuest must not block for ever.
func (s *Server) Close() error {
	err := s.listener.Close()
	s.mu.Lock()
	s.closed = true
	for c := range s.clients {
		c.Close()
	}
	s.changed.Broadcast()
	s.mu.Unlock()
	s.wg.Wait()
	return err
}

// spread hands the machine's events to the streams; mu is held.
func (s *Server) spread() {
	for _, e := range s.machine.Take() {
		if e.Kind == Packet {
			// A guest may flood us with what asks for an answer. The others are
			// bounded by the connections' windows, and none may be lost.
			if !e.Answer || len(s.out) < maxAnswers {
				s.out = append(s.out, e.Data)
				s.outSize += len(e.Data)
			}
			continue
		}
		st := s.streams[e.ID]
		if st == nil {
			continue
		}
		switch e.Kind {
		case Opened:
			st.opened = true
		case Data:
			st.pending = append(st.pending, e.Data...)
		case End:
			st.end = true
		case Gone:
			st.gone = true
			delete(s.streams, e.ID)
		}
	}
	s.changed.Broadcast()
}

// deliver gives the guest its packets.
func (s *Server) deliver() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		for len(s.out) == 0 && !s.closed {
			s.changed.Wait()
		}
		if s.closed {
			return
		}
		p := s.out[0]
		s.out = s.out[1:]
		s.outSize -= len(p)
		s.changed.Broadcast() // readers may wait for room
		s.mu.Unlock()
		s.toGuest(p)
		s.mu.Lock()
	}
}

// accept takes clients until the listener is closed.
func (s *Server) accept() {
	for {
		c, err := s.listener.AcceptUnix()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(acceptPause) // descriptors are short: let clients go
			continue
		}
		s.mu.Lock()
		ok := !s.closed && len(s.clients) < maxClients
		if ok {
			s.clients[c] = true
			s.wg.Go(func() { s.serve(c) })
		}
		s.mu.Unlock()
		if !ok {
			c.Close()
		}
	}
}

// serve is one client's life.
func (s *Server) serve(c *net.UnixConn) {
	defer func() {
		c.Close()
		s.mu.Lock()
		delete(s.clients, c)
		s.changed.Broadcast()
		s.mu.Unlock()
	}()
	_ = c.SetDeadline(time.Now().Add(AcceptTimeout))
	port, err := readConnect(c)
	if err != nil {
		return
	}
	id, st := s.connect(c, port)
	if st == nil {
		return
	}
	if _, err := fmt.Fprintf(c, "OK %d\n", id); err != nil {
		s.do(func() { s.machine.Abort(id) })
		return
	}
	_ = c.SetDeadline(time.Time{})
	s.wg.Go(func() { s.read(id, st) })
	s.write(id, st)
}

// readConnect reads the line "CONNECT <port>\n", byte by byte: what follows it
// belongs to the stream.
func readConnect(r io.Reader) (port uint32, err error) {
	var line []byte
	b := make([]byte, 1)
	for len(line) < maxRequest {
		if _, err := io.ReadFull(r, b); err != nil {
			return 0, err
		}
		if b[0] == '\n' {
			arg, ok := strings.CutPrefix(string(line), "CONNECT ")
			if !ok {
				return 0, errors.New("not a CONNECT request")
			}
			n, err := strconv.ParseUint(arg, 10, 32)
			return uint32(n), err
		}
		line = append(line, b[0])
	}
	return 0, errors.New("CONNECT request is too long")
}

// connect connects a client to the guest, and waits for its answer; no stream
// is a refusal.
func (s *Server) connect(c *net.UnixConn, port uint32) (ID, *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, err := s.machine.Connect(port)
	if err != nil {
		return 0, nil
	}
	st := &stream{conn: c}
	s.streams[id] = st
	late := false
	timer := time.AfterFunc(AcceptTimeout, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		late = true
		s.changed.Broadcast()
	})
	defer timer.Stop()
	s.spread()
	for !st.opened && !st.gone && !late && !s.closed {
		s.changed.Wait()
	}
	if st.gone {
		return 0, nil
	}
	if !st.opened {
		s.machine.Abort(id)
		s.spread()
		return 0, nil
	}
	return id, st
}

// do changes the machine.
func (s *Server) do(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	s.spread()
}

// read carries the client's bytes to the guest.
func (s *Server) read(id ID, st *stream) {
	buf := make([]byte, MaxWindow)
	for {
		n := s.room(id, st)
		if n == 0 {
			return
		}
		k, err := st.conn.Read(buf[:n])
		for at := 0; at < k; { // the guest may have less room by now
			if s.room(id, st) == 0 {
				return
			}
			s.do(func() { at += s.machine.Send(id, buf[at:k]) })
		}
		switch {
		case errors.Is(err, io.EOF):
			s.do(func() { s.machine.CloseSend(id) })
			return
		case err != nil:
			s.do(func() { s.machine.Abort(id) })
			return
		}
	}
}

// room waits until the guest can take more, and says how much; 0 is the end.
func (s *Server) room(id ID, st *stream) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !st.gone && !s.closed {
		if n := s.machine.Window(id); n > 0 && s.outSize < maxOut {
			return n
		}
		s.changed.Wait()
	}
	return 0
}

// write carries the guest's bytes to the client, until there are no more.
func (s *Server) write(id ID, st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	halfClosed := false
	for {
		for len(st.pending) == 0 && !st.gone && !s.closed && (!st.end || halfClosed) {
			s.changed.Wait()
		}
		p := st.pending
		st.pending = nil
		switch {
		case s.closed:
			return
		case len(p) > 0:
			s.mu.Unlock()
			_, err := st.conn.Write(p)
			s.mu.Lock()
			if err != nil {
				s.machine.Abort(id)
			} else {
				s.machine.Consumed(id, len(p))
			}
			s.spread()
			if err != nil {
				return
			}
		case st.gone:
			return
		default: // the guest ended its half
			halfClosed = true
			_ = st.conn.CloseWrite()
		}
	}
}
