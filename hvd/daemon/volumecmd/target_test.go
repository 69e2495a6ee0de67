package volumecmd

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/duet-ft/duet/image/target"
)

const secret = "secret-of-chap"

// TestBadTarget runs the command lines against a real target whose volume, or whose user, isn't what they need. Each
// fails in one line, and not a byte of the volume changes.
func TestBadTarget(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: no real target")
	}
	b := newBench(t)
	b.write("image", []byte("bytes"))
	targets, before := map[string]*target.Target{}, map[string][]byte{}
	for _, size := range []string{"64M", "8M"} {
		before[size] = extFS(t, b.path(size), size)
		tg, err := target.Start(t.Context(), target.Config{Dir: b.path("target" + size), File: b.path(size), User: "duet", Secret: secret})
		if errors.Is(err, target.ErrMissing) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(tg.Stop)
		targets[size] = tg
	}
	for _, c := range []struct {
		name, portal string // portal: instead of the target's
		size         string // of the volume, for mke2fs
		user         string // flags
		target       string // instead of the target's name
		lines        map[string]string
	}{
		{name: "somebody's data", size: "64M", user: "--user duet --secret " + secret, lines: map[string]string{
			"volume format FLAGS":              "the volume holds an ext2, ext3 or ext4 file system; it is never overwritten",
			"volume check FLAGS":               "the volume isn't formatted for Duet",
			"volume list FLAGS":                "volume is not formatted for Duet",
			"volume create FLAGS /db.json":     "volume is not formatted for Duet",
			"disk import FLAGS db root /image": "volume is not formatted for Duet",
		}},
		{name: "too small", size: "8M", user: "--user duet --secret " + secret, lines: map[string]string{
			"volume format FLAGS": "volume has 8388608 bytes; at least 64 MiB are needed",
		}},
		{name: "wrong password", size: "64M", user: "--user duet --secret not-the-secret", lines: map[string]string{
			"volume format FLAGS": "wrong CHAP user or password", "volume check FLAGS": "wrong CHAP user or password",
		}},
		{name: "no password", size: "64M", lines: map[string]string{
			"volume format FLAGS": "target wants a CHAP user and password, and none is given",
		}},
		{name: "wrong target", size: "64M", target: "iqn.2024-01.org.duet-ft:nobody", user: "--user duet --secret " + secret, lines: map[string]string{
			"volume format FLAGS": "no such target there (check the target's name)",
		}},
		{name: "wrong portal", size: "64M", portal: "127.0.0.1:1", user: "--user duet --secret " + secret, lines: map[string]string{
			"volume format FLAGS": "127.0.0.1:1 iqn.2024-01.org.duet-ft:volume: connect: connection refused",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tg := targets[c.size]
			portal, name := tg.Portal(), tg.IQN()
			if c.portal != "" {
				portal = c.portal
			}
			if c.target != "" {
				name = c.target
			}
			flags := fmt.Sprintf("--portal %s --target %s %s", portal, name, c.user)
			for command, line := range c.lines {
				b.fails(strings.Replace(command, "FLAGS", flags, 1), line)
			}
			if now, err := os.ReadFile(b.path(c.size)); err != nil || !bytes.Equal(now, before[c.size]) {
				t.Errorf("the volume was changed (%v)", err)
			}
		})
	}
}

// extFS makes a file system in a file, as somebody's data, and returns the file's content.
func extFS(t *testing.T, path, size string) []byte {
	t.Helper()
	out, err := exec.Command("mke2fs", "-q", "-t", "ext4", path, size).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("mke2fs is missing: install the package e2fsprogs")
	}
	if err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// TestGoodTarget runs the command lines against a target with everything that the flags can ask for.
func TestGoodTarget(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: no real target")
	}
	b := newBench(t)
	b.write("zeros", make([]byte, 1<<20))
	tg, err := target.Start(t.Context(), target.Config{
		Dir: b.path("target"), File: b.path("volume"), User: "duet", Secret: secret, OwnUser: "box", OwnSecret: "box-secret-12", Second: true,
	})
	if errors.Is(err, target.ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tg.Stop)
	b.ok("volume discover --portal "+tg.Portal(), tg.IQN())
	b.fails("volume discover --portal 127.0.0.1:1", "connection refused")
	b.fails("volume discover --portal "+tg.Portal()+" --target x", "no --target")
	t.Setenv("DUET_TARGET_SECRET", "box-secret-12")
	login := fmt.Sprintf(" --target %s --user duet --secret %s --target-user box --digests", tg.IQN(), secret)
	flags := " --portal " + tg.Portal() + login
	b.ok("volume format"+flags, "is ready")
	b.ok("volume check"+flags, "a pair can work with this volume")
	// The first portal is dead: the second one does.
	b.ok("volume check --portal 127.0.0.1:1 --portal2 "+tg.SecondPortal()+login, "a pair can work with this volume")
	b.fails("volume check --portal "+tg.Portal()+" --portal2 "+tg.Portal()+login, "both portals")
	b.fails("volume check"+strings.Replace(flags, "--target-user box", "--target-user fox", 1), "doesn't prove that it is the right one")
	b.ok("volume create"+flags+" /db.json", "VM db is defined")
	// Twice, so that zeros overwrite what was there.
	b.write("ones", bytes.Repeat([]byte{1}, 1<<20))
	b.ok("disk import"+flags+" db root /ones", "")
	b.ok("disk import"+flags+" db root /zeros", "")
	if now, err := os.ReadFile(b.path("volume")); err != nil || bytes.Count(now, []byte{1, 1, 1, 1, 1, 1, 1, 1}) > 0 {
		t.Errorf("the image's zeros aren't on the disk (%v)", err)
	}
}
