package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/duet-ft/duet/appliance/agent/wire"
	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/daemon/server"
	"github.com/duet-ft/duet/hvd/daemon/vmsock"
	"github.com/duet-ft/duet/hvd/hostkey"
	"golang.org/x/sys/unix"
)

// host is a host with one VM, "db", whose guest has an agent, and an echo on port 7.
type host struct {
	mu      sync.Mutex
	asked   []string
	console func() (net.Conn, error) // nil: the guest runs elsewhere
	tape    []byte                   // a recording
	drained bool
	events  []api.Event // nil: two of its own
	broken  bool        // its check finds so
	paired  bool
	looks   int
	disk    []byte // content of disk root
	cut     bool   // exports break off
}

func (h *host) note(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked = append(h.asked, what)
}

func (h *host) Host(context.Context) api.Host {
	until := time.Date(2026, 1, 2, 3, 19, 0, 0, time.UTC)
	state := api.Host{
		Name: "a", KVM: "ok", Volume: "ok", Trouble: "no peer: host.json names none", Key: strings.Repeat("00", 32),
		Code: "4711-0815", CodeUntil: &until, Heard: []api.Heard{{Name: "b", NIC: "eth1", Shows: true}},
	}
	if h.paired {
		state.Peer, state.Session, state.Trouble, state.Code = "b", "no session yet to host b", "", ""
	}
	return state
}

func (h *host) Drain(_ context.Context, on bool) (api.Host, error) {
	h.note(fmt.Sprintf("drain %t", on))
	h.drained = on
	return api.Host{Name: "a", Drained: on}, nil
}

func (h *host) Protect(_ context.Context, name string, on bool) (api.VM, error) {
	h.note(fmt.Sprintf("protect %s %t", name, on))
	if name == "web" {
		return api.VM{}, api.Errorf(503, "no volume: it doesn't answer")
	}
	return api.VM{Name: name, Unprotected: !on}, nil
}

func (h *host) Pair(_ context.Context, code string) (api.Host, error) {
	h.note("pair " + code)
	until := time.Date(2026, 1, 2, 3, 19, 0, 0, time.UTC)
	switch code {
	case "":
		return api.Host{Name: "a", Code: "4711-0815", CodeUntil: &until}, nil
	case "4711-0815":
		return api.Host{Name: "a", Peer: "b", Session: "no session yet to host b"}, nil
	}
	return api.Host{}, api.Errorf(409, "the pairing code is wrong")
}

func (h *host) Unpair(context.Context) (api.Host, error) {
	h.note("unpair")
	return api.Host{Name: "a"}, nil
}

func (h *host) Check(context.Context) []api.Finding {
	list := []api.Finding{{What: "CPU", Grade: api.Fine, Line: "EPYC with SVM"}, {What: "partner", Grade: api.Missing, Line: "none"}}
	if h.broken {
		list = append(list, api.Finding{What: "KVM", Grade: api.Broken, Line: "no KVM:\x1b[2J there is no /dev/kvm"})
	}
	return list
}

func (h *host) VMs(context.Context) ([]api.VM, error) {
	if h.drained {
		// One leaves while it is waited for.
		role := "secondary"
		if h.looks++; h.looks > 1 {
			role = "standby"
		}
		return []api.VM{{Name: "db", Role: role}, {Name: "web", Role: "failed"}}, nil
	}
	return []api.VM{
		{Name: "db", Role: "primary", Live: true, Protected: true, Epoch: 3, LagMS: 1.25, Output: "verified", Accessed: "steady: so it is"},
		{Name: "web", Role: "failed", Unprotected: true, Output: "received", Error: "no kernel\x1b[2J was found"},
	}, nil
}

func (h *host) VM(context.Context, string) (api.VM, error) {
	return api.VM{
		Name: "db", Role: "alone", Unprotected: true, ClockNS: 1500e6, LinkMS: 0.4, EchoMS: 1.5, Counters: api.Counters{Exits: 12, Ticks: 5, AtExit: 6, AtPoint: 2},
		Locator: "pmu", LocatorWhy: "the counters of this Zen passed the self-test",
		Seed:     &api.Seed{Pages: 7, PauseMS: 2.5},
		Failover: &api.Failover{At: time.Unix(0, 0), Cause: "peer is silent", LiveMS: 250},
	}, nil
}

func (h *host) Create(_ context.Context, definition []byte) (api.VM, error) {
	h.note("create " + string(definition))
	return api.VM{Name: "new"}, nil
}

func (h *host) Delete(_ context.Context, name string) error {
	h.note("delete " + name)
	return nil
}

func (h *host) Forward(_ context.Context, name, method, path string) (vmsock.Reply, error) {
	h.note(method + " " + name + path)
	if path == "/force-start" {
		return vmsock.Reply{}, api.Errorf(409, "the peer is alive")
	}
	if path == "/switchover" && name == "solo" {
		body := `{"error": "VM \"solo\" can't change hosts: it isn't protected: no other host has a copy that could go on"}`
		return vmsock.Reply{Status: 409, Type: "application/json", Body: []byte(body)}, nil
	}
	return vmsock.Reply{Status: 200, Body: []byte("line 1\r\n\x1b[31mline 2\tred\n")}, nil
}

func (h *host) Stream(_ context.Context, name, path string) (*http.Response, error) {
	h.asked = append(h.asked, "stream "+name+path)
	body := h.tape
	if strings.Contains(path, "for=2m") { // cut
		body = body[:len(body)-1]
	}
	return &http.Response{
		StatusCode: 200, Header: http.Header{"Content-Type": {"application/octet-stream"}},
		Body: io.NopCloser(bytes.NewReader(body)),
	}, nil
}

func (h *host) Events(context.Context) []api.Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.events != nil {
		return h.events
	}
	return []api.Event{
		{At: time.Unix(1, 0), Host: "a", Kind: api.EventProcess, What: "hvd started"},
		{
			At: time.Unix(2, 0), Host: "a", VM: "db", Kind: api.EventFence, Epoch: 2, From: "fencing", Role: "solo", Position: 90,
			Cause: "the primary is silent", What: "host b is fenced; live",
		},
	}
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

func (h *host) Console(_ context.Context, name string) (net.Conn, error) {
	h.mu.Lock()
	connect := h.console
	h.mu.Unlock()
	if connect == nil {
		return nil, api.Errorf(409, "VM %s doesn't run on this host", name)
	}
	return connect()
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
		h.note(string(line))
		var out any
		if req.Execute == wire.Information {
			out = wire.Info{BootID: "b-o-o-t", Uptime: 12.5, Hostname: "db", Addresses: []wire.Address{{Interface: "eth0", Address: "192.0.2.7/24"}}}
		}
		conn.Write(wire.FormatReply(out, bad))
	}
}

// served is a host whose API runs.
type served struct {
	address     string
	fingerprint string
}

// serve runs a host's API, whose token is "tok".
func serve(t *testing.T, h *host) served {
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
	return served{l.Addr().String(), api.Fingerprint(key.Public().(ed25519.PublicKey))}
}

// flags are how to reach it.
func (s served) flags() []string {
	return []string{"--host", s.address, "--token", "tok", "--fingerprint", s.fingerprint[:2] + ":" + s.fingerprint[2:], "--timeout", "20s"}
}

// TestMain lets all tests run in one time zone.
func TestMain(m *testing.M) {
	time.Local = time.UTC
	os.Exit(m.Run())
}

// took is how long something took, which is never the same.
var took = regexp.MustCompile(`answered in [0-9.]+ ms`)

// TestCommands compares what each command prints, fails with and asks of the host with testdata/commands.
func TestCommands(t *testing.T) {
	datadriven.RunTest(t, "testdata/commands", func(t *testing.T, d *datadriven.TestData) string {
		line, in, _ := strings.Cut(d.Input, "\n")
		if d.Cmd != "duet" {
			d.Fatalf(t, "there is no directive %s", d.Cmd)
		}
		h := &host{broken: d.HasArg("broken"), paired: d.HasArg("paired")}
		s := serve(t, h)
		var out bytes.Buffer
		err := run(context.Background(), append(s.flags(), strings.Fields(line)...), strings.NewReader(in), &out, io.Discard)
		text := out.String()
		if text != "" && !strings.HasSuffix(text, "\n") {
			text += " (no newline)\n"
		}
		for _, asked := range h.asked {
			text += "asked: " + asked + "\n"
		}
		if err != nil {
			text += "error: " + api.OneLine(err.Error()) + "\n"
		}
		if errors.Is(err, errUsage) {
			text += "(and where to read more)\n"
		}
		text = took.ReplaceAllString(text, "answered in some ms")
		return strings.NewReplacer(s.address, "ADDRESS", s.fingerprint, "FINGERPRINT", "\x1b", "^[").Replace(text)
	})
}

// TestUsage expects each command in the usage, and in testdata/commands.
func TestUsage(t *testing.T) {
	t.Setenv("DUET_HOST", "") // nobody needs a host to ask for help
	for _, line := range []string{"--help", "help"} {
		var out bytes.Buffer
		if err := run(context.Background(), []string{line}, nil, &out, io.Discard); err != nil || out.String() != usage {
			t.Errorf("%s: %v, %q", line, err, out.String())
		}
	}
	golden, err := os.ReadFile("testdata/commands")
	if err != nil {
		t.Fatal(err)
	}
	for name := range commands {
		if !strings.Contains(usage, "\n  "+name+" ") {
			t.Errorf("the usage has no %s", name)
		}
		if !strings.Contains(string(golden), "\n"+name+" ") && !strings.Contains(string(golden), "\n"+name+"\n") {
			t.Errorf("testdata/commands has no %s", name)
		}
	}
}

func TestNoHost(t *testing.T) {
	t.Setenv("DUET_HOST", "")
	if err := run(context.Background(), []string{"host"}, nil, io.Discard, io.Discard); !errors.Is(err, errUsage) {
		t.Errorf("without a host: %v", err)
	}
	t.Setenv("DUET_HOST", "127.0.0.1:1")
	err := run(context.Background(), []string{"host"}, nil, io.Discard, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "host 127.0.0.1:1: ") || strings.Contains(err.Error(), "\n") {
		t.Errorf("a host that isn't there: %v", err)
	}
}

// TestLargeDefinition is refused by its size, and not sent.
func TestLargeDefinition(t *testing.T) {
	h := &host{}
	s := serve(t, h)
	large := strings.NewReader(strings.Repeat(" ", maxDefinition) + "{}")
	err := run(context.Background(), append(s.flags(), "create", "-"), large, io.Discard, io.Discard)
	if want := "standard input is larger than 1048576 bytes, so it is no VM's definition"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if len(h.asked) != 0 {
		t.Errorf("the host was asked for %q", h.asked)
	}
}
