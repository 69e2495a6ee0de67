// Package qemu runs one emulated server: QEMU without acceleration by the CPU (TCG), which gives the host on it a
// /dev/kvm by nested SVM. Start, console, QMP, kill; no root.
//
// Used by image/lab for hosts with the image, and by image/nested for those that run one test. Imports
// image/lab/transcript.
//
// Work-arounds that are always on, because QEMU's SVM loses interrupts when its threads race (seen with 7.2 and 10.0):
// each QEMU is pinned to one core, and the host's kernel is told highres=off nohz=off, so that its periodic timer
// heals a lost interrupt at the next tick. Should one get lost all the same, a watchdog says so.
package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/duet-ft/duet/image/lab/transcript"
	"golang.org/x/sys/unix"
)

const (
	binary = "qemu-system-x86_64"
	// kernelQuirks are the work-arounds on the host's kernel command line.
	kernelQuirks = "highres=off nohz=off"
	// watchEvery is how often the watchdog looks.
	watchEvery = time.Second
	// killWait is how long Close waits for a killed QEMU to be gone.
	killWait = 10 * time.Second
)

// firmware are the places of OVMF's code and variables (Debian's package ovmf).
var firmware = struct{ code, vars string }{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"}

// LostInterrupt is what the watchdog reports.
const LostInterrupt = "L1 lost an interrupt (known QEMU SVM bug): no CPU time, no console output and no frames for 15 s"

// Config describes a machine.
type Config struct {
	// Name names the machine in messages.
	Name string
	// Dir is where its firmware's variables and console.log are kept; it is made if it is missing.
	Dir string
	// Sockets is where its QMP socket is made, a short path; empty means Dir.
	Sockets string
	// MemoryMiB is the machine's memory.
	MemoryMiB int
	// Core is the processor of this computer that QEMU is pinned to, counted from 0 among those that this process
	// may use and modulo their number.
	Core int
	// Disk is a raw disk image; empty means none.
	Disk string
	// Kernel, Initrd and Cmdline are for a direct boot; with an empty Kernel the machine boots from its disk by UEFI.
	Kernel, Initrd, Cmdline string
	// NICs in the order in which the machine finds them.
	NICs []NIC
	// Extra are further arguments for QEMU.
	Extra []string
	// Progress counts what the machine does on its networks, for the watchdog; nil means nothing is counted.
	Progress func() uint64
	// Report gets the watchdog's line; nil means it goes to standard error.
	Report func(line string)
	// Console gets what the machine prints as it prints it, beside console.log; nil means nobody does.
	Console io.Writer
	// CountInstructions makes the machine's clock count them: one a nanosecond, idle time skipped. A processor time
	// that its kernel measures is then an exact number of instructions, the same on every computer. It runs at about
	// half the speed, and loops that wait by PAUSE take long.
	CountInstructions bool
}

// NIC is a network interface: virtio-net on a stream socket (package ether).
type NIC struct {
	MAC    string
	Socket string
}

// Machine is a running QEMU.
type Machine struct {
	cfg     Config
	cmd     *exec.Cmd
	console *transcript.Log
	log     *os.File
	stdin   io.WriteCloser
	qmp     qmp
	done    chan struct{}
	exit    error // valid when done is closed
	stopped chan bool
}

// Start starts the machine. It runs until it powers off, is killed, or this process ends.
func Start(cfg Config) (*Machine, error) {
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, err
	}
	m := &Machine{cfg: cfg, console: transcript.New(), done: make(chan struct{}), stopped: make(chan bool, 16)}
	m.qmp.path = filepath.Join(cmp.Or(cfg.Sockets, cfg.Dir), strings.ReplaceAll(cfg.Name, " ", "-")+".qmp")
	args, err := arguments(cfg, m.qmp.path)
	if err != nil {
		return nil, err
	}
	if m.log, err = os.OpenFile(filepath.Join(cfg.Dir, "console.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644); err != nil {
		return nil, err
	}
	m.cmd = exec.Command(binary, args...)
	// Pdeathsig: no QEMU outlives a test that was killed.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL, Setpgid: true}
	if m.stdin, err = m.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	started := make(chan error, 1)
	go m.own(out, started)
	if err := <-started; err != nil {
		m.log.Close()
		if errors.Is(err, exec.ErrNotFound) {
			err = fmt.Errorf("%s is missing: install the package qemu-system-x86", binary)
		}
		return nil, err
	}
	go m.watch()
	return m, nil
}

// own starts QEMU on its core and waits for its end. It keeps its thread: a child inherits the thread's core, and is
// killed with the thread that made it.
func (m *Machine) own(out io.Reader, started chan<- error) {
	runtime.LockOSThread() // never unlocked: the thread ends with this function, and its affinity with it
	var stderr strings.Builder
	m.cmd.Stderr = &stderr
	if err := pin(m.cfg.Core); err != nil {
		started <- err
		return
	}
	if err := m.cmd.Start(); err != nil {
		started <- err
		return
	}
	started <- nil
	to := []io.Writer{m.console, m.log}
	if m.cfg.Console != nil {
		to = append(to, m.cfg.Console)
	}
	_, _ = io.Copy(io.MultiWriter(to...), out) // ends with QEMU, which the next line asks for
	m.console.End()
	m.exit = m.cmd.Wait()
	if text := strings.TrimSpace(stderr.String()); text != "" {
		m.exit = fmt.Errorf("QEMU of %s ended: %w: %s", m.cfg.Name, errOr(m.exit, "no error"), text)
	}
	m.log.Close()
	close(m.done)
}

func errOr(err error, text string) error {
	if err == nil {
		return errors.New(text)
	}
	return err
}

// pin restricts the calling thread to one of the processors that it may use.
func pin(core int) error {
	var may, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return fmt.Errorf("reading the processors to use: %w", err)
	}
	left := core % may.Count()
	for cpu := 0; ; cpu++ {
		if !may.IsSet(cpu) {
			continue
		}
		if left == 0 {
			one.Set(cpu)
			return unix.SchedSetaffinity(0, &one)
		}
		left--
	}
}

// arguments makes QEMU's command line.
func arguments(cfg Config, qmpPath string) ([]string, error) {
	args := []string{
		"-machine", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", strconv.Itoa(cfg.MemoryMiB),
		"-nodefaults", "-no-user-config", "-display", "none",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-qmp", "unix:" + qmpPath + ",server=on,wait=off",
		"-device", "virtio-rng-pci",
	}
	if cfg.CountInstructions {
		args = append(args, "-icount", "shift=0,sleep=off")
	}
	if cfg.Kernel != "" {
		args = append(args, "-kernel", cfg.Kernel, "-append", strings.TrimSpace(cfg.Cmdline+" "+kernelQuirks))
		if cfg.Initrd != "" {
			args = append(args, "-initrd", cfg.Initrd)
		}
	} else {
		vars := filepath.Join(cfg.Dir, "uefi-vars.fd")
		if err := firmwareVars(vars); err != nil {
			return nil, err
		}
		args = append(args,
			"-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+firmware.code,
			"-drive", "if=pflash,unit=1,format=raw,file="+vars)
	}
	if cfg.Disk != "" {
		args = append(args, "-drive", "if=none,id=disk,format=raw,cache=unsafe,file="+cfg.Disk,
			"-device", "virtio-blk-pci,drive=disk,bootindex=1")
	}
	for i, n := range cfg.NICs {
		args = append(args, "-netdev", fmt.Sprintf("stream,id=net%d,server=off,addr.type=unix,addr.path=%s", i, n.Socket),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=net%d,mac=%s,romfile=", i, n.MAC))
	}
	return append(args, cfg.Extra...), nil
}

// firmwareVars gives the machine its own copy of the firmware's variables, once.
func firmwareVars(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	b, err := os.ReadFile(firmware.vars)
	if err != nil {
		return fmt.Errorf("the UEFI firmware is missing (%w): install the package ovmf", err)
	}
	return os.WriteFile(path, b, 0o644)
}

// Wait returns the first console line at or after from that re matches; see [transcript.Log.Wait].
func (m *Machine) Wait(ctx context.Context, re *regexp.Regexp, from transcript.Mark) (string, error) {
	line, err := m.console.Wait(ctx, re, from)
	if err != nil {
		return "", fmt.Errorf("%s: %w", m.cfg.Name, err)
	}
	return line, nil
}

// Console is the machine's serial port.
func (m *Machine) Console() *transcript.Log { return m.console }

// Type writes to the machine's serial port.
func (m *Machine) Type(s string) error {
	_, err := io.WriteString(m.stdin, s)
	return err
}

// Kill ends QEMU by SIGKILL, as a power failure ends a host, and returns when it is gone.
func (m *Machine) Kill() error {
	if err := m.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-m.done:
		return nil
	case <-time.After(killWait):
		return fmt.Errorf("QEMU of %s is still there %v after SIGKILL", m.cfg.Name, killWait)
	}
}

// Done is closed when QEMU has ended; Err then tells how.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Err is how QEMU ended; nil while it runs, and after an orderly end.
func (m *Machine) Err() error {
	select {
	case <-m.done:
		return m.exit
	default:
		return nil
	}
}

// PID is QEMU's process.
func (m *Machine) PID() int { return m.cmd.Process.Pid }

// CPUTime is how much processor time QEMU has used, in all its threads.
func (m *Machine) CPUTime() (time.Duration, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", m.PID()))
	if err != nil || len(threads) == 0 {
		return 0, errors.Join(err, fmt.Errorf("QEMU of %s has no threads", m.cfg.Name))
	}
	var sum time.Duration
	for _, path := range threads {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		first, _, _ := strings.Cut(string(b), " ")
		ns, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

func (m *Machine) running(yes bool) {
	select {
	case m.stopped <- !yes:
	default:
	}
}

// watch is the watchdog.
func (m *Machine) watch() {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	start := time.Now()
	var s stall
	running := true
	for {
		select {
		case <-m.done:
			return
		case stopped := <-m.stopped:
			running = !stopped
		case <-tick.C:
			cpu, err := m.CPUTime()
			if err != nil {
				continue
			}
			progress := m.console.Bytes()
			if m.cfg.Progress != nil {
				progress += m.cfg.Progress()
			}
			if s.observe(time.Since(start), cpu, progress, running) {
				m.report(fmt.Sprintf("%s: %s", m.cfg.Name, LostInterrupt))
			}
		}
	}
}

func (m *Machine) report(line string) {
	if m.cfg.Report != nil {
		m.cfg.Report(line)
		return
	}
	fmt.Fprintln(os.Stderr, line)
}
