// Package nested runs Go tests inside a throw-away host: our kernel in QEMU,
// whose emulated SVM gives it a real /dev/kvm, with a test binary as the only
// program in its memory. A package's own tests can so be written as ordinary
// Go tests that skip where there is no Duet kernel, and be run where there is.
//
// # Place
//
// Tests of image/boottest use it. It imports nothing of ours but knows where
// the kernel lies.
//
// QEMU's three SVM bugs are worked around as the kernel's second patch and the
// arguments here do: one core a machine, no high-resolution timers.
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
	"strconv"
	"strings"
	"time"
)

// Config says what to run.
type Config struct {
	Kernel    string            // path of vmlinuz
	Package   string            // Go package whose tests are run, as go test takes it
	Args      []string          // for the test binary: -test.run=..., without commas in them
	Disks     []string          // raw images, attached as /dev/vda, vdb ...; written to a snapshot only
	Extra     map[string]string // files to put beside the test: name in the root, path here
	MemoryMiB int
	Core      int // the core that QEMU is pinned to
	// Instructions makes the host's clock count its instructions, 1 ns each: CPU
	// times are then the same in each run, however busy this machine is.
	Instructions bool
	Log          io.Writer
}

var exitLine = regexp.MustCompile(`NESTED EXIT (\d+)`)

// Run builds the test and runs it. The error holds what went wrong: the test's
// output goes to cfg.Log line by line.
func Run(ctx context.Context, dir string, cfg Config) error {
	initrd := filepath.Join(dir, "initrd")
	if err := buildInitrd(ctx, dir, initrd, cfg); err != nil {
		return err
	}
	cmdline := "console=ttyS0 quiet panic=-1 highres=off nohz=off mitigations=off random.trust_cpu=on " +
		"duet.args=" + strings.Join(cfg.Args, ",")
	args := []string{
		"-c", strconv.Itoa(cfg.Core), "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max",
		"-m", strconv.Itoa(cfg.MemoryMiB), "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", cfg.Kernel, "-initrd", initrd, "-append", cmdline,
	}
	if cfg.Instructions {
		args = append(args, "-icount", "shift=0")
	}
	for i, d := range cfg.Disks {
		args = append(args, "-drive", fmt.Sprintf("file=%s,format=raw,if=none,id=d%d,snapshot=on", d, i),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=d%d", i))
	}
	cmd := exec.CommandContext(ctx, "taskset", args...)
	cmd.Cancel = func() error { return cmd.Process.Kill() }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cfg.Log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start QEMU: %w", err)
	}
	status := -1
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		fmt.Fprintln(cfg.Log, line)
		if m := exitLine.FindStringSubmatch(line); m != nil {
			status, _ = strconv.Atoi(m[1])
		}
	}
	err = cmd.Wait()
	switch {
	case status == 0:
		return nil
	case status > 0:
		return fmt.Errorf("the test in the host failed with status %d", status)
	case ctx.Err() != nil:
		return fmt.Errorf("the host didn't end in time: %w", ctx.Err())
	}
	return errors.Join(errors.New("the host ended without a result"), err)
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
	if err := build("test", "test", "-c", cfg.Package); err != nil {
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
