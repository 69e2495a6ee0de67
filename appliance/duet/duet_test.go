package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/appliance/agent/wire"
	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/daemon/server"
	"github.com/duet-ft/duet/hvd/daemon/vmsock"
	"github.com/duet-ft/duet/hvd/hostkey"
	"golang.org/x/sys/unix"
)

// host is a host with one VM, "db", whose guest has an agent, and an echo on port 7.
type host struct{ asked []string }

func (h *host) Host(context.Context) api.Host {
	return api.Host{Name: "a", KVM: "ok", Volume: "ok", Trouble: "no peer: host.json names none", Key: strings.Repeat("00", 32)}
}

func (h *host) VMs(context.Context) ([]api.VM, error) {
	return []api.VM{
		{Name: "db", Role: "primary", Live: true, Protected: true, Epoch: 3, LagMS: 1.25, Output: "verified", Accessed: "steady: so it is"},
		{Name: "web", Role: "failed", Output: "received", Error: "no kernel\x1b[2J was found"},
	}, nil
}

func (h *host) VM(context.Context, string) (api.VM, error) {
	return api.VM{
		Name: "db", Role: "alone", ClockNS: 1500e6, Counters: api.Counters{Exits: 12, Ticks: 5},
		Seed:     &api.Seed{Pages: 7, PauseMS: 2.5},
		Failover: &api.Failover{At: time.Unix(0, 0), Cause: "peer is silent", LiveMS: 250},
	}, nil
}

func (h *host) Create(_ context.Context, definition []byte) (api.VM, error) {
	h.asked = append(h.asked, "create "+string(definition))
	return api.VM{Name: "new"}, nil
}

func (h *host) Delete(_ context.Context, name string) error {
	h.asked = append(h.asked, "delete "+name)
	return nil
}

func (h *host) Forward(_ context.Context, name, method, path string) (vmsock.Reply, error) {
	h.asked = append(h.asked, method+" "+name+path)
	if path == "/force-start" {
		return vmsock.Reply{}, api.Errorf(409, "the peer is alive")
	}
	return vmsock.Reply{Status: 200, Body: []byte("line 1\r\n\x1b[31mline 2\tred\n")}, nil
}

func (h *host) Events(context.Context) []api.Event {
	return []api.Event{{At: time.Unix(1, 0), What: "hvd started"}, {At: time.Unix(2, 0), VM: "db", Epoch: 2, Role: "alone", What: "went live"}}
}

func (h *host) Vsock(_ context.Context, _ string, port uint32) (net.Conn, error) {
	here, guest, err := sockets()
	if err != nil {
		return nil, err
	}
	switch port {
	case wire.Port:
		go h.agent(guest)
	case 7:
		go func() {
			io.Copy(guest, io.LimitReader(guest, 5))
			guest.Close()
		}()
	default:
		return nil, api.Errorf(502, "nothing listens on vsock port %d of the guest", port)
	}
	return here, nil
}

// sockets is a connection of Unix sockets, as a VM's process has one: it can be closed half.
func sockets() (a, b net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	var c [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c[i], err = net.FileConn(f) // a duplicate
		f.Close()
		if err != nil {
			return nil, nil, err
		}
	}
	return c[0], c[1], nil
}

func (h *host) agent(conn net.Conn) {
	defer conn.Close()
	for r := wire.NewReader(conn); ; {
		line, err := wire.ReadLine(r)
		if err != nil {
			return
		}
		req, bad := wire.ParseRequest(line)
		h.asked = append(h.asked, string(line))
		var out any
		if req.Execute == wire.Information {
			out = wire.Info{BootID: "b-o-o-t", Uptime: 12.5, Hostname: "db", Addresses: []wire.Address{{Interface: "eth0", Address: "192.0.2.7/24"}}}
		}
		conn.Write(wire.FormatReply(out, bad))
	}
}

// serve runs the host's API, and returns the flags to reach it.
func serve(t *testing.T, h *host) []string {
	t.Helper()
	key := hostkey.New()
	cert, err := hostkey.Certificate(key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		server.Serve(ctx, l, server.Config{Certificate: cert, Token: "tok", Backend: h, Log: func(string) {}})
		close(done)
	}()
	t.Cleanup(func() { cancel(); <-done })
	print := api.Fingerprint(key.Public().(ed25519.PublicKey))
	return []string{"--host", l.Addr().String(), "--token", "tok", "--fingerprint", print[:2] + ":" + print[2:], "--timeout", "20s"}
}

func TestCommands(t *testing.T) {
	for _, c := range []struct {
		line string
		out  []string // parts of the output, in this order
		in   string
		ask  string // what the host was asked
		err  string // a part of the error
	}{
		{line: "host", out: []string{
			"name         a\n", "KVM          ok\n",
			"fingerprint  " + api.Fingerprint(make([]byte, 32)) + "\n", "trouble      no peer: host.json names none\n",
		}},
		{line: "vms", out: []string{
			"NAME  ROLE     RUNS HERE  PROTECTED  EPOCH  LAG     OUTPUT    ACCESSED BITS  ERROR\n",
			"db    primary  yes        yes        3      1.2 ms  verified  steady         \n",
			"web   failed   no         no         0      0.0 ms  received                 no kernel [2J was found\n",
		}},
		{line: "vm db", out: []string{"guest time     1.5s\n", "exits          12 (ticks 5, inputs 0)", "7 pages", "peer is silent"}},
		{line: "start db", out: []string{"VM db starts\n"}, ask: "POST db/start"},
		{line: "stop db", out: []string{"VM db is switched off\n"}, ask: "POST db/stop"},
		{line: "shutdown db", out: []string{"VM db was told to shut down\n"}, ask: "POST db/shutdown"},
		{line: "force-start db", err: "the peer is alive", ask: "POST db/force-start"},
		{line: "console db", out: []string{"line 1\n[31mline 2\tred\n"}, ask: "GET db/console"},
		{line: "events", out: []string{"hvd started\n", "db  alone 2  went live\n"}},
		{line: "events db", out: []string{"went live"}},
		{line: "create -", in: `{"name": "new"}`, out: []string{"VM new is defined\n"}, ask: `create {"name":"new"}`},
		{line: "create -", in: `{"name": `, err: "- is not valid JSON"},
		{line: "create /nonexistent", err: "no such file"},
		{line: "delete db", out: []string{"VM db is deleted\n"}, ask: "delete db"},
		{line: "agent db ping", out: []string{"the agent of VM db answered in "}, ask: `{"execute":"ping"}`},
		{line: "agent db info", out: []string{"boot id    b-o-o-t\n", "uptime     12.50 s\n", "address    eth0 192.0.2.7/24\n"}, ask: `{"execute":"info"}`},
		{line: "agent db shutdown", out: []string{"answered"}, ask: `{"execute":"shutdown","arguments":{"mode":"poweroff"}}`},
		{line: "agent db reboot", out: []string{"answered"}, ask: `{"execute":"shutdown","arguments":{"mode":"reboot"}}`},
		{line: "agent db dance", err: "ping, info, shutdown and reboot"},
		{line: "vsock db 7", in: "hello", out: []string{"hello"}},
		{line: "vsock db 8", err: "nothing listens on vsock port 8"},
		{line: "vsock db x", err: "vsock port"},
		{line: "explode", err: `there is no command "explode"`},
		{line: "start", err: "start with 0 arguments"},
		{line: "host extra", err: "host with 1 arguments"},
		{line: "", err: "no command"},
		{line: "--nope host", err: "flag provided but not defined"},
		{line: "--token wrong host", err: "wrong or missing token"},
		{line: "--fingerprint 00 host", err: "this is another host"},
	} {
		t.Run(c.line, func(t *testing.T) {
			h := &host{}
			flags := serve(t, h)
			var out bytes.Buffer
			err := run(context.Background(), append(flags, strings.Fields(c.line)...), strings.NewReader(c.in), &out)
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			rest := out.String()
			for _, part := range c.out {
				_, after, ok := strings.Cut(rest, part)
				if !ok {
					t.Fatalf("the output has no %q (after what comes before it):\n%s", part, out.String())
				}
				rest = after
			}
			if got := strings.Join(h.asked, "|"); got != c.ask {
				t.Errorf("the host was asked for %q, want %q", got, c.ask)
			}
		})
	}
}

func TestNoHost(t *testing.T) {
	t.Setenv("DUET_HOST", "")
	if err := run(context.Background(), []string{"host"}, nil, io.Discard); !errors.Is(err, errUsage) {
		t.Errorf("without a host: %v", err)
	}
	t.Setenv("DUET_HOST", "127.0.0.1:1")
	err := run(context.Background(), []string{"host"}, nil, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "host 127.0.0.1:1: ") || strings.Contains(err.Error(), "\n") {
		t.Errorf("a host that isn't there: %v", err)
	}
}
