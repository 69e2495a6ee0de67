package target

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func startOrSkip(t *testing.T, cfg Config) *Target {
	t.Helper()
	tg, err := Start(t.Context(), cfg)
	if errors.Is(err, ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tg.Kill)
	return tg
}

// connects says whether something listens on the portal.
func connects(portal string) bool {
	c, err := net.Dial("tcp", portal)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

func TestLifeCycle(t *testing.T) {
	tg := startOrSkip(t, Config{Dir: t.TempDir(), Size: 8 << 20, User: "duet", Secret: "123456789012"})
	st, err := os.Stat(filepath.Join(tg.cfg.Dir, "volume.img"))
	if err != nil || st.Size() != 8<<20 {
		t.Errorf("volume: %v", err)
	}
	next, err := tg.Restart(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer next.Kill()
	if next.Portal() != tg.Portal() || !connects(next.Portal()) {
		t.Errorf("restarted on %s instead of %s", next.Portal(), tg.Portal())
	}
	next.Stop()
	<-next.Done()
	if connects(next.Portal()) {
		t.Error("stopped, and takes connections")
	}
	next.Stop() // does nothing
	var log strings.Builder
	if err := next.Log(&log); err != nil || !strings.Contains(log.String(), "istgt version") {
		t.Errorf("log %q, %v", log.String(), err)
	}
}

func TestTwoTargets(t *testing.T) {
	a := startOrSkip(t, Config{Dir: t.TempDir(), Size: 1 << 20})
	b := startOrSkip(t, Config{Dir: t.TempDir(), Size: 1 << 20})
	if a.Portal() == b.Portal() {
		t.Error("same portal")
	}
	if _, err := Start(t.Context(), Config{Dir: t.TempDir(), Size: 1 << 20, Port: a.Port()}); err == nil {
		t.Error("a second target on the same port")
	}
}

func TestBadConfig(t *testing.T) {
	for want, cfg := range map[string]Config{
		"needs a directory":            {},
		"12 to 16 characters":          {Dir: t.TempDir(), Size: 1 << 20, User: "u", Secret: "short"},
		"expected a multiple of 1 MiB": {Dir: t.TempDir(), Size: 5},
		"mutual CHAP needs":            {Dir: t.TempDir(), Size: 1 << 20, OwnUser: "u", OwnSecret: "123456789012"},
		"can't hold":                   {Dir: t.TempDir(), Size: 1 << 20, User: "a\"b", Secret: "123456789012"},
	} {
		if _, err := cfg.complete(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if _, err := Find(); err != nil && err.Error() != "istgt is missing: apt-get install istgt" {
		t.Errorf("missing istgt: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(ctx, Config{Dir: dir, Size: 1 << 20}); err == nil {
		t.Error("start with a cancelled context")
	}
}

func TestTgt(t *testing.T) {
	tg, err := StartTgt(t.Context(), Config{Dir: t.TempDir(), Size: 1 << 20, Second: true, User: "u", Secret: "123456789012"})
	if errors.Is(err, ErrTgtMissing) || errors.Is(err, ErrNotRoot) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if !connects(tg.Portal()) || !connects(tg.SecondPortal()) || tg.Portal() == tg.SecondPortal() {
		t.Errorf("portals %s and %s", tg.Portal(), tg.SecondPortal())
	}
	next, err := tg.Restart(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if next.Portal() != tg.Portal() || next.SecondPortal() != tg.SecondPortal() || !connects(next.SecondPortal()) {
		t.Error("restarted elsewhere")
	}
	next.Stop()
	if connects(next.Portal()) {
		t.Error("stopped, and takes connections")
	}
}
