package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/duet-ft/duet/image/lab/ether"
	"github.com/duet-ft/duet/image/lab/qemu"
	"github.com/duet-ft/duet/image/lab/transcript"
)

const (
	// defaultMemoryMiB is enough for gokrazy and hvd without a guest.
	defaultMemoryMiB = 512
	// maxPage is how much of a page Get reads, in bytes.
	maxPage = 4 << 20
	// askAgain is the pause between two tries to reach a host that is booting.
	askAgain = 200 * time.Millisecond
)

// kernelPanic is what a kernel prints that will not go on.
var kernelPanic = regexp.MustCompile(`Kernel panic - not syncing: .*`)

// HostConfig describes a host.
type HostConfig struct {
	// Name names it in messages and directories.
	Name string
	// Number is its station number on the management network: address IP(Number).
	Number int
	// MemoryMiB is its memory; 0 means 512.
	MemoryMiB int
	// Core is the processor that it is pinned to; give the hosts of a pair different ones.
	Core int
	// UEFI boots it by firmware and boot loader from its disk, as a real server; otherwise QEMU loads the kernel.
	// Its command line then lacks what works around QEMU's lost interrupts: run no VMs on such a host.
	UEFI bool
	// Direct is its end of a cable; nil means that it has one NIC only.
	Direct *ether.Port
	// Perm are the files on /perm, by path, such as "duet/host.json".
	Perm map[string][]byte
	// Flashed makes its disk that many bytes large, with the image on it as `dd` leaves it: /perm is empty, so Perm is
	// not used, and what programs print goes nowhere but to the page. 0 means a disk with a /perm.
	Flashed int64
	// Cmdline is added to the kernel's command line (direct boot only).
	Cmdline string
	// Extra are further arguments for QEMU.
	Extra []string
}

// Host is an emulated server with the image. It can be killed and booted again; its disk stays.
type Host struct {
	// Port is its NIC on the management network, which can cut and delay.
	Port *ether.Port

	lab    *Lab
	cfg    HostConfig
	dir    string
	disk   string
	syslog *syslog

	mu      sync.Mutex
	machine *qemu.Machine
}

// Refit replaces HostConfig.Extra from the next Boot on.
func (h *Host) Refit(extra []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cfg.Extra = extra
}

// Boot switches the host on.
func (h *Host) Boot() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.machine != nil {
		select {
		case <-h.machine.Done():
		default:
			return fmt.Errorf("host %s is on already", h.cfg.Name)
		}
	}
	cfg := qemu.Config{
		Name: "host " + h.cfg.Name, Dir: h.dir, MemoryMiB: h.cfg.MemoryMiB, Core: h.cfg.Core, Disk: h.disk,
		NICs:  []qemu.NIC{{MAC: MAC(h.cfg.Number), Socket: h.Port.Path()}},
		Extra: h.cfg.Extra, Report: h.lab.Report, Progress: h.progress, Sockets: h.lab.sockets,
	}
	if !h.cfg.UEFI {
		cfg.Kernel, cfg.Cmdline = h.lab.kernel, h.lab.Image.Cmdline+" "+h.cfg.Cmdline
	}
	if h.cfg.Direct != nil {
		cfg.NICs = append(cfg.NICs, qemu.NIC{MAC: directMAC(h.cfg.Number), Socket: h.cfg.Direct.Path()})
	}
	m, err := qemu.Start(cfg)
	if err != nil {
		return fmt.Errorf("host %s: %w", h.cfg.Name, err)
	}
	h.machine = m
	return nil
}

func directMAC(n int) string { return fmt.Sprintf("52:54:00:d1:e7:%02x", n) }

func (h *Host) progress() uint64 {
	ports := []*ether.Port{h.Port}
	if h.cfg.Direct != nil {
		ports = append(ports, h.cfg.Direct)
	}
	var n uint64
	for _, p := range ports {
		n += p.Counters(ether.FromMachine).Frames
	}
	return n
}

// Machine is the host's QEMU; nil before the first Boot.
func (h *Host) Machine() *qemu.Machine {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.machine
}

// Name is the host's name.
func (h *Host) Name() string { return h.cfg.Name }

// IP is the host's address on the management network.
func (h *Host) IP() string { return IP(h.cfg.Number) }

// ConsoleLog is the file with all that the host printed.
func (h *Host) ConsoleLog() string { return filepath.Join(h.dir, "console.log") }

// Disk is the file with the host's disk.
func (h *Host) Disk() string { return h.disk }

// Log is what the host's programs (netcfg, hvd, ...) have printed, all boots together, each line as "program: line".
func (h *Host) Log() *transcript.Log { return h.syslog.log }

// ProgramsLog is the file with the same lines.
func (h *Host) ProgramsLog() string { return filepath.Join(h.dir, "programs.log") }

// WaitLog returns the first line at or after from that a program printed and re matches, or fails after timeout.
func (h *Host) WaitLog(re *regexp.Regexp, from transcript.Mark, timeout time.Duration) (string, error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), timeout, fmt.Errorf("not within %v", timeout))
	defer cancel()
	line, err := h.syslog.log.Wait(ctx, re, from)
	if err != nil {
		return "", fmt.Errorf("programs of host %s: %w", h.cfg.Name, err)
	}
	return line, nil
}

// Kill ends the host by SIGKILL to its QEMU, as a power failure would. A host that is off stays so.
func (h *Host) Kill() error {
	if m := h.Machine(); m != nil {
		return m.Kill()
	}
	return nil
}

// Dial connects to a TCP port of the host.
func (h *Host) Dial(ctx context.Context, port int) (net.Conn, error) {
	return h.lab.Net.Dial(ctx, net.JoinHostPort(h.IP(), fmt.Sprint(port)))
}

// Client is an HTTP client that reaches the management network, whatever host a URL names by address.
func (h *Host) Client() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return h.lab.Net.Dial(ctx, address)
		},
		DisableKeepAlives: true,
	}}
}

// Get reads a page of the host's gokrazy web server with the lab's password.
func (h *Host) Get(ctx context.Context, path string) (status int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+h.IP()+path, nil)
	if err != nil {
		return 0, nil, err
	}
	req.SetBasicAuth("gokrazy", h.lab.Password)
	resp, err := h.Client().Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxPage))
	return resp.StatusCode, body, err
}

// WaitPage waits until the host's web page answers, and returns it.
func (h *Host) WaitPage(ctx context.Context) ([]byte, error) {
	m := h.Machine()
	if m == nil {
		return nil, fmt.Errorf("host %s is off", h.cfg.Name)
	}
	for {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		status, body, err := h.Get(try, "/")
		cancel()
		if err == nil && status == http.StatusOK {
			return body, nil
		}
		if err == nil {
			err = fmt.Errorf("HTTP status %d", status)
		}
		select {
		case <-time.After(askAgain):
			if line := m.Console().Find(kernelPanic); line != "" {
				return nil, fmt.Errorf("host %s: %s (see %s)", h.cfg.Name, line, h.ConsoleLog())
			}
		case <-m.Done():
			return nil, fmt.Errorf("host %s ended: %w; its last lines:\n%s", h.cfg.Name,
				errors.Join(m.Err(), err), m.Console().Tail())
		case <-ctx.Done():
			return nil, fmt.Errorf("the page of host %s: %w; its last lines:\n%s", h.cfg.Name,
				errors.Join(context.Cause(ctx), err), m.Console().Tail())
		}
	}
}
