package vm

import (
	"context"
	"crypto/md5"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
)

var soakMiB = flag.Int("soak.mib", 2, "how many MiB the workload network receives, and sends")

// peer is who a guest's network workload talks to.
type peer struct{ port int }

// peerAddress is the host on the guest's tap; see testRim.
const peerAddress = "10.0.0.1"

// begin listens for one run, on ports that no connection of the guest's last
// life knows. args tell the guest's script where; check compares what it printed.
func (p *peer) begin(ctx context.Context) (args string, check func(said string) error) {
	p.port = max(9000, p.port+2)
	content := make([]byte, *soakMiB<<20)
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	sent := p.serve(ctx, p.port, func(c net.Conn) (sum [md5.Size]byte, err error) {
		_, err = c.Write(content)
		return md5.Sum(content), err
	})
	received := p.serve(ctx, p.port+1, func(c net.Conn) (sum [md5.Size]byte, err error) {
		h := md5.New()
		_, err = io.Copy(h, c)
		return [md5.Size]byte(h.Sum(nil)), err
	})
	args = fmt.Sprintf(" %s %d %d", peerAddress, p.port, *soakMiB)
	return args, func(said string) error {
		a, b := <-sent, <-received
		want := fmt.Sprintf("received %x sent %x", a.sum, b.sum)
		if err := errors.Join(a.err, b.err); err != nil {
			return fmt.Errorf("the guest's peer: %w", err)
		}
		if !strings.Contains(said, want) {
			return fmt.Errorf("the guest's peer has %q", want)
		}
		return nil
	}
}

// moved is what went over a connection.
type moved struct {
	sum [md5.Size]byte
	err error
}

// serve has f serve the first connection to a port.
func (p *peer) serve(ctx context.Context, port int, f func(net.Conn) ([md5.Size]byte, error)) chan moved {
	done := make(chan moved, 1)
	l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", peerAddress, port))
	if err != nil {
		done <- moved{err: err}
		return done
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	go func() {
		defer stop()
		defer l.Close()
		c, err := l.Accept()
		if err != nil {
			done <- moved{err: err}
			return
		}
		defer context.AfterFunc(ctx, func() { c.Close() })()
		sum, err := f(c)
		done <- moved{sum, errors.Join(err, c.Close())}
	}()
	return done
}
