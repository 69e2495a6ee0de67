package main

import (
	"bytes"
	"context"
	"errors"
	"log"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/vsock"

	"github.com/duet-ft/duet/appliance/agent/wire"
)

// journal is what the agent logs.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) lines() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Split(strings.TrimSpace(j.b.String()), "\n")
}

func record(t *testing.T) *journal {
	j := &journal{}
	flags := log.Flags()
	log.SetFlags(0)
	log.SetOutput(j)
	t.Cleanup(func() { log.SetOutput(os.Stderr); log.SetFlags(flags) })
	return j
}

// TestKeepsListening has no vsock at first, then a listener that breaks, then one that works.
func TestKeepsListening(t *testing.T) {
	j := record(t)
	addresses := make(chan net.Addr, 2)
	tries := 0
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		keep(ctx, func() (net.Listener, error) {
			if tries++; tries <= 3 {
				return nil, errors.New("there is no vsock device")
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return nil, err
			}
			if tries == 4 {
				l.Close() // as a transport that goes away
				return l, nil
			}
			addresses <- l.Addr()
			return l, nil
		}, &fakeSystem{info: wire.Info{BootID: "b"}}, time.Millisecond)
	}()
	c, err := net.Dial("tcp", (<-addresses).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if err := wire.Call(c, wire.Ping, nil, nil); err != nil {
		t.Error(err)
	}
	cancel()
	<-done
	got := j.lines()
	if len(got) != 4 || got[0] != "there is no vsock device" || got[1] != "listening on vsock port 1024" ||
		!strings.Contains(got[2], "use of closed network connection") || got[3] != got[1] {
		t.Errorf("the journal has %q", got)
	}
}

// TestVsock listens as the agent does, and calls it over the loopback transport (vsock(7), VMADDR_CID_LOCAL).
func TestVsock(t *testing.T) {
	l, err := listen()
	if err != nil {
		t.Skipf("no vsock here: %v", err)
	}
	l.Close()
	record(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	ready := make(chan struct{})
	go func() {
		defer close(done)
		keep(ctx, func() (net.Listener, error) {
			l, err := listen()
			if err == nil {
				close(ready)
			}
			return l, err
		}, &fakeSystem{info: wire.Info{BootID: "b"}}, time.Second)
	}()
	defer func() { cancel(); <-done }()
	<-ready
	c, err := vsock.Dial(vsock.Local, wire.Port, nil)
	if err != nil {
		t.Skipf("no vsock loopback here: %v", err)
	}
	defer c.Close()
	var info wire.Info
	if err := wire.Call(c, wire.Information, nil, &info); err != nil || info.BootID != "b" {
		t.Errorf("%+v, %v", info, err)
	}
}
