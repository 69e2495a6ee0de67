package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"time"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/api/console"
)

const (
	// escape ends a console on a terminal, as virsh's does: Ctrl-].
	escape = 0x1d
	// maxWaiting is how much typed input waits for the guest; what a terminal types beyond is lost, a pipe waits.
	maxWaiting = 16 << 10
	// quiet is how long the guest must be silent after a pipe's end before the console ends.
	quiet = time.Second
	// dialLimit bounds one attempt to reach a host, and dialAgain is the pause between two.
	dialLimit = 5 * time.Second
	dialAgain = 250 * time.Millisecond
)

// typing is a piece of what comes from standard input.
type typing struct {
	text []byte
	end  bool // the input has ended, or the user left by the escape key
	left bool // by the escape key
}

// scan splits off what comes before the escape key, on a terminal.
func scan(p []byte, terminal bool) typing {
	if at := bytes.IndexByte(p, escape); terminal && at >= 0 {
		return typing{text: p[:at], end: true, left: true}
	}
	return typing{text: p}
}

// session is a console that follows the guest from host to host.
type session struct {
	env      env
	name     string
	hosts    []*api.Client
	terminal bool
	input    chan typing

	at     int // the host that is tried next
	typist console.Typist
	screen uint64 // what was shown
	offset uint64
	begun  bool
	over   bool // standard input has ended
	full   bool // it was told that the guest takes no input
}

// typeConsole connects standard input and output to a guest's console until the escape key, or the end of a pipe.
func typeConsole(ctx context.Context, e env) error {
	s := &session{env: e, name: e.args[1], hosts: []*api.Client{e.client}, input: make(chan typing)}
	if e.peer != nil {
		s.hosts = append(s.hosts, e.peer)
	}
	restore, err := rawTerminal(e.in)
	switch {
	case err != nil:
		return err
	case restore != nil:
		defer restore()
		s.terminal = true
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go s.read(ctx)
	for {
		conn, err := s.connect(ctx)
		if err != nil {
			return err
		}
		done, err := s.serve(ctx, conn)
		conn.Close()
		switch {
		case ctx.Err() != nil:
			return nil // interrupted
		case done:
			return err
		}
		s.say("the connection is lost (%v)", err)
	}
}

// say tells the user something, beside the guest's output.
func (s *session) say(format string, args ...any) {
	// Raw terminals need the carriage return. What can't be told can't be helped.
	fmt.Fprintf(s.env.notes, "\r\n[duet: %s]\r\n", api.OneLine(fmt.Sprintf(format, args...)))
}

// read reads standard input until it ends.
func (s *session) read(ctx context.Context) {
	for {
		buf := make([]byte, console.MaxInput)
		n, err := s.env.in.Read(buf)
		t := scan(buf[:n], s.terminal)
		t.end = t.end || err != nil
		select {
		case s.input <- t:
		case <-ctx.Done():
			return
		}
		if t.end {
			return
		}
	}
}

// connect finds the host where the guest runs. Before the first time each host is asked once; later it takes until the
// time limit, and the escape key gives up.
func (s *session) connect(ctx context.Context) (net.Conn, error) {
	limit, cancel := context.WithTimeout(ctx, s.env.timeout)
	defer cancel()
	for try, first := 1, error(nil); ; try++ {
		client := s.hosts[s.at]
		conn, err := s.dial(limit, client)
		if err == nil {
			return conn, nil
		}
		s.at = (s.at + 1) % len(s.hosts)
		if !s.begun && try < len(s.hosts) {
			first = err
			continue
		}
		if !s.begun || limit.Err() != nil {
			if first != nil {
				err = fmt.Errorf("%w; the peer: %w", first, err)
			}
			return nil, err
		}
		input := s.input
		if s.typist.Waiting() >= maxWaiting {
			input = nil
		}
		select {
		case <-limit.Done():
			return nil, err
		case t := <-input:
			if s.take(t) {
				return nil, err
			}
		case <-time.After(dialAgain):
		}
	}
}

func (s *session) dial(ctx context.Context, c *api.Client) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	conn, err := c.OpenConsole(ctx, s.name)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(dialLimit))
	hello, err := s.greet(conn)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("the console's stream: %w", err)
	}
	conn.SetDeadline(time.Time{})
	if lost := s.typist.Resumed(hello.B); lost > 0 {
		s.say("%d bytes of input may be lost: the guest was started anew, or somebody else types as well", lost)
	} else if s.begun {
		s.say("connected again")
	}
	if s.screen != hello.A {
		s.screen, s.offset = hello.A, 0
	}
	s.begun = true
	return conn, nil
}

func (s *session) greet(conn net.Conn) (hello console.Frame, err error) {
	if _, err = conn.Write(console.Frame{Kind: console.Resume, A: s.screen, B: s.offset}.Append(nil)); err != nil {
		return hello, err
	}
	if hello, err = console.Read(conn); err == nil && hello.Kind != console.Hello {
		err = console.ErrFrame
	}
	return hello, err
}

// take accepts input. It reports that the user left.
func (s *session) take(t typing) (left bool) {
	s.over = s.over || t.end
	if room := maxWaiting - s.typist.Waiting(); s.terminal && len(t.text) > room {
		if t.text = t.text[:max(0, room)]; !s.full {
			s.say("the guest takes no input: what you type is lost from here on")
		}
		s.full = true
	}
	s.typist.Add(t.text)
	return t.left
}

// serve runs one stream. done says that the console is over, and not just this stream.
func (s *session) serve(ctx context.Context, conn net.Conn) (done bool, err error) {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	frames, failed := make(chan console.Frame), make(chan error, 1)
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			f, err := console.Read(conn)
			if err != nil {
				failed <- err
				return
			}
			select {
			case frames <- f:
			case <-ended:
				return
			}
		}
	}()
	silent := time.NewTimer(quiet)
	defer silent.Stop()
	for {
		if err := s.send(conn); err != nil {
			return false, err
		}
		input := s.input
		if s.over || !s.terminal && s.typist.Waiting() >= maxWaiting {
			input = nil
		}
		select {
		case t := <-input:
			if s.take(t) {
				return true, nil
			}
		case f := <-frames:
			if done, err := s.frame(f); err != nil {
				return done, err
			}
		case err := <-failed:
			return false, err
		case <-silent.C:
			switch n := s.typist.Waiting(); {
			case s.over && n == 0:
				return true, nil
			case s.over && !s.full:
				s.full = true
				s.say("the guest takes no input: %d bytes wait", n)
			}
		}
		silent.Reset(quiet)
	}
}

// send sends what may be sent. The window bounds it, so a host that is well takes it at once.
func (s *session) send(conn net.Conn) error {
	for p := s.typist.Next(); p != nil; p = s.typist.Next() {
		if err := conn.SetWriteDeadline(time.Now().Add(dialLimit)); err != nil {
			return err
		}
		if _, err := conn.Write(console.Frame{Kind: console.Input, Data: p}.Append(nil)); err != nil {
			return err
		}
	}
	return nil
}

// frame takes a frame of the server's. done goes with an error that no other stream would cure.
func (s *session) frame(f console.Frame) (done bool, err error) {
	switch f.Kind {
	case console.Taken:
		s.full = false
		return false, s.typist.Taken(f.A, f.B)
	case console.Output:
		if s.offset > 0 && f.A > s.offset {
			s.say("%d bytes of output are missing", f.A-s.offset)
		}
		s.offset = f.A + uint64(len(f.Data))
		_, err := s.env.out.Write(f.Data)
		return err != nil, err
	}
	return false, fmt.Errorf("%w: %v", console.ErrFrame, f.Kind)
}
