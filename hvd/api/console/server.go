package console

import (
	"bufio"
	"context"
	"net"
	"os"
	"sync"
	"time"
)

const (
	// maxClients is how many streams there may be; more are closed.
	maxClients = 8
	// typeAgain is the pause before input that the guest has no room for is tried again.
	typeAgain = 20 * time.Millisecond
	// writeLimit is how long a client may take no output before its stream is closed; it comes back.
	writeLimit = time.Minute
)

// firstLimit is how long a client may take to say where it goes on, so that silent ones don't keep others out.
var firstLimit = 10 * time.Second

// Keyboard types at the guest's console: as much of p as the UART has room for, which may be nothing. It returns how
// much, and how much was ever typed after that.
type Keyboard func(ctx context.Context, p []byte) (n int, typed uint64, err error)

// Server keeps the output of a guest's console, and serves it to clients of a Unix socket.
type Server struct {
	keyboard Keyboard
	ctx      context.Context
	cancel   context.CancelFunc
	all      sync.WaitGroup

	mu       sync.Mutex
	listener net.Listener
	backlog  *Backlog
	news     chan struct{} // closed at the next output
	clients  int
}

// New returns a server that has no socket yet. screen is the number of its Backlog.
func New(screen uint64, keyboard Keyboard) *Server {
	s := &Server{keyboard: keyboard, backlog: NewBacklog(screen), news: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Listen serves on a socket at path, in place of one that is there, until Close.
func (s *Server) Listen(path string) error {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.listener = l
	s.mu.Unlock()
	s.all.Go(func() { s.accept(l) })
	return nil
}

// Close ends all streams and removes the socket. What the guest wrote is kept.
func (s *Server) Close() {
	s.cancel()
	s.mu.Lock()
	l := s.listener
	s.mu.Unlock()
	if l != nil {
		l.Close() // what it says, nobody can act on
	}
	s.all.Wait()
}

// Output is what the guest wrote. It never blocks.
func (s *Server) Output(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.backlog.Append(p)
	close(s.news)
	s.news = make(chan struct{})
}

// Tail is the last output.
func (s *Server) Tail() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.backlog.Tail()
}

func (s *Server) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		full := s.clients >= maxClients
		if !full {
			s.clients++
		}
		s.mu.Unlock()
		if full {
			conn.Close()
			continue
		}
		s.all.Go(func() {
			s.serve(conn)
			s.mu.Lock()
			s.clients--
			s.mu.Unlock()
		})
	}
}

// client is one stream.
type client struct {
	s    *Server
	conn net.Conn
	ctx  context.Context
	mu   sync.Mutex // of writes
}

// serve serves one client until either end is gone.
func (s *Server) serve(conn net.Conn) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	c := &client{s: s, conn: conn, ctx: ctx}
	r := bufio.NewReader(conn)
	err := conn.SetReadDeadline(time.Now().Add(firstLimit))
	if err != nil {
		conn.Close()
		return
	}
	first, err := Read(r)
	if err != nil || first.Kind != Resume || conn.SetReadDeadline(time.Time{}) != nil {
		conn.Close()
		return
	}
	_, typed, err := s.keyboard(ctx, nil)
	if err != nil || c.write(Frame{Kind: Hello, A: s.backlog.screen, B: typed}) != nil {
		conn.Close()
		return
	}
	s.mu.Lock()
	offset := s.backlog.Start(first.A, first.B)
	s.mu.Unlock()
	var output sync.WaitGroup
	output.Go(func() {
		c.output(offset)
		cancel()
	})
	c.input(r)
	cancel()
	output.Wait()
	conn.Close()
}

func (c *client) write(f Frame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.conn.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return err
	}
	_, err := c.conn.Write(f.Append(nil))
	return err
}

// output sends what the guest writes, from an offset on.
func (c *client) output(offset uint64) {
	for {
		c.s.mu.Lock()
		from, p := c.s.backlog.Next(offset)
		news := c.s.news
		c.s.mu.Unlock()
		if len(p) > 0 {
			if c.write(Frame{Kind: Output, A: from, Data: p}) != nil {
				return
			}
			offset = from + uint64(len(p))
			continue
		}
		select {
		case <-c.ctx.Done():
			return
		case <-news:
		}
	}
}

// input types what the client sends, until it sends no more.
func (c *client) input(r *bufio.Reader) {
	for {
		f, err := Read(r)
		if err != nil || f.Kind != Input {
			return
		}
		for p := f.Data; len(p) > 0; {
			n, typed, err := c.s.keyboard(c.ctx, p)
			if err != nil || n > 0 && c.write(Frame{Kind: Taken, A: typed, B: uint64(n)}) != nil {
				return
			}
			if p = p[n:]; n > 0 {
				continue
			}
			select {
			case <-c.ctx.Done():
				return
			case <-time.After(typeAgain):
			}
		}
	}
}
