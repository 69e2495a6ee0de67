package machine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/lockstep"
)

// What two copies compare beside their exits: a window that moves over memory
// with the guest's clock, and now and then the CPU and the devices.
const (
	// sweepCycle is how long the window takes for all of memory, in guest time.
	// A minute is promised.
	sweepCycle = 50 * time.Second
	// sweepMost bounds the pages hashed at one input. A guest that sleeps for
	// long between two owes the rest to the next ones.
	sweepMost = 2048
	// digestEvery is how often the hashes are compared, in guest time.
	digestEvery = time.Second
)

// Sweep is where the memory window stands. It moves at inputs that move the
// guest's clock, so it is at the same place in both copies.
type Sweep struct {
	Next int    `json:"next"` // the next page
	At   uint64 `json:"at"`   // guest time that is paid for, ns

	from     int    // first page since the last digest
	pages    int    // how many since then
	hash     uint64 // of them
	digested uint64 // guest time of the last digest
	compared uint64 // pages whose hash was in a digest
}

// restart begins a new hash where the window stands.
func (s *Sweep) restart(now uint64) {
	s.compared += uint64(s.pages)
	s.from, s.pages, s.hash = s.Next, 0, 0
	s.digested = now
}

// share is how many of all pages are due at now, and the time that pays for.
func (s *Sweep) share(now uint64, all int, cycle time.Duration) (pages int) {
	if now <= s.At {
		return 0
	}
	// A clock that jumped owes one cycle at the most.
	s.At = max(s.At, now-min(now, uint64(cycle)))
	each := max(1, uint64(cycle)/uint64(all)) // ns a page
	n := min((now-s.At)/each, sweepMost)
	s.At += n * each
	return int(n)
}

// sweep moves the memory window up to the guest's clock.
func (m *Machine) sweep() {
	if !m.logged {
		return
	}
	s := &m.window
	all := m.Memory.Pages()
	var b [16]byte
	for range s.share(m.Clock(), all, m.cycle) {
		binary.LittleEndian.PutUint64(b[:], s.hash)
		binary.LittleEndian.PutUint64(b[8:], m.Memory.HashPage(s.Next))
		s.hash = xxh3.Hash(b[:])
		s.pages++
		if s.Next++; s.Next == all {
			s.Next = 0
		}
	}
}

// Compared is how many pages the memory window has compared so far: that of
// all of memory and more, and every page has been.
func (m *Machine) Compared() uint64 { return m.window.compared }

// DigestDue says that a recorded execution should have its digest compared.
func (m *Machine) DigestDue() bool {
	return m.logged && m.Clock()-m.window.digested >= uint64(m.compare)
}

// The parts of a digest, in this order, 4 bytes each: the low half of xxh3 over
//
//	memory   the pages that the window has passed since the last digest
//	cpu      registers, FPU and MSRs as in kvm.State, but for what has no
//	         meaning to the guest
//	devices  the board's state
var digestParts = [...]string{"memory", "cpu", "devices"}

// Digest is the state's digest at this position: the data of a Digest entry.
// Applying that entry compares it and begins the next one; a primary, which does
// so at once, computes it once.
func (m *Machine) Digest() ([]byte, error) {
	if m.digest != nil {
		return m.digest, nil
	}
	// An access that is still to be finished would change registers later.
	if err := m.cpu.Settle(); err != nil {
		return nil, err
	}
	var s kvm.State
	if err := m.cpu.State(&s); err != nil {
		return nil, err
	}
	s.XSAVE = withoutPointers(s.XSAVE)
	s.Regs.RFLAGS &^= steppedFlags
	b, err := m.Board.State()
	if err != nil {
		return nil, err
	}
	d := make([]byte, 0, 4*len(digestParts))
	for _, h := range [...]uint64{m.window.hash, xxh3.Hash(s.Append(nil)), xxh3.Hash(b)} {
		d = binary.LittleEndian.AppendUint32(d, uint32(h))
	}
	m.digest = d
	return d, nil
}

// withoutPointers clears what a processor may leave in the FPU's state as it
// likes: the last instruction's opcode and addresses, and which components it
// found in their initial state (AMD64 APM volume 2, 11.4 and 11.5).
func withoutPointers(x [4096]byte) [4096]byte {
	clear(x[6:24])
	clear(x[512:520])
	return x
}

// compareDigest is what applying a Digest entry does.
func (m *Machine) compareDigest(want []byte) error {
	got, err := m.Digest()
	if err != nil {
		return err
	}
	if len(want) != len(got) {
		return fmt.Errorf("a digest of %d bytes", len(want))
	}
	m.digest = nil
	var differ []string
	for i, part := range digestParts {
		if !bytes.Equal(got[4*i:4*i+4], want[4*i:4*i+4]) {
			differ = append(differ, part)
		}
	}
	s := m.window
	m.window.restart(m.Clock())
	if len(differ) == 0 {
		return nil
	}
	kind := strings.Join(differ, "+")
	detail := kind + " differs"
	if differ[0] == "memory" {
		detail = fmt.Sprintf("%s, among %d pages from page %#x on", detail, s.pages, s.from)
	}
	return m.diverged(kind, detail)
}

// diverged says that this copy isn't what the primary's is.
func (m *Machine) diverged(kind, detail string) error {
	return &lockstep.Divergence{Kind: kind, Position: m.pos, Detail: detail}
}
