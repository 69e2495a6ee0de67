package load

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeRedis knows INCR, SET and GET. before is asked ahead of each command and may do harm.
type fakeRedis struct {
	ln     net.Listener
	mu     sync.Mutex
	data   map[string]string
	before func(f *fakeRedis, conn net.Conn, args []string)
}

func newFakeRedis(t *testing.T) *fakeRedis {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeRedis{ln: ln, data: map[string]string{}}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go f.serve(conn)
		}
	}()
	return f
}

func (f *fakeRedis) dial(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "tcp", f.ln.Addr().String())
}

// harm sets what happens from now on.
func (f *fakeRedis) harm(before func(f *fakeRedis, conn net.Conn, args []string)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before = before
}

// change changes the data behind everybody's back.
func (f *fakeRedis) change(do func(data map[string]string)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do(f.data)
}

func (f *fakeRedis) serve(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for {
		args, err := readCommand(in)
		if err != nil {
			return
		}
		f.mu.Lock()
		if f.before != nil {
			f.before(f, conn, args)
		}
		answer := f.execute(args)
		f.mu.Unlock()
		if _, err := io.WriteString(conn, answer); err != nil {
			return
		}
	}
}

func (f *fakeRedis) execute(args []string) string {
	switch args[0] {
	case "INCR":
		n, _ := strconv.Atoi(f.data[args[1]])
		f.data[args[1]] = fmt.Sprint(n + 1)
		return fmt.Sprintf(":%d\r\n", n+1)
	case "SET":
		f.data[args[1]] = args[2]
		return "+OK\r\n"
	case "GET":
		v, ok := f.data[args[1]]
		if !ok {
			return "$-1\r\n"
		}
		return fmt.Sprintf("$%d\r\n%s\r\n", len(v), v)
	}
	return "-ERR unknown command\r\n"
}

func readCommand(in *bufio.Reader) ([]string, error) {
	number := func(prefix string) (int, error) {
		line, err := in.ReadString('\n')
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, prefix)))
	}
	n, err := number("*")
	if err != nil {
		return nil, err
	}
	var args []string
	for range n {
		size, err := number("$")
		if err != nil {
			return nil, err
		}
		b := make([]byte, size+2)
		if _, err := io.ReadFull(in, b); err != nil {
			return nil, err
		}
		args = append(args, string(b[:size]))
	}
	return args, nil
}

// start runs a load against f, with values in two slots a client.
func start(t *testing.T, f *fakeRedis) *Load {
	t.Helper()
	l, err := Start(t.Context(), Config{Dial: f.dial, Clients: 3, Slots: 2, Pause: time.Millisecond, Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// serve waits until each client was served some rounds.
func serve(t *testing.T, l *Load) {
	t.Helper()
	for range 4 {
		if err := l.Answered(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func check(t *testing.T, l *Load) Result {
	t.Helper()
	r, err := l.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}
