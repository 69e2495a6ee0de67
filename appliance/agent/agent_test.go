package main

import (
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/duet-ft/duet/appliance/agent/wire"
)

// fakeSystem is a machine of which everything is known.
type fakeSystem struct {
	info  wire.Info
	err   error
	modes chan string
}

func (f *fakeSystem) Info() (wire.Info, error) { return f.info, f.err }
func (f *fakeSystem) Shutdown(mode string) error {
	f.modes <- mode
	return nil
}

func TestHandle(t *testing.T) {
	ok := &fakeSystem{info: wire.Info{BootID: "b", Uptime: 3.25, Hostname: "h", Kernel: "6.1", Addresses: []wire.Address{{Interface: "eth0", Address: "192.0.2.7/24"}}}}
	broken := &fakeSystem{err: errors.New("no /proc")}
	for _, c := range []struct {
		sys           *fakeSystem
		request, want string
	}{
		{ok, `{"execute":"ping"}`, `{"return":{}}`},
		{ok, `{"execute":"info"}`, `{"return":{"boot_id":"b","uptime":3.25,"hostname":"h","kernel":"6.1","addresses":[{"interface":"eth0","address":"192.0.2.7/24"}]}}`},
		{broken, `{"execute":"info"}`, `{"error":{"class":"GenericError","desc":"no /proc"}}`},
		{ok, `{"execute":"ping","arguments":{"x":1}}`, `{"error":{"class":"BadRequest","desc":"arguments of ping: json: unknown field \"x\""}}`},
		{ok, `{"execute":"format"}`, `{"error":{"class":"CommandNotFound","desc":"no command \"format\": there are ping, info and shutdown"}}`},
		{ok, `{"execute":"shutdown"}`, `{"error":{"class":"BadRequest","desc":"arguments of shutdown: mode \"\" is neither \"poweroff\" nor \"reboot\""}}`},
		{ok, `{"execute":"shutdown","arguments":{"mode":"rm -rf"}}`, `{"error":{"class":"BadRequest","desc":"arguments of shutdown: mode \"rm -rf\" is neither \"poweroff\" nor \"reboot\""}}`},
		{ok, ``, `{"error":{"class":"BadRequest","desc":"not a request: EOF"}}`},
	} {
		reply, after := handle(c.sys, []byte(c.request))
		if d := cmp.Diff(c.want+"\n", string(reply)); d != "" || after != nil {
			t.Errorf("%s: %s", c.request, d)
		}
	}
}

// TestServe runs the agent on a Unix socket: several requests on a connection,
// a connection that misbehaves, more connections than are served at a time.
func TestServe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	sys := &fakeSystem{info: wire.Info{BootID: "b"}, modes: make(chan string, 1)}
	done := make(chan error)
	go func() { done <- serve(l, sys) }()
	dial := func() net.Conn {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(30 * time.Second))
		t.Cleanup(func() { c.Close() })
		return c
	}
	c := dial()
	var info wire.Info
	for range 3 {
		if err := wire.Call(c, wire.Information, nil, &info); err != nil || info.BootID != "b" {
			t.Fatalf("%+v, %v", info, err)
		}
	}
	long := dial()
	err = wire.Call(rawConn{long}, "", nil, nil)
	if err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("a long line: %v", err)
	}
	if n, err := long.Read(make([]byte, 1)); err == nil {
		t.Errorf("the connection with the long line goes on: %d bytes", n)
	}
	// Connections that say nothing hold the places; the last one gets one as
	// soon as one is free.
	silent := make([]net.Conn, maxConns)
	for i := range silent {
		silent[i] = dial()
	}
	last := dial()
	c.Close()
	silent[0].Close()
	if err := wire.Call(last, wire.Ping, nil, nil); err != nil {
		t.Errorf("after others hung up: %v", err)
	}
	if err := wire.Call(last, wire.Shutdown, wire.ShutdownArguments{Mode: wire.Reboot}, nil); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	if mode := <-sys.modes; mode != wire.Reboot {
		t.Errorf("shut down by %s", mode)
	}
	l.Close()
	for _, s := range append(silent, last) {
		s.Close()
	}
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("serve ended with %v", err)
	}
}

// rawConn replaces what is written by a line that is too long.
type rawConn struct{ net.Conn }

func (c rawConn) Write(b []byte) (int, error) {
	if _, err := c.Conn.Write([]byte(strings.Repeat("x", wire.MaxLine))); err != nil {
		return 0, err
	}
	return len(b), nil
}

func TestThisMachine(t *testing.T) {
	a, err := linux{}.Info()
	if err != nil {
		t.Fatal(err)
	}
	b, err := linux{}.Info()
	if err != nil {
		t.Fatal(err)
	}
	if len(a.BootID) != 36 || a.BootID != b.BootID || a.Uptime <= 0 || b.Uptime < a.Uptime || a.Kernel == "" || a.Hostname == "" {
		t.Errorf("%+v, then %+v", a, b)
	}
	for _, x := range a.Addresses {
		if ip, _, err := net.ParseCIDR(x.Address); err != nil || ip.IsLoopback() {
			t.Errorf("address %+v", x)
		}
	}
}
