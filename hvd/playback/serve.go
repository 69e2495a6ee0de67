package playback

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/duet-ft/duet/hvd/recording/gdb"
)

// serveDebugger waits for one debugger after the other on an address, until ctx
// ends.
func serveDebugger(ctx context.Context, p *Player, address string, to uint64, out io.Writer) error {
	d, err := NewDebugger(ctx, p, to)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("wait for a debugger: %w", err)
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	fmt.Fprintf(out, "in gdb: target remote %s\n", l.Addr())
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		err = d.session(c)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			fmt.Fprintf(out, "the debugger's connection ended: %v\n", err)
		}
	}
}

// session serves one debugger. What it sends is read aside, so that an interrupt
// gets through while the guest runs.
func (d *Debugger) session(c net.Conn) error {
	defer c.Close()
	defer context.AfterFunc(d.ctx, func() { c.Close() })()
	s := gdb.New(d)
	type input struct {
		b   []byte
		err error
	}
	in := make(chan input)
	gone := make(chan struct{})
	defer close(gone)
	go func() {
		for {
			b := make([]byte, 4096)
			n, err := c.Read(b)
			if n == 1 && b[0] == 3 {
				d.Interrupt()
				continue
			}
			if err != nil {
				d.Interrupt()
			}
			select {
			case in <- input{b[:n], err}:
			case <-gone:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	for x := range in {
		if _, err := c.Write(s.Feed(x.b)); err != nil {
			return err
		}
		if x.err != nil {
			return x.err
		}
		if s.Done() {
			return nil
		}
	}
	return nil
}
