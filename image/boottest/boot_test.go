// Package boottest boots the built image in QEMU and looks at what a user would see: gokrazy's web page.
//
// Tests only. Imports image/disk and image/lab.
package boottest

import (
	"bytes"
	"context"
	"net/http"
	"os/exec"
	"path"
	"testing"
	"time"

	"github.com/duet-ft/duet/image/disk"
	"github.com/duet-ft/duet/image/lab"
)

// bootTimeout is generous: a computer that does other work as well may take five times as long.
const bootTimeout = 4 * time.Minute

// start builds the image and makes a lab, or skips the test with the reason.
func start(t *testing.T) *lab.Lab {
	t.Helper()
	if testing.Short() {
		t.Skip("skipped with -short: boots machines in QEMU")
	}
	for _, tool := range []string{"qemu-system-x86_64", "mke2fs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is missing: install the packages %v", tool, lab.Missing())
		}
	}
	b, err := disk.NewBuilder(".")
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	img, err := b.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("image ready after %v (cached: %v)", time.Since(begin).Round(time.Millisecond), img.Cached)
	l, err := lab.New(t.TempDir(), img)
	if err != nil {
		t.Fatal(err)
	}
	l.Report = func(line string) { t.Error(line) }
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func boot(t *testing.T, l *lab.Lab, cfg lab.HostConfig) *lab.Host {
	t.Helper()
	h, err := l.NewHost(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Boot(); err != nil {
		t.Fatal(err)
	}
	return h
}

func waitPage(t *testing.T, h *lab.Host) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	begin := time.Now()
	page, err := h.WaitPage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("host %s shows its page after %v", h.Name(), time.Since(begin).Round(100*time.Millisecond))
	return page
}

func TestDirectBoot(t *testing.T) {
	l := start(t)
	testPage(t, l, lab.HostConfig{Name: "direct", Number: 11})
}

func TestUEFIBoot(t *testing.T) {
	l := start(t)
	testPage(t, l, lab.HostConfig{Name: "uefi", Number: 12, UEFI: true})
}

func testPage(t *testing.T, l *lab.Lab, cfg lab.HostConfig) {
	t.Helper()
	h := boot(t, l, cfg)
	page := waitPage(t, h)
	for _, p := range l.Image.Packages {
		if !bytes.Contains(page, []byte(path.Base(p))) {
			t.Errorf("the page does not name %s", path.Base(p))
		}
	}
	local, err := l.Net.Forward("127.0.0.1:0", h.IP()+":80")
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://" + local + "/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a password the page answers %d, want %d", resp.StatusCode, http.StatusUnauthorized)
	}
}
