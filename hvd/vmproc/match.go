package vmproc

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/machine"
)

// traits are what both hosts must have in common for one to follow the other.
// They travel in the header of a state transfer.
type traits struct {
	Log       int    `json:"log"`       // event.Version
	Image     string `json:"image"`     // fingerprint of this program
	Kernel    string `json:"kernel"`    // release and build of the running kernel
	CPU       string `json:"cpu"`       // the processor's name
	Microcode string `json:"microcode"` // its revision, as the kernel shows it
	Leaves    string `json:"leaves"`    // machine.CPU's fingerprint
}

// hostTraits are this host's.
func hostTraits(sys *kvm.System) (traits, error) {
	cpu, err := machine.HostCPU(sys)
	if err != nil {
		return traits{}, err
	}
	t := traits{Log: event.Version, CPU: cpu.Name, Leaves: cpu.Fingerprint}
	if t.Image, err = programFingerprint(); err != nil {
		return traits{}, err
	}
	if t.Kernel, err = runningKernel(); err != nil {
		return traits{}, fmt.Errorf("which kernel runs: %w", err)
	}
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return traits{}, fmt.Errorf("the processor's microcode: %w", err)
	}
	t.Microcode = microcode(string(info))
	return t, nil
}

// runningKernel is what uname -r and uname -v say. Two builds of one release
// differ in the latter.
func runningKernel() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", err
	}
	return unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Version[:]), nil
}

// microcode is the revision in the text of /proc/cpuinfo, "none" if the kernel
// shows none. Should processors of one host have several, all are named.
func microcode(cpuinfo string) string {
	var revisions []string
	for line := range strings.Lines(cpuinfo) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "microcode" {
			revisions = append(revisions, strings.TrimSpace(value))
		}
	}
	if len(revisions) == 0 {
		return "none"
	}
	slices.Sort(revisions)
	return strings.Join(slices.Compact(revisions), "+")
}

// programFingerprint tells programs apart: the first 12 hexadecimal digits of
// its file's SHA-256.
func programFingerprint() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", err
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)[:6]), nil
}

// mismatch says in one line why host own can't protect the VM that runs on host
// peer, and what to do; "" if it can. What explains most comes first: another
// model has other microcode, and other microcode may show other features.
func mismatch(ownName string, own traits, peerName string, peer traits) string {
	const flash = "flash both hosts with the same image"
	if own == peer {
		return ""
	}
	differ := func(what, own, peer, advice string) string {
		return fmt.Sprintf("host %s can't protect the VM: its %s is %s, host %s's is %s; %s", ownName, what, plain(own), peerName, plain(peer), advice)
	}
	switch {
	case own.Log != peer.Log:
		return differ("log format", fmt.Sprint("version ", own.Log), fmt.Sprint(peer.Log), flash)
	case own.Image != peer.Image:
		return differ("image", "version "+own.Image, peer.Image, flash)
	case own.Kernel != peer.Kernel:
		return differ("kernel", own.Kernel, peer.Kernel, flash+", and boot both")
	case own.CPU != peer.CPU:
		return differ("CPU", own.CPU, peer.CPU, "a pair needs two of the same model")
	case own.Microcode != peer.Microcode:
		return differ("CPU's microcode", own.Microcode, peer.Microcode, "give both the same firmware")
	}
	return differ("CPU's set of features", own.Leaves, peer.Leaves, "give both the same firmware and settings")
}

// maxTrait is how much of a trait a line for people shows, in bytes.
const maxTrait = 96

// plain makes a short text for people of what a host says of itself.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s[:min(len(s), maxTrait)])
	if s == "" {
		return "unknown"
	}
	return s
}

// refusedError says why a state transfer can't be taken from that peer. The peer
// is told.
type refusedError string

func (e refusedError) Error() string { return string(e) }

// refusal is the last state transfer that was refused, on either side. What is
// compared doesn't change while a process lives, so it holds between these two
// processes for good: the sender treats the other one as a host without a link,
// and the VM runs alone. Another image, kernel or processor comes with another
// process, and so with another incarnation.
type refusal struct {
	peer uint64 // incarnation at the other end; 0: none was refused
	line string
}

// refuse turns a state transfer down, and tells people once.
func (p *Process) refuse(peer uint64, line string) error {
	now := refusal{peer, line}
	p.mu.Lock()
	told := p.refused == now
	p.refused = now
	p.mu.Unlock()
	if !told {
		p.note(line)
	}
	return refusedError(line)
}

// turnedDown notes that the peer has closed the stream on this host's state
// transfer, which says why.
func (p *Process) turnedDown(peer uint64, why error) {
	line := "state transfer: " + why.Error()
	p.mu.Lock()
	p.refused = refusal{peer, line}
	p.mu.Unlock()
	p.note(line)
}

// unwanted says that the process with that incarnation refused a state transfer.
func (p *Process) unwanted(peer uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refused.peer == peer
}
