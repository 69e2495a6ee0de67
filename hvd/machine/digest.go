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
	"github.com/duet-ft/duet/hvd/mem"
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
	if m.logged {
		m.window.move(m.Clock(), m.Memory, m.cycle)
	}
}

// move hashes the pages that are due at now.
func (s *Sweep) move(now uint64, memory *mem.Memory, cycle time.Duration) {
	all := memory.Pages()
	var b [16]byte
	for range s.share(now, all, cycle) {
		binary.LittleEndian.PutUint64(b[:], s.hash)
		binary.LittleEndian.PutUint64(b[8:], memory.HashPage(s.Next))
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
//	clock    the guest's clock, which shows in nothing else until the guest reads it
//
// Logs of former images have digests without a clock.
var digestParts = [...]string{"memory", "cpu", "devices", "clock"}

const digestSize, noClock = 4 * len(digestParts), 4 * (len(digestParts) - 1)

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
	m.digest = digestOf(m.window.hash, xxh3.Hash(s.Append(nil)), xxh3.Hash(b), m.Clock())
	return m.digest, nil
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
	if len(want) != digestSize && len(want) != noClock {
		return fmt.Errorf("a digest of %d bytes", len(want))
	}
	m.digest = nil
	kind, detail := m.window.differs(got, want)
	m.window.restart(m.Clock())
	if kind == "" {
		return nil
	}
	return m.diverged(kind, detail)
}

// digestOf is a digest of hashes, and of a clock, ns.
func digestOf(memory, cpu, devices, clock uint64) []byte {
	d := make([]byte, 0, digestSize)
	for _, h := range [...]uint64{memory, cpu, devices, xxh3.Hash(binary.LittleEndian.AppendUint64(nil, clock))} {
		d = binary.LittleEndian.AppendUint32(d, uint32(h))
	}
	return d
}

// differs says which of want's parts differ in a digest, and what is known of that;
// kind is empty where they are equal.
func (s *Sweep) differs(got, want []byte) (kind, detail string) {
	var differ []string
	for i, part := range digestParts[:len(want)/4] {
		if !bytes.Equal(got[4*i:4*i+4], want[4*i:4*i+4]) {
			differ = append(differ, part)
		}
	}
	if len(differ) == 0 {
		return "", ""
	}
	kind = strings.Join(differ, "+")
	detail = kind + " differs"
	if differ[0] == "memory" {
		detail = fmt.Sprintf("%s, among %d pages from page %#x on", detail, s.pages, s.from)
	}
	return kind, detail
}

// diverged says that this copy isn't what the primary's is.
func (m *Machine) diverged(kind, detail string) error {
	return &lockstep.Divergence{Kind: kind, Position: m.pos, Detail: detail}
}
