// Command agent runs inside a guest and answers the host over vsock, port 1024:
// is it up, what are its addresses, shut down. See appliance/agent/wire for the
// language.
//
// # Place
//
// It is optional: a guest without it is protected just the same. image/guest
// installs it as /usr/local/sbin/duet-agent. Of ours it imports agent/wire.
//
// When a secondary goes live, the host resets the vsock transport: connections
// die, and clients call again. The listener is bound to any context ID, so it
// stays.
package main

import (
	"bufio"
	"context"
	"errors"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/mdlayher/vsock"

	"github.com/duet-ft/duet/appliance/agent/wire"
)

const (
	maxConns = 16               // connections at a time; more wait to be accepted
	idle     = 10 * time.Minute // a connection without a request is closed
	retry    = time.Second      // between attempts to listen

	cidAny = 1<<32 - 1 // VMADDR_CID_ANY
)

func main() {
	log.SetFlags(0) // the journal has the time
	if len(os.Args) > 1 {
		log.Fatal("duet-agent takes no arguments: it answers on vsock port 1024")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	keep(ctx, listen, linux{}, retry)
}

// listen listens on the agent's port, in whatever context ID the guest has.
func listen() (net.Listener, error) {
	l, err := vsock.ListenContextID(cidAny, wire.Port, nil)
	if err != nil {
		return nil, err // and not a listener that is a nil pointer
	}
	return l, nil
}

// keep listens and serves until ctx ends, and again after a pause when it can't. It says so once: there may be no vsock
// device yet, or none at all.
func keep(ctx context.Context, listen func() (net.Listener, error), sys System, pause time.Duration) {
	var last string
	for ctx.Err() == nil {
		l, err := listen()
		if err == nil {
			log.Printf("listening on vsock port %d", wire.Port)
			stop := context.AfterFunc(ctx, func() { l.Close() })
			err = serve(l, sys)
			stop()
			l.Close()
		}
		if ctx.Err() == nil && err.Error() != last {
			last = err.Error()
			log.Print(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// serve answers connections until the listener fails; it returns why.
func serve(l net.Listener, sys System) error {
	slots := make(chan struct{}, maxConns)
	for {
		slots <- struct{}{}
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer func() { <-slots }()
			defer c.Close()
			if err := serveConn(c, sys); err != nil {
				log.Print(err)
			}
		}()
	}
}

// serveConn answers one connection's requests. Its end, for whatever reason, is
// nothing to report; an order that failed is.
func serveConn(c net.Conn, sys System) error {
	r := bufio.NewReaderSize(c, wire.MaxLine)
	for {
		if err := c.SetDeadline(time.Now().Add(idle)); err != nil {
			return nil
		}
		line, err := wire.ReadLine(r)
		if errors.Is(err, wire.ErrTooLong) {
			// What follows can't be told from a new line: answer, and hang up.
			c.Write(wire.FormatReply(nil, &wire.Error{Class: wire.ClassBadRequest, Desc: err.Error()}))
			return nil
		}
		if err != nil {
			return nil
		}
		reply, after := handle(sys, line)
		_, err = c.Write(reply)
		if after != nil {
			if err := after(); err != nil {
				return err
			}
		}
		if err != nil {
			return nil
		}
	}
}
