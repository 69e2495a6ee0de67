package vmproc

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/machine"
)

// traits are what both hosts must have in common for one to follow the other.
// They travel in the header of a state transfer.
type traits struct {
	Log    int    `json:"log"`    // event.Version
	Image  string `json:"image"`  // fingerprint of this program
	CPU    string `json:"cpu"`    // the processor's name
	Leaves string `json:"leaves"` // machine.CPU's fingerprint
}

// hostTraits are this host's.
func hostTraits(sys *kvm.System) (traits, error) {
	cpu, err := machine.HostCPU(sys)
	if err != nil {
		return traits{}, err
	}
	image, err := programFingerprint()
	return traits{Log: event.Version, Image: image, CPU: cpu.Name, Leaves: cpu.Fingerprint}, err
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
// peer; "" if it can.
func mismatch(ownName string, own traits, peerName string, peer traits) string {
	const flash = "flash both hosts with the same image"
	begin := fmt.Sprintf("host %s can't protect the VM: ", ownName)
	peer.Image, peer.CPU, peer.Leaves = plain(peer.Image), plain(peer.CPU), plain(peer.Leaves)
	switch {
	case own.Log != peer.Log:
		return begin + fmt.Sprintf("its log format is version %d, host %s's is %d; %s", own.Log, peerName, peer.Log, flash)
	case own.Image != peer.Image:
		return begin + fmt.Sprintf("its image is version %s, host %s's is %s; %s", own.Image, peerName, peer.Image, flash)
	case own.Leaves == peer.Leaves:
		return ""
	case own.CPU == peer.CPU:
		return begin + fmt.Sprintf("its CPU has other features (%s) than host %s's (%s), though both are %s; give both the same firmware and settings",
			own.Leaves, peerName, peer.Leaves, own.CPU)
	}
	return begin + fmt.Sprintf("its CPU is %s, host %s's is %s; a pair needs two of the same model", own.CPU, peerName, peer.CPU)
}

// plain makes a short text for people of what a peer says.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s[:min(len(s), 48)])
	if s == "" {
		return "unknown"
	}
	return s
}

// refusedError says why a state transfer can't be taken, now or later. The peer
// is told.
type refusedError string

func (e refusedError) Error() string { return string(e) }

// refuseAgain is the pause between two state transfers to a peer that refuses
// them, and between two lines about that.
const refuseAgain = time.Minute

// refusal is the last state transfer that was refused, on either side.
type refusal struct {
	peer uint64 // incarnation at the other end
	line string
	at   time.Time
}

// repeats says that this refusal was told already, not long before now.
func (r refusal) repeats(peer uint64, line string, now time.Time) bool {
	return r.peer == peer && r.line == line && now.Sub(r.at) < refuseAgain
}

// wait is how long after now the next transfer to peer has to wait.
func (r refusal) wait(peer uint64, now time.Time) time.Duration {
	if r.peer != peer {
		return 0
	}
	return max(0, refuseAgain-now.Sub(r.at))
}

// refuse turns a state transfer down. It tells people once and then, while the
// same peer tries again, once in a while.
func (p *Process) refuse(peer uint64, line string) error {
	now := time.Now()
	p.mu.Lock()
	told := p.refused.repeats(peer, line, now)
	if !told {
		p.refused = refusal{peer, line, now}
	}
	p.mu.Unlock()
	if !told {
		p.note(line)
	}
	return refusedError(line)
}

// turnedDown notes that the peer has closed the stream on this host's state
// transfer, which says why.
func (p *Process) turnedDown(peer uint64, why error) {
	p.mu.Lock()
	p.refused = refusal{peer, why.Error(), time.Now()}
	p.mu.Unlock()
	p.note("state transfer: " + why.Error())
}

// holdSeed is how long a state transfer to peer has to wait, because the peer
// refused the last one.
func (p *Process) holdSeed(peer uint64) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refused.wait(peer, time.Now())
}
