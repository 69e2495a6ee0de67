package boottest

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/ftlink/session"
	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/image/lab"
)

// screen is what a host shows of itself to whoever stands before it.
type screen struct{ name, fingerprint, token, code string }

// readScreen reads the serial console until all is on it.
func readScreen(t *testing.T, h *lab.Host) (s screen) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	log := h.Machine().Console()
	for what, into := range map[string]*string{
		`Duet host (duet-[0-9a-f]{6}), version `:                  &s.name,
		`^ +fingerprint +([0-9a-f]{64})`:                          &s.fingerprint,
		`^ +token +([0-9a-z]{26})`:                                &s.token,
		`^ +pairing code +([0-9]{4}-[0-9]{4}), until `:            &s.code,
		`^ +API +https://` + regexp.QuoteMeta(h.IP()) + `:(7443)`: new(string),
	} {
		re := regexp.MustCompile(what)
		line, err := log.Wait(ctx, re, 0)
		if err != nil {
			t.Fatalf("console of host %s: %v", h.Name(), err)
		}
		*into = re.FindStringSubmatch(line)[1]
	}
	return s
}

// client talks to a host as its screen says.
func (s screen) client(t *testing.T, l *lab.Lab, h *lab.Host) *api.Client {
	c := api.Dial(api.Config{
		Address: h.IP(), Token: s.token, Fingerprint: s.fingerprint,
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) { return l.Net.Dial(ctx, address) },
	})
	t.Cleanup(c.Close)
	return c
}

// TestPairing makes a pair of two hosts that were just flashed: nothing is on their /perm. All that the test knows it reads
// off their serial consoles.
func TestPairing(t *testing.T) {
	l := start(t)
	cable, err := l.NewCable("direct")
	if err != nil {
		t.Fatal(err)
	}
	a := boot(t, l, lab.HostConfig{Name: "a", Number: 11, Core: 0, Direct: cable.A})
	b := boot(t, l, lab.HostConfig{Name: "b", Number: 12, Core: 1, Direct: cable.B})
	onA, onB := readScreen(t, a), readScreen(t, b)
	if onA.name == onB.name || onA.token == onB.token {
		t.Fatalf("two hosts of one image have the same name or token: %+v, %+v", onA, onB)
	}
	ca, cb := onA.client(t, l, a), onB.client(t, l, b)
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	waitHost := func(what string, c *api.Client, ok func(api.Host) bool) (h api.Host) {
		t.Helper()
		eventually(t, what, func() bool {
			var err error
			h, err = c.Host(ctx)
			return err == nil && ok(h)
		})
		return h
	}
	waitHost("b hears a on the cable", cb, func(h api.Host) bool {
		return len(h.Heard) == 1 && h.Heard[0] == api.Heard{Name: onA.name, NIC: "eth1", Shows: true}
	})

	// A wrong code burns the one that is shown.
	wrong := "0000-0000"
	if onA.code == wrong {
		wrong = "0000-0001"
	}
	if _, err := cb.Pair(ctx, wrong); err == nil || !strings.Contains(err.Error(), "the pairing code is wrong") {
		t.Errorf("a wrong code: %v", err)
	}
	code := waitHost("a shows another code", ca, func(h api.Host) bool { return h.Code != "" && h.Code != onA.code }).Code
	if _, err := cb.Pair(ctx, onA.code); err == nil {
		t.Error("a code that was burnt was accepted")
	}
	code = waitHost("a shows yet another code", ca, func(h api.Host) bool { return h.Code != "" && h.Code != code }).Code

	begin := time.Now()
	if h, err := cb.Pair(ctx, code); err != nil || h.Peer != onA.name {
		t.Fatalf("pairing: %+v, %v", h, err)
	}
	inSession := func(peer string) func(api.Host) bool {
		return func(h api.Host) bool { return h.Peer == peer && h.Session == "ok" && h.Code == "" }
	}
	waitHost("b is in session with a", cb, inSession(onA.name))
	waitHost("a is in session with b", ca, inSession(onB.name))
	t.Logf("paired, and in session after %v", time.Since(begin).Round(time.Millisecond))

	// Neither takes another partner while they are a pair.
	if _, err := ca.ShowCode(ctx); err == nil || !strings.Contains(err.Error(), "has a partner, host "+onB.name+", which is alive") {
		t.Errorf("a code while the partner lives: %v", err)
	}
	checkPair(t, ctx, ca, onB.name)

	// The keys survive a power cut of one of them.
	from := b.Log().Now()
	if err := b.Kill(); err != nil {
		t.Fatal(err)
	}
	waitHost("a misses b", ca, func(h api.Host) bool { return h.Peer == onB.name && h.Session != "ok" })
	if err := b.Boot(); err != nil {
		t.Fatal(err)
	}
	line, err := b.WaitLog(regexp.MustCompile(`hvd: .*in session with host `+onA.name+`, key fingerprint `), from, bootTimeout)
	if err != nil {
		t.Fatal(err)
	}
	if want := fingerprint16(t, ca, ctx); !strings.HasSuffix(line, want) {
		t.Errorf("after the power cut: %s, want a's fingerprint %s", line, want)
	}
	waitHost("a is in session again", ca, inSession(onB.name))

	if _, err := ca.Unpair(ctx); err != nil {
		t.Fatal(err)
	}
	waitHost("a has no partner and shows a code", ca, func(h api.Host) bool { return h.Peer == "" && h.Code != "" })
	waitHost("b has lost its session", cb, func(h api.Host) bool { return h.Session != "ok" && h.Session != "" })
}

// checkPair expects the host's check to find the partner, and the NICs' uses.
func checkPair(t *testing.T, ctx context.Context, c *api.Client, partner string) {
	t.Helper()
	list, err := c.Check(ctx)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]api.Finding{}
	for _, f := range list {
		t.Logf("%s\t%s\t%s", f.What, f.Grade, f.Line)
		found[f.What] = f
	}
	for what, want := range map[string]string{
		"partner": partner + ", in session", "NIC eth0": "management network, 192.168.127.", "NIC eth1": "direct link, MTU 9000",
		"CPU": "with SVM and nested page tables", "KVM": "can be used", "/perm": "free", "locator": "trap: no pmu",
	} {
		if f := found[what]; f.Grade != api.Fine || !strings.Contains(f.Line, want) {
			t.Errorf("%s: %+v, want %q", what, f, want)
		}
	}
	if f := found["volume"]; f.Grade != api.Missing || !strings.Contains(f.Line, "host.json names none") {
		t.Errorf("volume: %+v", f)
	}
}

// fingerprint16 is the short form of a host's key, as the session has it.
func fingerprint16(t *testing.T, c *api.Client, ctx context.Context) string {
	t.Helper()
	h, err := c.Host(ctx)
	if err != nil {
		t.Fatal(err)
	}
	key, err := hex.DecodeString(h.Key)
	if err != nil || len(key) != ed25519.PublicKeySize {
		t.Fatalf("the key of host %s is %q", h.Name, h.Key)
	}
	return session.Fingerprint(key)
}
