package daemon

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/duet-ft/duet/hvd/daemon/define"
	"github.com/duet-ft/duet/hvd/hostcfg"
	"github.com/duet-ft/duet/hvd/iscsi"
	"github.com/duet-ft/duet/hvd/nexus"
	"github.com/duet-ft/duet/hvd/volume"
	"github.com/duet-ft/duet/image/target"
)

const (
	targetUser   = "duet"
	targetSecret = "secret-of-chap"
)

// startTarget serves a file by a real target.
func startTarget(t *testing.T, file string, size int64) *target.Target {
	t.Helper()
	tg, err := target.Start(t.Context(), target.Config{Dir: t.TempDir(), File: file, Size: size, User: targetUser, Secret: targetSecret})
	if errors.Is(err, target.ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tg.Stop)
	return tg
}

// sum is a file's SHA-256.
func sum(t *testing.T, path string) (s [sha256.Size]byte) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	copy(s[:], h.Sum(nil))
	return s
}

// somebodys makes a file of 64 MiB with a file system in it.
func somebodys(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "thesis.img")
	out, err := exec.Command("mke2fs", "-q", "-t", "ext4", path, "64M").CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("mke2fs is missing: install the package e2fsprogs")
	}
	if err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	return path
}

// stranger is a server that isn't an iSCSI target.
func stranger(t *testing.T, greeting string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, greeting)
			c.Close()
		}
	}()
	return l.Addr().String()
}

// TestBadTarget gives the daemon volumes that it can't use, on a real target. It must say so in one line, once, go on
// serving its API, and leave each byte as it was.
func TestBadTarget(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: no real target")
	}
	thesis, small := somebodys(t), filepath.Join(t.TempDir(), "small.img")
	good, tiny := startTarget(t, thesis, 0), startTarget(t, small, 1<<20)
	before := sum(t, thesis)
	for _, c := range []struct {
		name  string
		wrong func(*hostcfg.Volume)
		line  string
	}{
		{"nobody at the portal", func(v *hostcfg.Volume) { v.Portal = closedPort(t) }, "connection refused"},
		{"another server at the portal", func(v *hostcfg.Volume) { v.Portal = stranger(t, "SSH-2.0-OpenSSH_9.2\r\n"+strings.Repeat(" ", 64)) }, "no iSCSI target there"},
		{"another target's name", func(v *hostcfg.Volume) { v.Target += "x" }, "no such target there (check the target's name)"},
		{"another LUN", func(v *hostcfg.Volume) { v.LUN = 7 }, "no such logical unit (LUN)"},
		{"wrong password", func(v *hostcfg.Volume) { v.Secret = "another-secret" }, "wrong CHAP user or password"},
		{"wrong user", func(v *hostcfg.Volume) { v.User = "root" }, "wrong CHAP user or password"},
		{"no password", func(v *hostcfg.Volume) { v.User, v.Secret = "", "" }, "wants a CHAP user and password, and none is given"},
		{"target without mutual CHAP", func(v *hostcfg.Volume) { v.TargetUser, v.TargetSecret = "box", "another-secret" }, "or the target isn't set up for mutual CHAP"},
		{"both portals dead", func(v *hostcfg.Volume) { v.Portal, v.Portal2 = closedPort(t), closedPort(t) }, "and by its second portal"},
		{"too small", func(v *hostcfg.Volume) { v.Portal = tiny.Portal() }, "volume has 1048576 bytes; at least 64 MiB are needed"},
		{"somebody's data", func(*hostcfg.Volume) {}, "the volume holds an ext2, ext3 or ext4 file system; it is never overwritten"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := hostcfg.Volume{Portal: good.Portal(), Target: good.IQN(), User: targetUser, Secret: targetSecret}
			c.wrong(&v)
			b, err := json.Marshal(hostcfg.Config{Name: "a", Token: "s3cret", Volume: &v})
			if err != nil {
				t.Fatal(err)
			}
			h := newHost(t, string(b))
			h.opt.Open = login
			h.start(t)
			client, ctx := h.client(t, "s3cret"), deadline(t)
			var line string
			h.eventually(t, "the state says what is wrong", func() bool {
				s, err := client.Host(ctx)
				line = s.Volume
				return err == nil && strings.HasPrefix(line, "no volume: ") && h.count(line) > 0
			})
			if !strings.Contains(line, c.line) || strings.Contains(line, "\n") || v.Secret != "" && strings.Contains(line, v.Secret) {
				t.Errorf("the line is %q, want %q in it", line, c.line)
			}
			if n := h.count(line); n != 1 {
				t.Errorf("the line is %d times in the log: %q", n, line)
			}
			if _, err := client.Create(ctx, definition("db", 64)); err == nil || err.Error() != line {
				t.Errorf("a VM was made there: %v", err)
			}
		})
	}
	if sum(t, thesis) != before {
		t.Error("somebody's data was changed")
	}
	if b, err := os.ReadFile(small); err != nil || strings.Trim(string(b), "\x00") != "" {
		t.Errorf("the small volume was written to (%v)", err)
	}
}

// TestShutOut shuts keepers out of a real target's volume: a host's daemon and one run of the volume commands, and neither the
// host's VMs nor another run.
func TestShutOut(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: no real target")
	}
	tg, ctx := startTarget(t, "", 64<<20), deadline(t)
	dial := func(initiator string, isid [6]byte) *iscsi.Session {
		s, err := iscsi.Dial(ctx, iscsi.Config{
			Portal: tg.Portal(), Target: tg.IQN(), User: targetUser, Secret: targetSecret, Initiator: initiator, ISID: isid,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		if err := s.Join(ctx); err != nil {
			t.Fatal(err)
		}
		return s
	}
	tool := nexus.Initiator(nexus.Tool + "b")
	own := dial(nexus.Initiator("a"), nexus.ISID(nexus.Daemon))
	daemon, vm := dial(nexus.Initiator("b"), nexus.ISID(nexus.Daemon)), dial(nexus.Initiator("b"), nexus.ISID(0))
	one, other := dial(tool, [6]byte{0x80, 1}), dial(tool, [6]byte{0x80, 2})
	for _, k := range []define.Keeper{define.Keeper(nexus.Initiator("b")), define.SessionKeeper(tool, [6]byte{0x80, 1}), "nobody"} {
		if err := shutOut(ctx, own, "b", k.ID()); err != nil {
			t.Errorf("%s: %v", k, err)
		}
	}
	block := make([]byte, 512)
	for name, c := range map[string]struct {
		s   *iscsi.Session
		out bool
	}{"the own daemon": {own, false}, "the daemon": {daemon, true}, "a VM": {vm, false}, "the run": {one, true}, "another run": {other, false}} {
		if err := c.s.Write(ctx, 9, block); errors.Is(err, iscsi.ErrReservationConflict) != c.out || !c.out && err != nil {
			t.Errorf("%s writes: %v", name, err)
		}
	}
}

// TestDisksOnTarget makes, fills and reads a disk on a real target, and has the volume checked.
func TestDisksOnTarget(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: no real target")
	}
	tg, ctx := startTarget(t, "", 128<<20), deadline(t)
	s, err := iscsi.Dial(ctx, iscsi.Config{
		Portal: tg.Portal(), Target: tg.IQN(), User: targetUser, Secret: targetSecret, Initiator: nexus.Initiator("format"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(volume.Format(ctx, s), s.Close()); err != nil {
		t.Fatal(err)
	}
	cfg, err := json.Marshal(hostcfg.Config{Name: "a", Token: "s3cret", Volume: &hostcfg.Volume{
		Portal: tg.Portal(), Target: tg.IQN(), User: targetUser, Secret: targetSecret,
	}})
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(t, string(cfg))
	h.opt.Open = login
	h.start(t)
	c := h.client(t, "s3cret")
	h.eventually(t, "the volume is there", func() bool { s, err := c.Host(ctx); return err == nil && s.Volume == "ok" })
	if _, err := c.Create(ctx, definition("db", 64)); err != nil {
		t.Fatal(err)
	}
	if d := h.ready(t, c, "db", "root"); d.State != "ready" {
		t.Errorf("a new disk is %+v", d)
	}
	if _, err := c.GrowDisk(ctx, "db", "root", 40<<20); err != nil {
		t.Error(err)
	}
	h.ready(t, c, "db", "root")
	image := bytes.Repeat([]byte("0123456789abcdef"), 2<<20)
	if err := c.ImportDisk(ctx, "db", "root", bytes.NewReader(image)); err != nil {
		t.Fatal(err)
	}
	if got := export(t, c, "db", "root"); !bytes.Equal(got, append(image, make([]byte, 8<<20)...)) {
		t.Errorf("the disk of %d bytes holds something else", len(got))
	}
	r, err := c.Volume(ctx)
	rows := map[string]string{}
	for _, row := range r.Rows {
		rows[row.Name] = row.Value
	}
	if err != nil || !r.OK || rows["COMPARE AND WRITE"] != "yes" || rows["VM db"] != "stopped" || rows["partition 2"] != "duet:db:root, 40 MiB" {
		t.Errorf("report %+v, %v", r, err)
	}
}

// TestTargetWithoutCompareAndWrite expects that a host refuses a target that can't decide between two hosts, tgt, and
// says what it lacks, also where the volume was made elsewhere.
func TestTargetWithoutCompareAndWrite(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: no real target")
	}
	file := filepath.Join(t.TempDir(), "volume.img")
	tg, err := target.StartTgt(t.Context(), target.Config{Dir: t.TempDir(), File: file, Size: 64 << 20})
	if errors.Is(err, target.ErrTgtMissing) || errors.Is(err, target.ErrNotRoot) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tg.Kill)
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	blocks, err := volume.NewFile(f, 512)
	if err != nil {
		t.Fatal(err)
	}
	if err := volume.Format(t.Context(), blocks); err != nil {
		t.Fatal(err)
	}
	v := hostcfg.Volume{Portal: tg.Portal(), Target: tg.IQN(), LUN: tg.LUN()}
	b, err := json.Marshal(hostcfg.Config{Name: "a", Token: "s3cret", Volume: &v})
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(t, string(b))
	h.opt.Open = login
	h.start(t)
	client, ctx := h.client(t, "s3cret"), deadline(t)
	h.eventually(t, "the state says what the target lacks", func() bool {
		s, err := client.Host(ctx)
		return err == nil && strings.Contains(s.Volume, "the target is a IET VIRTUAL-DISK; it has no COMPARE AND WRITE")
	})
}
