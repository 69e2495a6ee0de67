//go:build faultinject

package machine

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/mem"
)

// toy is a machine whose CPU is made up, so that it runs without KVM: memory,
// devices, window and digest are the real ones, and lockstep runs it as it runs a
// Machine. Its program is random bytes of the first pages; it computes on the next
// ones, and never touches the rest: only the window sees what is there.
type toy struct {
	memory  *mem.Memory
	board   *board.Board
	regs    [8]uint64
	pc      uint64
	pos     uint64
	traps   uint64
	hash    uint64
	clock   uint64
	window  Sweep
	effects []uint64 // hashes
	made    []uint64 // all effects since the log began
}

const (
	toyPages  = 64
	toyCode   = 4 * mem.PageSize  // from 0 on
	toyData   = 24 * mem.PageSize // behind it
	toyCycle  = 64 * time.Millisecond
	toyDigest = 8 * time.Millisecond
	toyRun    = 200 // instructions that it makes without an exit at the most
)

// toyPorts are those of the serial port, the timer, the interrupt controllers and
// the clock.
var toyPorts = [...]uint16{0x20, 0x21, 0x40, 0x42, 0x43, 0x61, 0x70, 0x71, 0xa0, 0xa1, 0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd}

// newToy makes one on memory, which it fills if it is nil.
func newToy(memory *mem.Memory, r *rand.Rand) (*toy, error) {
	t := &toy{memory: memory}
	var err error
	if memory == nil {
		if t.memory, err = mem.New(toyPages * mem.PageSize); err != nil {
			return nil, err
		}
		for b := t.memory.Bytes(); len(b) > 0; b = b[8:] {
			binary.LittleEndian.PutUint64(b, r.Uint64())
		}
	}
	t.board, err = board.New(board.Config{
		Disks: []board.Disk{{Sectors: 1000, Serial: "toy"}}, MAC: [6]byte{2}, CID: 3, Wall: time.Unix(0, 0),
	}, t.memory)
	return t, err
}

func (t *toy) Position() uint64    { return t.pos }
func (t *toy) Fingerprint() uint64 { return t.hash }
func (t *toy) base() event.Base    { return event.Base{Pos: t.pos, Now: t.clock, Traps: t.traps} }

func (t *toy) TakeEffects() []uint64 {
	e := t.effects
	t.effects = nil
	return e
}

// Run makes instructions up to an exit.
func (t *toy) Run(stop uint64) (lockstep.Exit, error) {
	if t.board.Pending() {
		t.regs[0] ^= uint64(t.board.Ack()) << 8
	}
	for range toyRun {
		b := t.memory.Bytes()
		code := binary.LittleEndian.Uint64(b[t.pc%toyCode&^7:])
		t.pc += 8
		x, y := &t.regs[code>>3&7], t.regs[code>>6&7]
		data := b[toyCode+(y+code>>16)%toyData&^7:]
		switch code & 7 {
		case 0:
			*x = (*x ^ binary.LittleEndian.Uint64(data)) * 0x9e3779b97f4a7c15
		case 1:
			binary.LittleEndian.PutUint64(data, *x)
		case 2:
			*x = code >> 16
		case 3:
			*x += y>>7 ^ y
		case 4:
			if y&1 == 0 {
				t.pc = code >> 16
			}
		case 5:
			if t.traps++; t.traps == stop {
				t.exit(0)
				return lockstep.Exit{Kind: lockstep.Trapped, Traps: t.traps}, nil
			}
		default:
			if y&3 == 0 {
				t.exit(t.access(code, *x))
				return lockstep.Exit{Kind: lockstep.Sync}, nil
			}
		}
	}
	t.exit(0)
	return lockstep.Exit{Kind: lockstep.Sync}, nil
}

// access is one of a device, as code says.
func (t *toy) access(code, v uint64) uint64 {
	now := t.clock // as Machine.follow has it
	if d, armed := t.board.Deadline(); armed {
		now = min(now, d-1)
	}
	t.board.Advance(now)
	t.regs[2] ^= t.clock // it reads its time-stamp counter, too
	port, apic := toyPorts[code>>16%uint64(len(toyPorts))], 0xfee00000+code>>24&0x3f0
	switch code >> 9 & 3 {
	case 0:
		t.board.PortOut(port, 1, uint32(v&0xff))
	case 1:
		t.board.MMIOWrite(apic, 4, v&0x1ffff)
	case 2:
		t.regs[1] ^= t.board.MMIORead(apic, 4)
	default:
		t.regs[1] ^= uint64(t.board.PortIn(port, 1))
	}
	return code
}

func (t *toy) exit(code uint64) {
	t.pos++
	b := binary.LittleEndian.AppendUint64(nil, t.hash)
	for _, v := range append(t.regs[:], t.pc, t.traps, code) {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	for _, e := range t.board.TakeEffects() {
		h := xxh3.HashString(fmt.Sprint(e.Kind, e.Disk, e.Request, e.Data))
		t.effects, t.made = append(t.effects, h), append(t.made, h)
		b = binary.LittleEndian.AppendUint64(b, h)
	}
	t.hash = xxh3.Hash(b)
}

// Apply is Machine's, of the inputs that a toy gets.
func (t *toy) Apply(e event.Entry) error {
	switch e.Kind {
	case event.Time:
		t.clock = max(t.clock, e.Now)
	case event.Deadline:
		d, armed := t.board.Deadline()
		if !armed {
			return &lockstep.Divergence{Kind: "timer", Position: t.pos, Detail: "no timer is set"}
		}
		t.clock = max(t.clock, d)
		t.board.Advance(d)
	case event.Console:
		t.board.ConsoleInput(e.Data)
	case event.Frame:
		t.board.NetReceive(e.Data)
	case event.Digest:
		got, err := t.digest()
		if err != nil || len(e.Data) != digestSize {
			return fmt.Errorf("a digest of %d bytes; %w", len(e.Data), err)
		}
		kind, detail := t.window.differs(got, e.Data)
		t.window.restart(t.clock)
		if kind != "" {
			return &lockstep.Divergence{Kind: kind, Position: t.pos, Detail: detail}
		}
		return nil
	default:
		return fmt.Errorf("%v can't be applied", e.Kind)
	}
	t.window.move(t.clock, t.memory, toyCycle)
	return nil
}

func (t *toy) digest() ([]byte, error) {
	state, err := t.board.State()
	if err != nil {
		return nil, err
	}
	return digestOf(t.window.hash, xxh3.HashString(fmt.Sprint(t.regs, t.pc)), xxh3.Hash(state), t.clock), nil
}

func (t *toy) digestDue() bool { return t.clock-t.window.digested >= uint64(toyDigest) }

// begin is where a log begins, on both copies.
func (t *toy) begin() {
	t.window.restart(t.clock)
	t.window.At, t.made = t.clock, nil
}

// restore makes it equal to from, but for its memory.
func (t *toy) restore(from *toy) error {
	state, err := from.board.State()
	if err != nil {
		return err
	}
	t.regs, t.pc, t.pos, t.traps, t.hash, t.clock, t.window = from.regs, from.pc, from.pos, from.traps, from.hash, from.clock, from.window
	return t.board.Restore(state)
}

// whole is a hash of all that two copies must have in common.
func (t *toy) whole() (uint64, error) {
	state, err := t.board.State()
	s := fmt.Appendf(nil, "%v %d %d %d %d %d %s", t.regs, t.pc, t.pos, t.traps, t.hash, t.clock, state)
	return xxh3.Hash(append(s, t.memory.Bytes()...)), err
}
