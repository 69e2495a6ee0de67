package guest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestBuild makes the image, or finds it in the cache. It is slow the first
// time, and needs a package mirror, so it has to be asked for.
func TestBuild(t *testing.T) {
	if os.Getenv("DUET_TEST_GUEST_BUILD") == "" {
		t.Skip("DUET_TEST_GUEST_BUILD isn't set: building a guest takes a package mirror and minutes")
	}
	if err := missing(); err != nil {
		t.Skip(err)
	}
	path, err := Build(context.Background(), "", func(line string) { t.Log(line) })
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() != SizeMiB<<20 {
		t.Errorf("%s has %d bytes", path, info.Size())
	}
	again, err := Build(context.Background(), "", func(line string) { t.Errorf("built anew: %s", line) })
	if err != nil || again != path {
		t.Errorf("the second time: %s, %v", again, err)
	}
	t.Log(path)
}

func TestSourcesAreTheHostsOwn(t *testing.T) {
	root := t.TempDir()
	put := func(name, text string) {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("etc/os-release", "ID=debian\nVERSION_CODENAME=bookworm\n")
	put("etc/apt/sources.list", "# comment\ndeb [arch=amd64 signed-by=/k] http://mirror.example/debian bookworm main contrib # x\n"+
		"deb-src http://mirror.example/debian bookworm main\ndeb http://vendor.example/apt bookworm stable\n")
	put("etc/apt/sources.list.d/debian.sources", "Types: deb deb-src\nURIs: http://mirror.example/debian\n"+
		"# Suites: other\nSuites: bookworm-updates\n bookworm-backports\nComponents: main\n\n"+
		"Types: deb\nURIs: http://security.example/\nSuites: bookworm-security\nComponents: main\nEnabled: no\n")
	put("etc/apt/sources.list.d/vendor.list", "deb http://vendor.example bookworm-vendor main\n")
	put("etc/apt/sources.list.d/off.list.disabled", "deb http://off.example bookworm main\n")
	got, err := aptSources(root)
	if err != nil {
		t.Fatal(err)
	}
	want := "deb http://mirror.example/debian bookworm main\ndeb http://mirror.example/debian bookworm-updates main\n"
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	put("etc/os-release", "ID=debian\nVERSION_CODENAME=trixie\n")
	if got, err := aptSources(root); got != "" || err != nil {
		t.Errorf("on another release: %q, %v", got, err)
	}
}

func TestNamesFollowContents(t *testing.T) {
	b := &builder{Variant: Variant{Name: "guest"}, dir: "/cache"}
	base, image, err := b.paths("deb x", []byte("agent"))
	if err != nil {
		t.Fatal(err)
	}
	base2, image2, _ := b.paths("deb x", []byte("another agent"))
	base3, image3, _ := b.paths("deb y", []byte("agent"))
	if base2 != base || image2 == image {
		t.Error("another agent takes another image of the same base")
	}
	if base3 == base || image3 == image {
		t.Error("other sources take another base")
	}
	if again, same, _ := b.paths("deb x", []byte("agent")); again != base || same != image {
		t.Error("the same input gives another name")
	}
}

func TestRecipeNamesNoOneTwice(t *testing.T) {
	for _, name := range []string{"recipe/masked", "recipe/generators"} {
		data, err := recipe.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for line := range strings.Lines(string(data)) {
			line = strings.TrimSpace(line)
			if seen[line] && !strings.HasPrefix(line, "#") {
				t.Errorf("%s: %s is listed twice", name, line)
			}
			seen[line] = true
		}
	}
}

func TestCopyKeepsHoles(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	data := make([]byte, 1<<20+5)
	copy(data[300_000:], "something")
	data[len(data)-1] = 1
	if err := os.WriteFile(from, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Copy(to, from); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(to)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("the copy differs, or %v", err)
	}
	moved := filepath.Join(dir, "moved")
	if err := move(moved, to); err != nil || exists(to) || !exists(moved) {
		t.Errorf("not moved: %v", err)
	}
	if err := Copy(filepath.Join(dir, "x"), filepath.Join(dir, "nothing")); err == nil {
		t.Error("a copy of nothing")
	}
}

func TestFailuresAreOneLine(t *testing.T) {
	b := &builder{}
	err := b.run(context.Background(), nil, "sh", "-c", "echo one; echo two; echo; echo three; echo four >&2; exit 3")
	if err == nil || err.Error() != "sh: exit status 3: two | three | four" {
		t.Errorf("%v", err)
	}
}

// Only what this machine lacks may make a test skip.
func TestUnavailable(t *testing.T) {
	b := &builder{}
	for output, want := range map[string]bool{
		"E: Failed to fetch http://deb.example/x.deb  Temporary failure resolving 'deb.example'":                    true,
		"Err:1 http://deb.example bookworm InRelease\n  Could not connect to deb.example:80 (192.0.2.1), timed out": true,
		"E: Unable to locate package redis-serverr":                                                                 false,
		"E: Failed to fetch http://deb.example/x.deb  404  Not Found":                                               false,
		"dpkg: error processing package linux-image-cloud-amd64":                                                    false,
		"mke2fs: Could not allocate block in ext2 filesystem":                                                       false,
	} {
		err := b.run(context.Background(), nil, "sh", "-c", `printf '%s\n' "$1"; seq 50; exit 100`, "sh", output)
		if err == nil || errors.Is(err, ErrUnavailable) != want || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v; unavailable: want %v", output, err, want)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if err := missing(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("missing packages: %v", err)
	}
}

func TestPruneKeepsTheNewest(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	for i, name := range []string{"a.img", "b.img", "c.img", "d.img", "e.img", "other"} {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(p, now, now.Add(-time.Duration(i)*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	if err := prune(dir, "*.img", filepath.Join(dir, "e.img")); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range left {
		left[i] = filepath.Base(left[i])
	}
	if d := cmp.Diff([]string{"a.img", "b.img", "c.img", "e.img", "other"}, left); d != "" {
		t.Error(d)
	}
}
