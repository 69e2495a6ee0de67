package daemon

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/daemon/define"
	"github.com/duet-ft/duet/hvd/iscsi"
	"github.com/duet-ft/duet/hvd/volume"
)

// closedPort is a TCP port on this machine where nobody listens.
func closedPort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestWhatIsMissing expects that each thing that is missing is told in one line, once, in the log and by the API, and
// that the host serves its API all the same.
func TestWhatIsMissing(t *testing.T) {
	portal := closedPort(t)
	for _, c := range []missing{
		{
			name: "host.json", line: "no host.json: write ",
			state: func(h api.Host) string { return h.Trouble },
		},
		{
			name: "syntax", config: "{\n\"name\" \"a\"}", line: "host.json: ",
			state: func(h api.Host) string { return h.Trouble },
		},
		{
			name: "a field that isn't known", config: `{"nam": "a"}`, line: `unknown field "nam"`,
			state: func(h api.Host) string { return h.Trouble },
		},
		{
			name: "volume", config: `{"name": "a"}`, line: "no volume: host.json names none",
			state: func(h api.Host) string { return h.Volume },
		},
		{
			name: "name", config: strings.Replace(goodConfig, `"name": "a", `, "", 1), line: "no volume: host.json has no name",
			state: func(h api.Host) string { return h.Volume },
		},
		{
			name: "peer", config: `{"name": "a"}`, set: func(_ *testing.T, h *host) {
				h.write(t, strings.Replace(goodConfig, `"peer": {"name": "b", "key": "`+peerKey+`"},`, "", 1))
				h.format(t)
			},
			line: "no peer: host.json names none", state: func(h api.Host) string { return h.Trouble },
		},
		{
			name: "portal", config: strings.Replace(goodConfig, "192.0.2.1", portal, 1),
			set:  func(_ *testing.T, h *host) { h.opt.Open = login },
			line: portal, state: func(h api.Host) string { return h.Volume },
		},
		{
			name: "password", config: goodConfig,
			set: func(_ *testing.T, h *host) {
				h.opt.Open = func(context.Context, Login) (Store, error) { return Store{}, iscsi.ErrAuth }
			},
			line: "no volume: " + iscsi.ErrAuth.Error(), state: func(h api.Host) string { return h.Volume },
		},
		{
			name: "format", config: goodConfig,
			line: "no volume: volume is not formatted for Duet", state: func(h api.Host) string { return h.Volume },
		},
		{
			name: "target's abilities", config: goodConfig,
			set: func(t *testing.T, h *host) {
				h.format(t)
				open := h.opt.Open
				h.opt.Open = func(ctx context.Context, l Login) (Store, error) {
					s, err := open(ctx, l)
					s.Join = func(context.Context) (string, error) {
						return "the volume's target has no persistent reservations", nil
					}
					return s, err
				}
			},
			line: "has no persistent reservations", state: func(h api.Host) string { return h.Trouble },
		},
		{
			name: "KVM", config: goodConfig,
			set: func(t *testing.T, h *host) {
				h.format(t)
				h.opt.Hardware = func() (Hardware, error) { return Hardware{MemoryMiB: 1024}, errors.New("there is no /dev/kvm") }
			},
			line: "no KVM: there is no /dev/kvm", state: func(h api.Host) string { return h.KVM },
		},
	} {
		t.Run(c.name, c.test)
	}
}

// missing is a host that lacks something.
type missing struct {
	name   string
	config string
	set    func(t *testing.T, h *host)
	line   string // a part of the line
	state  func(api.Host) string
}

// test expects one line that says so, in the log and in the API.
func (c missing) test(t *testing.T) {
	h := newHost(t, c.config)
	if c.set != nil {
		c.set(t, h)
	}
	h.start(t)
	token := ""
	if strings.Contains(c.config, "s3cret") || c.name == "peer" {
		token = "s3cret"
	}
	client, ctx := h.client(t, token), deadline(t)
	var state api.Host
	h.eventually(t, "the state says "+c.line, func() bool {
		var err error
		state, err = client.Host(ctx)
		return err == nil && strings.Contains(c.state(state), c.line)
	})
	if strings.Contains(c.state(state), "\n") {
		t.Errorf("more than one line: %q", c.state(state))
	}
	if state.Trouble == "" {
		t.Error("the host has no trouble")
	}
	if c.name != "peer" && h.count(c.line) != 1 {
		t.Errorf("%d lines with %q in the log: %q", h.count(c.line), c.line, h.lines)
	}
	if !strings.HasPrefix(state.Volume, "ok") {
		if _, err := client.VMs(ctx); err == nil || !strings.HasPrefix(err.Error(), "no volume: ") {
			t.Errorf("VMs: %v, want a line that says that there is no volume", err)
		}
	}
}

// TestForeignVolumeIsLeftAlone expects no reservation on a volume that isn't Duet's, and that the daemon goes on once it
// is.
func TestForeignVolumeIsLeftAlone(t *testing.T) {
	h := newHost(t, goodConfig)
	h.start(t)
	c, ctx := h.client(t, "s3cret"), deadline(t)
	state := func() string {
		s, err := c.Host(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return s.Volume
	}
	h.eventually(t, "the volume is refused", func() bool { return strings.Contains(state(), volume.ErrNotDuet.Error()) })
	registered := func() int {
		list, _, err := h.mem.Session("tool").Registrations(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	if n := registered(); n != 0 {
		t.Errorf("%d sessions registered on a volume that isn't Duet's", n)
	}
	h.format(t)
	h.eventually(t, "the volume is there", func() bool { return state() == "ok" })
	if n := registered(); n != 1 {
		t.Errorf("%d sessions are registered, want the daemon's", n)
	}
}

// TestSessionLost loses the target for a while, and then the session for good.
func TestSessionLost(t *testing.T) {
	h := newHost(t, goodConfig)
	h.format(t)
	var logins atomic.Int32
	open := h.opt.Open
	h.opt.Open = func(ctx context.Context, l Login) (Store, error) {
		logins.Add(1)
		return open(ctx, l)
	}
	h.start(t)
	c, ctx := h.client(t, "s3cret"), deadline(t)
	is := func(line string) {
		t.Helper()
		h.eventually(t, "the state is "+line, func() bool {
			s, err := c.Host(ctx)
			return err == nil && s.Volume == line
		})
	}
	is("ok")
	lost := errors.New("connection lost")
	h.offline.Store(&lost)
	is("no volume: connection lost")
	h.offline.Store(nil)
	is("ok")
	if n := logins.Load(); n != 1 {
		t.Errorf("%d logins, want 1: a session gets over it by itself", n)
	}
	h.offline.Store(&iscsi.ErrClosed)
	h.eventually(t, "another login", func() bool { return logins.Load() > 1 })
	h.offline.Store(nil)
	is("ok")
}

// TestVMThatThisHostCannotRun expects reasons, and a start once KVM is there.
func TestVMThatThisHostCannotRun(t *testing.T) {
	h := newHost(t, goodConfig)
	v := h.format(t)
	ctx := deadline(t)
	for _, d := range []volume.Definition{definition("big", 2048), definition("db", 64)} {
		if _, err := define.Create(ctx, v, d); err != nil {
			t.Fatal(err)
		}
	}
	late := make(chan struct{})
	h.opt.Hardware = func() (Hardware, error) {
		select {
		case <-late:
			return Hardware{MemoryMiB: 1024}, nil
		default:
			return Hardware{MemoryMiB: 1024}, errors.New("module is late")
		}
	}
	h.start(t)
	c := h.client(t, "s3cret")
	is := func(name, role, line string) {
		t.Helper()
		h.eventually(t, name+" is "+role, func() bool {
			s, err := c.VM(ctx, name)
			return err == nil && s.Role == role && s.Error == line
		})
	}
	is("db", "failed", "no KVM: module is late")
	is("big", "failed", "no KVM: module is late")
	close(late)
	is("db", "primary", "")
	is("big", "failed", "memory_mib 2048 is more than this host has (1024 MiB)")
}

// TestConfigComesLater repairs a host.json while the daemon runs, and then changes it once more.
func TestConfigComesLater(t *testing.T) {
	h := newHost(t, `{"name": "A"}`)
	h.format(t)
	h.start(t)
	first, ctx := h.client(t, ""), deadline(t)
	if s, err := first.Host(ctx); err != nil || !strings.HasPrefix(s.Trouble, "host.json: ") {
		t.Fatalf("host: %+v, %v", s, err)
	}
	h.write(t, goodConfig)
	second := h.client(t, "s3cret")
	h.eventually(t, "the volume is there", func() bool {
		s, err := second.Host(ctx)
		return err == nil && s.Name == "a" && s.Volume == "ok" && s.Trouble == ""
	})
	h.mu.Lock()
	local := h.local
	h.mu.Unlock()
	if len(local) != 2 || !local[0] || local[1] {
		t.Errorf("listeners for this host only: %v, want true, then false", local)
	}
	h.write(t, strings.Replace(goodConfig, "s3cret", "other", 1))
	h.eventually(t, "the change is told", func() bool { return h.count("host.json has changed") == 1 })
	if s, err := second.Host(ctx); err != nil || s.Name != "a" {
		t.Errorf("after the change: %+v, %v", s, err)
	}
}
