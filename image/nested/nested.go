// Package nested runs Go tests inside a throw-away host: our kernel in QEMU,
// whose emulated SVM gives it a real /dev/kvm, with a test binary as the only
// program in its memory. A package's own tests can so be written as ordinary
// Go tests that skip where there is no Duet kernel, and be run where there is.
//
// # Place
//
// Tests of image/boottest and image/kernel use it, and image/bench. The machine
// is one of image/lab/qemu, with its work-arounds and its watchdog.
package nested

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/duet-ft/duet/image/lab/qemu"
	"github.com/duet-ft/duet/image/lab/transcript"
)

// Config says what to run.
type Config struct {
	Kernel    string            // path of vmlinuz
	Package   string            // Go package whose tests are run, as go test takes it
	Tags      string            // build tags of the test
	Program   bool              // Package is a program to run instead
	Args      []string          // for the test binary: -test.run=..., without commas in them
	Disks     []string          // raw images, attached as /dev/vda, vdb ...; written to a snapshot only
	Kept      []string          // raw images behind them, whose writes are kept
	Forward   map[int]int       // ports of 127.0.0.1 that lead to ports of the host
	Extra     map[string]string // files to put beside the test: name in the root, path here
	MemoryMiB int
	Core      int // the core that QEMU is pinned to
	Log       io.Writer
	// CountInstructions makes the host's time count them; see qemu.Config.
	CountInstructions bool
}

var exitLine = regexp.MustCompile(`NESTED EXIT (\d+)`)

// Run builds the test and runs it. The error holds what went wrong: the test's
// output goes to cfg.Log line by line.
func Run(ctx context.Context, dir string, cfg Config) error {
	initrd := filepath.Join(dir, "initrd")
	if err := buildInitrd(ctx, dir, initrd, cfg); err != nil {
		return err
	}
	sockets, err := os.MkdirTemp("", "duet-nested-") // a socket's path must be short
	if err != nil {
		return err
	}
	defer os.RemoveAll(sockets)
	printed := &lineWriter{to: cfg.Log}
	m, err := qemu.Start(qemu.Config{
		Name: "the test's host", Dir: dir, Sockets: sockets, MemoryMiB: cfg.MemoryMiB, Core: cfg.Core,
		Kernel: cfg.Kernel, Initrd: initrd, Cmdline: cmdline + " duet.args=" + strings.Join(cfg.Args, ","),
		Extra: arguments(cfg), Console: printed, CountInstructions: cfg.CountInstructions,
		Report: func(line string) { printed.note(line) },
	})
	if err != nil {
		return fmt.Errorf("start QEMU: %w", err)
	}
	select {
	case <-m.Done():
	case <-ctx.Done():
		if err := m.Kill(); err != nil {
			return err
		}
	}
	return verdict(ctx, m.Console(), m.Err())
}

// cmdline is the host kernel's, but for what qemu adds.
const cmdline = "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on"

// arguments are QEMU's for disks and ports, and to end when the host's kernel
// does.
func arguments(cfg Config) []string {
	args := []string{"-no-reboot"}
	for i, d := range append(cfg.Disks[:len(cfg.Disks):len(cfg.Disks)], cfg.Kept...) {
		snapshot := "on"
		if i >= len(cfg.Disks) {
			snapshot = "off"
		}
		args = append(args, "-drive", fmt.Sprintf("file=%s,format=raw,if=none,id=d%d,snapshot=%s", d, i, snapshot),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=d%d", i))
	}
	if len(cfg.Forward) == 0 {
		return args
	}
	user := "user,id=n0"
	for from, to := range cfg.Forward {
		user += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:%d", from, to)
	}
	return append(args, "-netdev", user, "-device", "virtio-net-pci,netdev=n0,romfile=")
}

// verdict is what the host's last line says.
func verdict(ctx context.Context, console *transcript.Log, ended error) error {
	m := exitLine.FindStringSubmatch(console.Find(exitLine))
	switch {
	case m != nil && m[1] == "0":
		return nil
	case m != nil:
		return fmt.Errorf("the test in the host failed with status %s", m[1])
	case ctx.Err() != nil:
		return fmt.Errorf("the host didn't end in time: %w", context.Cause(ctx))
	}
	return errors.Join(fmt.Errorf("the host ended without a result; it said at last:\n%s", console.Tail()), ended)
}

func buildInitrd(ctx context.Context, dir, path string, cfg Config) error {
	files := map[string][]byte{}
	build := func(name string, args ...string) error {
		out := filepath.Join(dir, name)
		cmd := exec.CommandContext(ctx, "go", append(args[:1:1], append([]string{"-o", out}, args[1:]...)...)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
		if msg, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", name, err, msg)
		}
		b, err := os.ReadFile(out)
		files[name] = b
		return err
	}
	if err := build("init", "build", "github.com/duet-ft/duet/image/nested/init"); err != nil {
		return err
	}
	how := []string{"test", "-c", "-tags", cfg.Tags, cfg.Package}
	if cfg.Program {
		how = []string{"build", cfg.Package}
	}
	if err := build("test", how...); err != nil {
		return err
	}
	for name, from := range cfg.Extra {
		b, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		files[name] = b
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	return errors.Join(WriteInitrd(w, files), w.Flush(), f.Close())
}
