package session

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// batchSize is how many bytes one system call writes or reads at most, about.
const (
	batchSize    = 256 << 10
	readSize     = 64 << 10
	recordMargin = 32 << 10 // room for the TLS record that crosses batchSize
)

// batched is a TCP connection that gathers the records that TLS writes one by
// one (16 KiB each) into few system calls.
type batched struct {
	net.Conn
	in  *bufio.Reader
	raw syscall.RawConn // nil: this kind of connection has none
	t   *traffic

	mu     sync.Mutex
	corked bool
	buf    []byte
	stall  time.Duration // how long a write may take; 0: for ever
}

func newBatched(c net.Conn, t *traffic) *batched {
	b := &batched{Conn: c, t: t, in: bufio.NewReaderSize(countedReader{c, t}, readSize)}
	if s, ok := c.(syscall.Conn); ok {
		b.raw, _ = s.SyscallConn() // without it, uncork does offer's work
	}
	return b
}

func (b *batched) Read(p []byte) (int, error) { return b.in.Read(p) }

// Write writes p, or keeps it until uncork.
func (b *batched) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.corked {
		return b.write(p)
	}
	if b.buf == nil {
		b.buf = make([]byte, 0, batchSize+recordMargin)
	}
	b.buf = append(b.buf, p...)
	if len(b.buf) >= batchSize {
		return len(p), b.flush()
	}
	return len(p), nil
}

// cork makes Write gather.
func (b *batched) cork() {
	b.mu.Lock()
	b.corked = true
	b.mu.Unlock()
}

// uncork writes what was gathered.
func (b *batched) uncork() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.corked = false
	return b.flush()
}

// offer writes what was gathered as far as the network takes it at once. If some
// is left, uncork has to be called before anything else is written.
func (b *batched) offer() (left bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.buf) == 0 || b.raw == nil {
		return len(b.buf) > 0, nil
	}
	var n int
	closed := b.raw.Control(func(fd uintptr) { n, err = unix.Write(int(fd), b.buf) })
	switch {
	case closed != nil:
		return false, closed
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
		return true, nil
	case err != nil:
		return false, &net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", err)}
	}
	b.t.writes.Add(1)
	b.t.bytesOut.Add(uint64(n))
	b.buf = append(b.buf[:0], b.buf[n:]...)
	b.corked = len(b.buf) > 0
	return b.corked, nil
}

// setStall limits how long each later write may take.
func (b *batched) setStall(d time.Duration) {
	b.mu.Lock()
	b.stall = d
	b.mu.Unlock()
}

func (b *batched) flush() error {
	if len(b.buf) == 0 {
		return nil
	}
	_, err := b.write(b.buf)
	b.buf = b.buf[:0]
	return err
}

func (b *batched) write(p []byte) (int, error) {
	if b.stall != 0 {
		if err := b.SetWriteDeadline(time.Now().Add(b.stall)); err != nil {
			return 0, err
		}
	}
	n, err := b.Conn.Write(p)
	b.t.writes.Add(1)
	b.t.bytesOut.Add(uint64(n))
	return n, err
}

type countedReader struct {
	r io.Reader
	t *traffic
}

func (c countedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.t.bytesIn.Add(uint64(n))
	return n, err
}
