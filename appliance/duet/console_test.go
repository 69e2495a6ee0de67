package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/api/console"
	"golang.org/x/sys/unix"
)

// shell is a guest that answers each line with "<line>!". What it read survives a takeover, but for the last bytes.
type shell struct {
	t     *testing.T
	hosts [2]*host
	path  [2]string

	mu     sync.Mutex
	live   int // 0 or 1
	server *console.Server
	room   int // how much more it reads; negative: all
	read   []byte
	news   chan struct{} // closed when it has read more
}

const typedAtBoot = 1 << 60

func newShell(t *testing.T) *shell {
	s := &shell{t: t, live: 1, room: -1, news: make(chan struct{})}
	for i := range s.hosts {
		s.hosts[i], s.path[i] = &host{}, filepath.Join(t.TempDir(), "s")
	}
	s.takeOver(0)
	return s
}

// takeOver lets the other host be the primary. What the guest read last, it doesn't know of.
func (s *shell) takeOver(forgotten int) {
	s.mu.Lock()
	old, was := s.server, s.live
	s.live = 1 - s.live
	now := s.live
	s.read = s.read[:len(s.read)-forgotten]
	s.server = console.New(uint64(10+now), func(_ context.Context, p []byte) (int, uint64, error) { return s.keys(now, p) })
	next := s.server
	s.mu.Unlock()
	s.hosts[was].setConsole(nil)
	if old != nil {
		old.Close()
		next.Output([]byte("[taken over]"))
	}
	if err := next.Listen(s.path[now]); err != nil {
		s.t.Error(err)
	}
	s.t.Cleanup(next.Close)
	s.hosts[now].setConsole(func() (net.Conn, error) { return net.Dial("unix", s.path[now]) })
}

func (h *host) setConsole(connect func() (net.Conn, error)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.console = connect
}

// keys is the keyboard at host i.
func (s *shell) keys(i int, p []byte) (int, uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live != i {
		return 0, 0, io.ErrClosedPipe
	}
	n := len(p)
	if s.room >= 0 {
		n = min(n, s.room)
		s.room -= n
	}
	for _, c := range p[:n] {
		s.read = append(s.read, c)
		if c == '\n' {
			lines := strings.Split(string(s.read), "\n")
			s.server.Output([]byte(lines[len(lines)-2] + "!\r\n"))
		}
	}
	if n > 0 {
		close(s.news)
		s.news = make(chan struct{})
	}
	return n, typedAtBoot + uint64(len(s.read)), nil
}

// await waits until the guest has read n bytes, and returns them.
func (s *shell) await(n int) string {
	s.t.Helper()
	limit := time.After(20 * time.Second)
	for {
		s.mu.Lock()
		read, news := string(s.read), s.news
		s.mu.Unlock()
		if len(read) >= n {
			return read
		}
		select {
		case <-news:
		case <-limit:
			s.t.Fatalf("the guest read %d bytes, want %d", len(read), n)
		}
	}
}

// text is output that several goroutines write and look at.
type text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (x *text) Write(p []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.b.Write(p)
}

// String is what was written so far.
func (x *text) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.b.String()
}

// await waits until the text has a part.
func (x *text) await(t *testing.T, part string) {
	t.Helper()
	limit, tick := time.After(20*time.Second), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for !strings.Contains(x.String(), part) {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("no %q in %q", part, x.String())
		}
	}
}

// start runs "duet vm console db" with both hosts.
func (s *shell) start(in io.Reader) (out, notes *text, done chan error) {
	a, b := serve(s.t, s.hosts[0]), serve(s.t, s.hosts[1])
	args := append(a.flags(), "--peer", b.address, "--peer-fingerprint", b.fingerprint, "vm", "console", "db")
	out, notes, done = &text{}, &text{}, make(chan error, 1)
	go func() { done <- run(s.t.Context(), args, in, out, notes) }()
	return out, notes, done
}

func wait(t *testing.T, done chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("the console doesn't end")
	}
	return nil
}

// TestConsolePipe types what a pipe has, and ends when the guest is silent.
func TestConsolePipe(t *testing.T) {
	s := newShell(t)
	out, notes, done := s.start(strings.NewReader("date\nuptime\n"))
	if err := wait(t, done); err != nil || out.String() != "date!\r\nuptime!\r\n" || notes.String() != "" {
		t.Errorf("%v, output %q, notes %q", err, out, notes)
	}
}

// TestConsoleWaits has a guest that takes a pipe's input late: the user is told, and the console doesn't end before.
func TestConsoleWaits(t *testing.T) {
	s := newShell(t)
	s.room = 0
	out, notes, done := s.start(strings.NewReader("date\n"))
	notes.await(t, "[duet: the guest takes no input: 5 bytes wait]")
	s.mu.Lock()
	s.room = -1
	s.mu.Unlock()
	if err := wait(t, done); err != nil || out.String() != "date!\r\n" || strings.Count(notes.String(), "duet:") != 1 {
		t.Errorf("%v, output %q, notes %q", err, out, notes)
	}
}

// TestConsoleTakeover has the primary change while a pipe with much input is typed at a slow guest.
func TestConsoleTakeover(t *testing.T) {
	s := newShell(t)
	s.room = 1000
	var want string
	for i := range 3000 {
		want += fmt.Sprintf("line %d\n", i)
	}
	out, notes, done := s.start(strings.NewReader(want))
	for i, n := range []int{1000, 6000, 12000} {
		s.await(n)
		s.takeOver(10 * i)
		s.mu.Lock()
		if s.room = 6000 + 10*i; i == 2 {
			s.room = -1
		}
		s.mu.Unlock()
	}
	if err := wait(t, done); err != nil {
		t.Fatal(err)
	}
	if got := s.await(len(want)); got != want {
		t.Errorf("the guest read %d bytes, want %d, and the same", len(got), len(want))
	}
	if n := strings.Count(notes.String(), "connected again"); n != 3 || strings.Contains(notes.String(), "lost: ") {
		t.Errorf("notes %q, want to be told of 3 takeovers", notes)
	}
	if got := out.String(); !strings.Contains(got, "[taken over]") || !strings.HasSuffix(got, "line 2999!\r\n") {
		t.Errorf("the output ends with %q", got[max(0, len(got)-100):])
	}
}

// TestConsoleTerminal types at a terminal: keys pass on raw, input beyond the limit is told to be lost, and Ctrl-] ends
// it although the guest takes nothing.
func TestConsoleTerminal(t *testing.T) {
	s := newShell(t)
	s.room = 5
	keyboard, terminal := openTerminal(t)
	before, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	_, notes, done := s.start(terminal)
	// Raw mode comes first, and then the connection: what is typed before is cooked.
	limit, tick := time.After(20*time.Second), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for raw := before; raw.Lflag&unix.ICANON != 0; {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("the terminal isn't set to raw mode")
		}
		if raw, err = unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS); err != nil {
			t.Fatal(err)
		}
	}
	io.WriteString(keyboard, "a\r\x03\x1a\x04")
	if got := s.await(5); got != "a\r\x03\x1a\x04" {
		t.Errorf("the guest read %q", got)
	}
	for range 10 {
		if _, err := keyboard.Write(bytes.Repeat([]byte("x"), 2048)); err != nil {
			t.Fatal(err)
		}
	}
	notes.await(t, "[duet: the guest takes no input: what you type is lost from here on]")
	io.WriteString(keyboard, "y\x1dz")
	if err := wait(t, done); err != nil {
		t.Error(err)
	}
	after, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil || *after != *before {
		t.Errorf("the terminal isn't as it was: %+v, %v", after, err)
	}
}

// openTerminal is a pseudo terminal (pts(4)) and who sits there.
func openTerminal(t *testing.T) (keyboard, terminal *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo terminals here: %v", err)
	}
	t.Cleanup(func() { keyboard.Close() })
	if err := unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return keyboard, terminal
}

// TestConsoleNowhere has a guest that runs on neither host, then one that is gone for good.
func TestConsoleNowhere(t *testing.T) {
	s := newShell(t)
	s.hosts[0].setConsole(nil)
	_, _, done := s.start(strings.NewReader(""))
	if err := wait(t, done); err == nil || err.Error() != "VM db doesn't run on this host; the peer: VM db doesn't run on this host" {
		t.Errorf("error %v", err)
	}
	s = newShell(t)
	r, w := io.Pipe()
	defer w.Close()
	a := serve(t, s.hosts[0])
	out, notes, ended := &text{}, &text{}, make(chan error, 1)
	go func() {
		ended <- run(t.Context(), append(a.flags(), "--timeout", "300ms", "vm", "console", "db"), r, out, notes)
	}()
	io.WriteString(w, "hi\n")
	out.await(t, "hi!")
	s.takeOver(0)
	if err := wait(t, ended); err == nil || !strings.Contains(notes.String(), "the connection is lost") {
		t.Errorf("error %v, notes %q", err, notes)
	}
}
