package boottest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/image/guest"
	"github.com/duet-ft/duet/image/lab"
	"github.com/duet-ft/duet/image/nested"
)

const (
	// nestedTimeout is the limit of one of the tests below, the build of the guest not included.
	nestedTimeout = 15 * time.Minute
	// nestedMemoryMiB holds two virtual machines of 384 MiB, their copies, and what a test keeps of their histories.
	nestedMemoryMiB = 3000
	nestedCore      = 1
)

// TestInHost runs tests of other packages that need Duet's kernel, or a single processor, inside an emulated host that has
// them.
func TestInHost(t *testing.T) {
	for _, c := range []struct {
		pkg, run string
		guest    bool   // attach the guest's disk
		tags     string // build tags of the test
	}{
		{pkg: "hvd/machine", run: "Test"},
		{pkg: "hvd/locate", run: "Test"},
		{pkg: "hvd/torture", run: "TestTorture"},
		{pkg: "hvd/vmproc", run: "TestPulseBesideTheCollector"},
		{pkg: "hvd/vm", run: "TestEarlyReplay$", guest: true},
		{pkg: "hvd/vm", run: "TestEarlyReplayOfEachSet", guest: true},
		{pkg: "hvd/playback", run: "Test[GC]"},
		{pkg: "hvd/vm", run: "Test(Points|Blind)"},
		{pkg: "hvd/vm", run: "TestTape", guest: true},
		{pkg: "hvd/vm", run: "TestSwitchover", guest: true},
		{pkg: "hvd/vm", run: "TestRecordReplay$", guest: true},
		{pkg: "hvd/vm", run: "TestRecordReplayOfChangingSets", guest: true},
		{pkg: "hvd/vm", run: "TestFlips", tags: "faultinject"},
		{pkg: "hvd/vm", run: "TestReferences"},
		{pkg: "hvd/vm", run: "TestAccessedBits", guest: true},
	} {
		t.Run(c.pkg+" "+c.run, func(t *testing.T) {
			if testing.Short() {
				t.Skip("skipped with -short: boots a machine in QEMU")
			}
			if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
				t.Skipf("qemu-system-x86_64 is missing: install the packages %v", lab.Missing())
			}
			var log bytes.Buffer
			args, timeout := moreArgs(t)
			cfg := nested.Config{
				Kernel: "../kernel/vmlinuz", Package: "../../" + c.pkg, Args: append([]string{"-test.v", "-test.run=^" + c.run}, args...),
				Tags: c.tags, Extra: exercise(t), MemoryMiB: nestedMemoryMiB, Core: nestedCore, Log: io.MultiWriter(&log, t.Output()),
			}
			if c.guest {
				cfg.Disks = []string{guestImage(t)}
			}
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			if err := nested.Run(ctx, t.TempDir(), cfg); err != nil {
				t.Fatal(err)
			}
			if err := ran(log.String()); err != nil {
				t.Error(err)
			}
		})
	}
}

// moreArgs are arguments for the test in the host from DUET_TEST_ARGS, and its
// limit: such a run takes as long as go test's -timeout permits.
func moreArgs(t *testing.T) (args []string, limit time.Duration) {
	t.Helper()
	args = strings.Fields(os.Getenv("DUET_TEST_ARGS"))
	if deadline, ok := t.Deadline(); ok && len(args) > 0 {
		return append(args, "-test.timeout="+time.Until(deadline).String()), time.Until(deadline)
	}
	return args, nestedTimeout
}

// exercise is the small guest: our kernel, and image/exercise as its initramfs.
func exercise(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	bin, initrd := filepath.Join(dir, "exercise"), filepath.Join(dir, "initrd")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "../exercise")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the small guest: %v\n%s", err, msg)
	}
	b, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := nested.WriteInitrd(&out, map[string][]byte{"init": b}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(initrd, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return map[string]string{"guest.vmlinuz": "../kernel/vmlinuz", "guest.initrd": initrd}
}

// guestImage is the guest's disk, from the cache if it is there. Where it can't be built for want of a package or a
// mirror, the test is skipped; a build that fails is a failure.
func guestImage(t *testing.T) string {
	t.Helper()
	path, err := guest.Build(t.Context(), "", func(line string) { t.Log(line) })
	if errors.Is(err, guest.ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var verdict = regexp.MustCompile(`(?m)^--- (PASS|SKIP): (\S+)`)

// ran says whether a test binary that ended well has really run its tests: it ends well if it skips them, too.
func ran(log string) error {
	passed := 0
	for _, m := range verdict.FindAllStringSubmatch(strings.ReplaceAll(log, "\r", ""), -1) {
		if m[1] == "SKIP" {
			return fmt.Errorf("%s was skipped in the host that was made for it", m[2])
		}
		passed++
	}
	if passed == 0 {
		return fmt.Errorf("no test has run in the host")
	}
	return nil
}

func TestRan(t *testing.T) {
	for log, good := range map[string]bool{
		"=== RUN   TestA\n--- PASS: TestA (0.1s)\nPASS\n":                                     true,
		"=== RUN   TestA\n--- PASS: TestA (0.1s)\n--- SKIP: TestB (0.0s)\nPASS\n":             false,
		"testing: warning: no tests to run\nPASS\n":                                           false,
		"--- PASS: TestA (0.1s)\n    --- SKIP: TestA/with_a_tool_of_no_use_in_it\nPASS\n\r\n": true,
	} {
		if err := ran(log); (err == nil) != good {
			t.Errorf("%q: %v", log, err)
		}
	}
}
