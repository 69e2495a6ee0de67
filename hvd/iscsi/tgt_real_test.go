package iscsi

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startTgt runs Debian's other target, tgt, which somebody else wrote and which
// can do less. Its daemon needs root.
func startTgt(t *testing.T, user, secret string) Config {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: no real target")
	}
	for _, tool := range []string{"/usr/sbin/tgtd", "/usr/sbin/tgtadm"} {
		if _, err := os.Stat(tool); err != nil {
			t.Skip("tgt is missing: apt-get install tgt")
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("tgtd needs root")
	}
	dir := t.TempDir()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	portal := ln.Addr().String()
	ln.Close()
	image := filepath.Join(dir, "volume.img")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 64<<20); err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "TGT_IPC_SOCKET="+filepath.Join(dir, "ipc"))
	d := exec.Command("/usr/sbin/tgtd", "-f", "-C", "77", "--iscsi", "portal="+portal)
	d.Env = env
	var log bytes.Buffer
	d.Stdout, d.Stderr = &log, &log
	d.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.Process.Kill()
		_ = d.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	configureTgt(t, env, image, user, secret)
	return Config{
		Portal: portal, Target: tgtName, LUN: 1, Initiator: "iqn.2024-01.org.duet-ft:a", User: user, Secret: secret,
		Timeout: 5 * time.Second,
	}
}

const tgtName = "iqn.2024-01.org.duet-ft:tgt"

// configureTgt waits for tgtd and tells it what to serve.
func configureTgt(t *testing.T, env []string, image, user, secret string) {
	t.Helper()
	adm := func(args string) error {
		c := exec.Command("/usr/sbin/tgtadm", append([]string{"-C", "77", "--lld", "iscsi"}, strings.Fields(args)...)...)
		c.Env = env
		out, err := c.CombinedOutput()
		if err != nil {
			return fmt.Errorf("tgtadm %s: %w: %s", args, err, out)
		}
		return nil
	}
	var first error
	end := time.Now().Add(10 * time.Second)
	waitFor(t, func() bool {
		first = adm("--op new --mode target --tid 1 -T " + tgtName)
		return first == nil || time.Now().After(end)
	})
	if first != nil {
		t.Skipf("tgtd doesn't start here: %v", first)
	}
	steps := []string{
		"--op new --mode logicalunit --tid 1 --lun 1 -b " + image,
		"--op bind --mode target --tid 1 -I ALL",
	}
	if user != "" {
		steps = append(
			steps, "--op new --mode account --user "+user+" --password "+secret,
			"--op bind --mode account --tid 1 --user "+user,
		)
	}
	for _, s := range steps {
		if err := adm(s); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTgt(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	cfg := startTgt(t, "duet", testSecret)
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
	if _, err := a.CompareAndWrite(ctx, 9, block, block); !errors.Is(err, ErrUnsupported) {
		t.Errorf("COMPARE AND WRITE: %v", err)
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
