package console

import (
	"bytes"
	"context"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// uart is a guest that takes input only when it is told to.
type uart struct {
	mu    sync.Mutex
	room  int
	got   []byte
	calls chan struct{} // a call found no room
}

func (u *uart) keyboard(_ context.Context, p []byte) (int, uint64, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := min(len(p), u.room)
	u.got, u.room = append(u.got, p[:n]...), u.room-n
	if n == 0 && len(p) > 0 {
		select {
		case u.calls <- struct{}{}:
		default:
		}
	}
	return n, 100 + uint64(len(u.got)), nil
}

func (u *uart) add(room int) {
	u.mu.Lock()
	u.room += room
	u.mu.Unlock()
}

func serveConsole(t *testing.T, u *uart) (*Server, string) {
	t.Helper()
	u.calls = make(chan struct{}, 1)
	s, path := New(9, u.keyboard), filepath.Join(t.TempDir(), "s")
	if err := s.Listen(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, path
}

func dial(t *testing.T, path string, screen, offset uint64) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	c.Write(Frame{Kind: Resume, A: screen, B: offset}.Append(nil)) // one that is refused is closed
	return c
}

func send(t *testing.T, c net.Conn, f Frame) {
	t.Helper()
	if _, err := c.Write(f.Append(nil)); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, c net.Conn, want Frame) {
	t.Helper()
	got, err := Read(c)
	if err != nil || got.Kind != want.Kind || got.A != want.A || got.B != want.B || !bytes.Equal(got.Data, want.Data) {
		t.Fatalf("got %+v (%v), want %+v", got, err, want)
	}
}

// TestSlowGuest has a guest with room for a few bytes at a time: nothing is lost.
func TestSlowGuest(t *testing.T) {
	u := &uart{}
	_, path := serveConsole(t, u)
	c := dial(t, path, 0, 0)
	expect(t, c, Frame{Kind: Hello, A: 9, B: 100})
	send(t, c, Frame{Kind: Input, Data: []byte("uptime\r")})
	<-u.calls // it has to wait
	u.add(4)
	expect(t, c, Frame{Kind: Taken, A: 104, B: 4})
	<-u.calls
	u.add(100)
	expect(t, c, Frame{Kind: Taken, A: 107, B: 3})
	if string(u.got) != "uptime\r" {
		t.Errorf("the guest read %q", u.got)
	}
}

// TestComesBack reads output, hangs up, and gets what came meanwhile.
func TestComesBack(t *testing.T) {
	s, path := serveConsole(t, &uart{})
	s.Output([]byte("login: "))
	c := dial(t, path, 0, 0)
	expect(t, c, Frame{Kind: Hello, A: 9, B: 100})
	expect(t, c, Frame{Kind: Output, A: 0, Data: []byte("login: ")})
	c.Close()
	s.Output([]byte("root"))
	c = dial(t, path, 9, 7)
	expect(t, c, Frame{Kind: Hello, A: 9, B: 100})
	expect(t, c, Frame{Kind: Output, A: 7, Data: []byte("root")})
	s.Output([]byte("!"))
	expect(t, c, Frame{Kind: Output, A: 11, Data: []byte("!")})
	c = dial(t, path, 8, 7) // the other host's screen
	expect(t, c, Frame{Kind: Hello, A: 9, B: 100})
	expect(t, c, Frame{Kind: Output, A: 0, Data: []byte("login: root!")})
	if string(s.Tail()) != "login: root!" {
		t.Errorf("tail %q", s.Tail())
	}
	s.Close()
	if _, err := Read(c); err != io.EOF {
		t.Errorf("after the server's end: %v", err)
	}
}

// TestSilentClients lose their places.
func TestSilentClients(t *testing.T) {
	defer func(d time.Duration) { firstLimit = d }(firstLimit)
	firstLimit = 10 * time.Millisecond
	s, path := serveConsole(t, &uart{})
	defer s.Close() // before the limit is set back
	for range maxClients {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.ReadAll(c); err != nil { // until the server closes it
			t.Fatal(err)
		}
	}
	for { // until a place is free, or the test takes too long
		if _, err := Read(dial(t, path, 0, 0)); err == nil {
			return
		}
	}
}

// TestBadClients must cost nothing but their streams, and their places come free.
func TestBadClients(t *testing.T) {
	_, path := serveConsole(t, &uart{})
	for _, bad := range []string{"", "GET / HTTP/1.1\r\n", string(Frame{Kind: Input, Data: []byte("x")}.Append(nil))} {
		for range maxClients + 1 {
			c, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, bad) // it may be refused already
			c.Close()
		}
	}
	var open []net.Conn
	for len(open) < maxClients {
		c := dial(t, path, 0, 0)
		if _, err := Read(c); err == nil { // else the place isn't free yet
			open = append(open, c)
		}
	}
	if _, err := Read(dial(t, path, 0, 0)); err == nil {
		t.Errorf("client %d is served", maxClients+1)
	}
	open[0].Close()
	for {
		if _, err := Read(dial(t, path, 0, 0)); err == nil {
			return
		}
	}
}
