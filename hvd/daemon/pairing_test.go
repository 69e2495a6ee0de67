package daemon

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/duet-ft/duet/ftlink/pairing"
	"github.com/duet-ft/duet/ftlink/session"
	"github.com/duet-ft/duet/hvd/daemon/checkup"
	"github.com/duet-ft/duet/hvd/daemon/journal"
	"github.com/duet-ft/duet/hvd/hostcfg"
	"github.com/duet-ft/duet/hvd/hostkey"
)

// startInstance runs a daemon's instance, of which the test holds the inside.
func (h *host) startInstance(t *testing.T) *instance {
	t.Helper()
	h.opt.Token = filepath.Join(h.dir, "token")
	h.opt.defaults()
	if _, err := makeRunDir(h.opt.RunDir); err != nil {
		t.Fatal(err)
	}
	events := journal.Open(h.opt.Events, func(err error) { t.Error(err) })
	d, err := newInstance(h.opt, events)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done; events.Close() })
	return d
}

func side(name string) pairing.Side {
	return pairing.Side{Name: name, Key: hostkey.New().Public().(ed25519.PublicKey)}
}

// linked is the partner that the hosts' own session is with.
func (h *host) linked() session.Peer {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.link.Peer
}

// TestFreshHost starts without any file: it has a name, a token and a code, and shows them. Then it is paired, and unpaired.
func TestFreshHost(t *testing.T) {
	h := newHost(t, "")
	h.nics = []checkup.NIC{{Name: "none0", MAC: "52:54:00:00:00:01", Use: useManagement}}
	d := h.startInstance(t)
	token, err := os.ReadFile(filepath.Join(h.dir, "token"))
	if err != nil {
		t.Fatal(err)
	}
	c, ctx := h.client(t, strings.TrimSpace(string(token))), deadline(t)
	fresh, err := c.Host(ctx)
	if err != nil || fresh.Name != hostkey.Name(d.publicKey()) || fresh.Code == "" || fresh.Peer != "" {
		t.Fatalf("a fresh host: %+v, %v", fresh, err)
	}
	h.eventually(t, "the screen shows how to reach and pair the host", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return strings.Contains(h.screen, "Duet host "+fresh.Name) && strings.Contains(h.screen, "pairing code "+fresh.Code) &&
			strings.Contains(h.screen, strings.TrimSpace(string(token)))
	})
	if h.local[0] {
		t.Error("the API is on the host itself only")
	}

	peer := side("duet-other")
	volume := `{"volume": {"portal": "192.0.2.1", "target": "iqn.2026-01.example:duet", "lun": 0}}`
	if err := d.pin(peer, "eth2", nil); err != nil {
		t.Fatal(err)
	}
	if err := d.pin(peer, "eth2", []byte(volume)); err != nil {
		t.Fatal(err)
	}
	h.eventually(t, "a session with the partner is made", func() bool { l := h.linked(); return l.Name == peer.Name && peer.Key.Equal(l.Key) })
	h.eventually(t, "the partner's volume is looked at", func() bool {
		got, err := c.Host(ctx)
		return err == nil && got.Peer == peer.Name && strings.HasPrefix(got.Volume, "no volume: volume is not formatted") && !strings.HasPrefix(got.Trouble, noConfig)
	})
	kept, err := hostcfg.Load(h.opt.Config)
	if err != nil || kept.Name != fresh.Name || kept.Peer.Key != hex.EncodeToString(peer.Key) || kept.Direct != "eth2" || kept.Volume == nil {
		t.Errorf("what is kept: %+v, %v", kept, err)
	}

	d.setSession("ok")
	for what, err := range map[string]error{
		"another partner": d.pin(side("duet-third"), "eth2", nil),
		"a code":          func() error { _, err := c.ShowCode(ctx); return err }(),
		"joining":         func() error { _, err := c.Pair(ctx, "4711-0815"); return err }(),
	} {
		if err == nil || !strings.Contains(err.Error(), "has a partner, host duet-other, which is alive") {
			t.Errorf("%s while the partner lives: %v", what, err)
		}
	}
	d.setSession("it is lost")
	if _, err := c.ShowCode(ctx); err != nil {
		t.Errorf("a code while the partner is dead: %v", err)
	}
	third := side("duet-third")
	if err := d.pin(third, "eth3", []byte(`{"volume": {"portal": "192.0.2.2", "target": "iqn.other", "lun": 0}}`)); err != nil {
		t.Errorf("another partner while the partner is dead: %v", err)
	}
	h.eventually(t, "a session with the new partner is made", func() bool { return h.linked().Name == third.Name })
	if kept, err := hostcfg.Load(h.opt.Config); err != nil || kept.Volume.Target != "iqn.2026-01.example:duet" {
		t.Errorf("the volume didn't stay: %+v, %v", kept.Volume, err)
	}

	got, err := c.Unpair(ctx)
	if err != nil || got.Peer != "" || got.Code == "" {
		t.Errorf("unpaired: %+v, %v", got, err)
	}
	if kept, err := hostcfg.Load(h.opt.Config); err != nil || kept.Peer != nil || kept.Volume == nil || kept.Name != fresh.Name {
		t.Errorf("after unpairing: %+v, %v", kept, err)
	}
	if _, err := c.Unpair(ctx); err == nil || err.Error() != "host "+fresh.Name+" has no partner" {
		t.Errorf("unpaired again: %v", err)
	}
}

// TestRePaired has a VM whose guest runs: its process stays, is told of the new partner, and while it is in lockstep nobody
// else may become one.
func TestRePaired(t *testing.T) {
	h := newHost(t, goodConfig)
	h.format(t)
	h.join(t)
	d := h.startInstance(t)
	c, ctx := h.client(t, "s3cret"), deadline(t)
	h.eventually(t, "the volume is there", func() bool { _, err := c.VMs(ctx); return err == nil })
	for _, name := range []string{"db", "protected"} {
		if _, err := c.Create(ctx, definition(name, 256)); err != nil {
			t.Fatal(err)
		}
		h.eventually(t, name+" runs", func() bool { v, err := c.VM(ctx, name); return err == nil && v.Live })
	}
	if err := d.pin(side("c"), "eth1", nil); err == nil || !strings.Contains(err.Error(), "VM protected is in lockstep") {
		t.Errorf("another partner: %v", err)
	}
	if _, err := c.Unpair(ctx); err == nil || !strings.Contains(err.Error(), "VM protected is in lockstep") {
		t.Errorf("unpaired: %v", err)
	}
	if err := c.Delete(ctx, "protected"); err != nil {
		t.Fatal(err)
	}
	h.eventually(t, "its process is gone", func() bool { return len(d.fleet.list()) == 1 })
	before, err := c.VM(ctx, "db")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.pin(side("c"), "eth1", nil); err != nil {
		t.Fatal(err)
	}
	h.eventually(t, "the VM is told", func() bool { return h.count("vm db: told of the peer") == 1 })
	if after, err := c.VM(ctx, "db"); err != nil || after.Epoch != before.Epoch {
		t.Errorf("the process is another: %d, then %d, %v", before.Epoch, after.Epoch, err)
	}
}

// TestDamagedPairing starts with a pair.json that a power cut on a bad disk has left.
func TestDamagedPairing(t *testing.T) {
	h := newHost(t, goodConfig)
	if err := os.WriteFile(hostcfg.PairingPath(h.opt.Config), []byte(`{"name": "a", "pe`), 0o600); err != nil {
		t.Fatal(err)
	}
	h.start(t)
	c, ctx := h.client(t, "s3cret"), deadline(t)
	got, err := c.Host(ctx)
	if err != nil || got.Peer != "" || got.Code == "" || !strings.Contains(got.Trouble, "is damaged") || !strings.Contains(got.Trouble, "pair the hosts again") {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestProcessor(t *testing.T) {
	for _, c := range []struct {
		text string
		want Hardware
	}{
		{"", Hardware{}},
		{
			"processor\t: 0\nmodel name\t: AMD EPYC\nmicrocode\t: 0xa1\nflags\t\t: fpu svm npt\n\nprocessor\t: 1\nmodel name\t: other\n",
			Hardware{CPU: "AMD EPYC", Microcode: "0xa1", Virtual: "SVM", Nested: true},
		},
		{
			"model name\t: Intel\nflags\t\t: fpu vmx\nvmx flags\t: vnmi ept vpid\n",
			Hardware{CPU: "Intel", Virtual: "VMX", Nested: true},
		},
	} {
		if got := processor([]byte(c.text)); got != c.want {
			t.Errorf("%q: %+v, want %+v", c.text, got, c.want)
		}
	}
}
