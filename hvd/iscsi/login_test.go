package iscsi

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestMutualCHAP: a target has to know the secret that it was given, or nothing
// is read from it.
func TestMutualCHAP(t *testing.T) {
	for _, c := range []struct {
		name string
		set  func(f *fakeTarget, cfg *Config)
		want string
		is   error
	}{
		{"right", func(*fakeTarget, *Config) {}, "", nil},
		{"any name", func(_ *fakeTarget, cfg *Config) { cfg.TargetUser = "" }, "", nil},
		{"another password", func(f *fakeTarget, _ *Config) { f.ownSecret = "another-one-12" }, "its password is another one", ErrImpostor},
		{"another name", func(f *fakeTarget, _ *Config) { f.ownUser = "else" }, `calls itself "else"`, ErrImpostor},
		{"no answer", func(f *fakeTarget, _ *Config) { f.ownSecret = "" }, "is mutual CHAP set up there?", ErrImpostor},
		{"no authentication", func(f *fakeTarget, _ *Config) { f.user = "" }, "it wants no authentication", ErrImpostor},
		{"our password", func(_ *fakeTarget, cfg *Config) { cfg.Secret = "another-one-12" }, "wrong CHAP user or password", ErrAuth},
		{"same secret", func(_ *fakeTarget, cfg *Config) { cfg.TargetSecret = cfg.Secret }, "must differ", nil},
		{"target's user alone", func(_ *fakeTarget, cfg *Config) { cfg.TargetSecret = "" }, "its password isn't", nil},
		{"target's side alone", func(_ *fakeTarget, cfg *Config) { cfg.User = "" }, "only where a CHAP user", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t)
			f.user, f.secret, f.ownUser, f.ownSecret = "duet", testSecret, "box", "correct-horse-2"
			cfg := f.config()
			cfg.User, cfg.Secret, cfg.TargetUser, cfg.TargetSecret = "duet", testSecret, "box", "correct-horse-2"
			c.set(f, &cfg)
			s, err := Dial(t.Context(), cfg)
			if err == nil {
				s.Close()
			}
			switch {
			case c.want == "" && err != nil:
				t.Fatal(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n")):
				t.Fatalf("got %v, want one line with %q", err, c.want)
			case c.is != nil && !errors.Is(err, c.is):
				t.Errorf("%v is not %v", err, c.is)
			case c.want != "" && f.counted(scsiTestUnitReady) != 0:
				t.Error("a command was sent all the same")
			}
		})
	}
}

func TestInsistOnDigests(t *testing.T) {
	f := newFake(t)
	cfg := f.config()
	cfg.HeaderDigest, cfg.DataDigest, cfg.InsistOnDigests = true, true, true
	if _, err := Dial(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "doesn't do the CRC32C digests") {
		t.Errorf("without digests: %v", err)
	}
	f = newFake(t)
	f.digests = true
	cfg.Portal = f.ln.Addr().String()
	if p := dialTest(t, cfg).cur.p; !p.headerDigest || !p.dataDigest {
		t.Errorf("negotiated %+v", p)
	}
}

// TestTwoPortals: what one portal can't do any more goes on by the other one.
func TestTwoPortals(t *testing.T) {
	f := newFake(t)
	cfg := f.config()
	cfg.Second = f.second().Addr().String()
	var dark atomic.Bool // the first portal swallows everything
	var tried atomic.Int32
	cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr == cfg.Portal && dark.Load() {
			tried.Add(1)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	s := dialTest(t, cfg)
	block := make([]byte, 512)
	mustDo(t, "write by the first portal", s.Write(t.Context(), 0, block))
	for i, want := range []string{cfg.Second, cfg.Portal, cfg.Second, cfg.Second} {
		dark.Store(i >= 2)
		start := time.Now()
		f.dropAll()
		waitFor(t, func() bool { return s.Err() != nil || s.Logins() == uint64(i+2) })
		mustDo(t, "write by the other portal", s.Write(t.Context(), 0, block))
		if got := s.usedPortal(); got != want || s.Logins() != uint64(i+2) {
			t.Fatalf("round %d: %d logins, now by %s; want %s", i, s.Logins(), got, want)
		}
		if took := time.Since(start); took > cfg.Timeout {
			t.Errorf("round %d: took %v", i, took)
		}
	}
	if tried.Load() == 0 {
		t.Error("the dark portal was never tried")
	}
	s.Close()
	mustDo(t, "first login by the second portal", dialTest(t, cfg).Write(t.Context(), 0, block))
}

// TestOtherPortalGroup: a portal of another group leads to another I_T nexus, on
// which commands of the old one would go on. It isn't used.
func TestOtherPortalGroup(t *testing.T) {
	f := newFake(t)
	cfg := f.config()
	cfg.MaxOffline = 300 * time.Millisecond
	other := newFake(t)
	other.group = 2
	cfg.Second = other.ln.Addr().String()
	s := dialTest(t, cfg)
	f.ln.Close()
	f.dropAll()
	err := s.Write(t.Context(), 0, make([]byte, 512))
	if !errors.Is(err, ErrOffline) || !strings.Contains(err.Error(), "is of the target's portal group 2, the other one of 1") {
		t.Errorf("got %v", err)
	}
	if n := other.counted(scsiTestUnitReady); n != 0 {
		t.Errorf("%d commands went to the other group", n)
	}
	cfg.Second = cfg.Portal
	if _, err := Dial(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "both portals") {
		t.Errorf("the same portal twice: %v", err)
	}
}

func TestSameGroup(t *testing.T) {
	const unknown = unknownGroup
	for _, c := range []struct {
		first, group, portal int
		ok                   bool
	}{
		{1, 1, 0, true},
		{1, 1, 1, true},
		{1, 2, 0, false},
		{1, 2, 1, false},
		{1, unknown, 1, false},
		{unknown, unknown, 0, true},
		{unknown, unknown, 1, false},
		{unknown, 1, 0, true},
	} {
		s := &Session{cfg: Config{Portal: "a:1", Second: "b:1"}, logins: 1, group: c.first}
		if err := s.sameGroup(c.group, c.portal); (err == nil) != c.ok {
			t.Errorf("first login in group %d, then portal %d in group %d: %v", c.first, c.portal, c.group, err)
		}
	}
}

func TestDiscover(t *testing.T) {
	f := newFake(t)
	f.user, f.secret = "duet", testSecret
	cfg := f.config()
	cfg.Target = ""
	if _, err := Discover(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "wants a CHAP user") {
		t.Errorf("without a password: %v", err)
	}
	cfg.User, cfg.Secret = "duet", testSecret
	got, err := Discover(t.Context(), cfg)
	want := []Found{
		{"iqn.test:t", []FoundPortal{{cfg.Portal, 1}, {"[2001:db8::1]:3261", 2}}},
		{"iqn.test:u", []FoundPortal{{cfg.Portal, 1}}},
	}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v %s", err, d)
	}
}

func TestParseTargets(t *testing.T) {
	for in, want := range map[string]string{
		"TargetAddress=h:1,1\x00":                          "begins with an address",
		"TargetName=iqn.a\x00TargetAddress=h:1\x00":        "has no portal group",
		"TargetName=a b\x00":                               "holds ' '",
		"TargetName":                                       "isn't closed",
		strings.Repeat("TargetName=iqn.a\x00", maxFound+1): "more than 1024 targets",
		"TargetName=iqn.a\x00" + strings.Repeat("TargetAddress=h:1,1\x00", maxFoundPortals+1): "more than 64 portals",
	} {
		if _, err := parseTargets([]byte(in), "h:1"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", in, err, want)
		}
	}
}

func TestTargetAddress(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1:3261,1": "192.0.2.1:3261", "192.0.2.1": "192.0.2.1:3260", "192.0.2.1,1": "192.0.2.1:3260",
		"[2001:db8::1]:3261,1": "[2001:db8::1]:3261", "[2001:db8::1],2": "[2001:db8::1]:3260", "store.example:3260": "store.example:3260",
	} {
		if got := targetAddress(in); got != want {
			t.Errorf("%s became %s, want %s", in, got, want)
		}
	}
}
