package iscsi

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/duet-ft/duet/image/target"
)

// startTgt runs Debian's other target, tgt, which somebody else wrote and which
// can do less, or skips the test.
func startTgt(t *testing.T, cfg target.Config) *target.Target {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: no real target")
	}
	cfg.Dir = t.TempDir()
	cfg.Size = 64 << 20
	tg, err := target.StartTgt(t.Context(), cfg)
	if errors.Is(err, target.ErrTgtMissing) || errors.Is(err, target.ErrNotRoot) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		tg.Stop()
		if t.Failed() {
			tg.Log(os.Stderr)
		}
	})
	return tg
}

func TestTgt(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	cfg := testConfig(startTgt(t, target.Config{User: "duet", Secret: testSecret}), "a")
	cfg.User, cfg.Secret = "duet", testSecret
	bad := cfg
	bad.Secret = "battery-staple"
	if _, err := Dial(ctx, bad); !errors.Is(err, ErrAuth) {
		t.Errorf("wrong secret: %v", err)
	}
	cfg.HeaderDigest, cfg.DataDigest = true, true
	a := dialTest(t, cfg)
	cfg.Initiator = "iqn.2024-01.org.duet-ft:b"
	cfg.HeaderDigest, cfg.DataDigest = false, false
	b := dialTest(t, cfg)
	t.Logf("%+v %+v %+v", a.Inquiry(), a.unit.limits, a.cur.p)
	hammer(t, a, 0, 4<<20, 1)
	mustDo(t, "sync", a.Sync(ctx))
	block := make([]byte, 512)
	_, err := a.CompareAndWrite(ctx, 9, block, block)
	want := "the target is a IET VIRTUAL-DISK; it has no COMPARE AND WRITE, by which two hosts decide who runs a VM"
	if !errors.Is(err, ErrUnsupported) || !errors.Is(err, ErrNoCompareAndWrite) || !strings.Contains(err.Error(), want) {
		t.Errorf("COMPARE AND WRITE: %v", err)
	}
	if f, err := a.Features(ctx); err != nil || f.CompareAndWrite != No || f.Reservations != Yes {
		t.Errorf("%+v %v", f, err)
	}
	mustDo(t, "join a", a.Join(ctx))
	if err := b.Write(ctx, 0, block); !errors.Is(err, ErrReservationConflict) {
		t.Errorf("unregistered write: %v", err)
	}
	mustDo(t, "join b", b.Join(ctx))
	mustDo(t, "write b", b.Write(ctx, 0, block))
	list, _, err := b.Registrations(ctx)
	t.Logf("registrations: %+v %v", list, err)
	mustDo(t, "fence a", b.Fence(ctx, a.Port()))
	if err := a.Write(ctx, 0, block); !errors.Is(err, ErrReservationConflict) {
		t.Errorf("fenced write: %v", err)
	}
	mustDo(t, "survivor's write", b.Write(ctx, 0, block))
}
