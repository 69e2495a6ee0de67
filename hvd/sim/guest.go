package sim

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/lockstep"
)

// ioError is the status of a disk request that failed (virtio 1.2, section 5.2.6,
// VIRTIO_BLK_S_IOERR).
const ioError = 1

// effectKind is what an effect does.
type effectKind uint8

const (
	reply effectKind = iota // a packet to a client
	write                   // a disk write
)

// effect is something that a guest did to the world. n counts the effects of
// one boot, and hash covers the guest's whole history up to it: two effects
// with the same boot, n and hash came from the same execution.
type effect struct {
	boot    uint64
	n       uint64
	hash    uint64
	kind    effectKind
	op      op      // reply
	request request // write

	made time.Duration // by the host's clock
}

// guest is the simulated machine: a store of a few keys. It writes a value to
// its disk and replies when the write is done; its program is in store.go. Around that
// it mixes registers and memory, so that any difference in its inputs, their
// order or their positions changes all that comes after.
type guest struct {
	boot    uint64
	pos     uint64
	traps   uint64
	acc     uint64 // rolling hash: registers and fingerprint
	memory  [32]uint64
	now     uint64
	slots   []slot
	queue   []input   // that the guest has yet to handle
	work    int       // micro-operations until the head of queue is handled
	pending []request // that the disk has yet to complete
	issued  []request // not yet handed to the host
	ids     uint64
	effects []effect
	taken   []effect // by the last TakeEffects
	history []uint64 // hashes of all effects of this boot
	flipped uint64   // what a fault changed
}

// input is one that the guest has yet to handle.
type input struct {
	event.Entry
	done request // DiskDone: what was completed
}

// newGuest boots a guest: it reads the blocks of all keys first.
func newGuest(boot uint64) *guest {
	g := &guest{boot: boot, acc: mix(boot, 0x9e3779b97f4a7c15), slots: make([]slot, keyCount)}
	for k := range keyCount {
		g.submit(request{key: k, read: true})
	}
	return g
}

// clone is the state that a transfer carries.
func (g *guest) clone() *guest {
	c := *g
	c.slots = slices.Clone(g.slots)
	c.queue = slices.Clone(g.queue)
	c.pending = slices.Clone(g.pending)
	c.history = slices.Clone(g.history)
	c.issued, c.effects, c.taken = nil, nil, nil
	return &c
}

func mix(a, b uint64) uint64 {
	a ^= b
	a *= 0xff51afd7ed558ccd
	a ^= a >> 32
	a *= 0xc4ceb9fe1a85ec53
	return a ^ a>>29
}

func (g *guest) Position() uint64    { return g.pos }
func (g *guest) Fingerprint() uint64 { return g.acc }

// base is where a log that follows the present state starts.
func (g *guest) base() event.Base { return event.Base{Pos: g.pos, Now: g.now, Traps: g.traps} }

// busy says that the guest has something to do; else it waits for an input.
func (g *guest) busy() bool { return len(g.queue) > 0 }

// Run executes micro-operations until the guest exits by itself. Each may
// count as a trap.
func (g *guest) Run(stop uint64) (lockstep.Exit, error) {
	for {
		at := g.acc % uint64(len(g.memory))
		g.acc = mix(g.acc, g.memory[at]+g.pos)
		g.memory[at] = g.acc
		if g.acc&3 == 0 {
			g.traps++
			if g.traps == stop {
				g.pos++
				return lockstep.Exit{Kind: lockstep.Trapped, Traps: g.traps}, nil
			}
		}
		if g.work > 0 {
			g.work--
			continue
		}
		if len(g.queue) > 0 {
			head := g.queue[0]
			g.queue = append(g.queue[:0], g.queue[1:]...) // it is short, and stays where it is
			g.handle(head)
			if len(g.queue) > 0 {
				g.work = int(g.acc >> 60)
			}
		}
		g.pos++
		return lockstep.Exit{Kind: lockstep.Sync, Traps: g.traps}, nil
	}
}

// handle has the guest's program take an input.
func (g *guest) handle(in input) {
	switch in.Kind {
	case event.Frame:
		if o, ok := decodeOp(in.Data); ok && !g.booting() {
			g.operate(o)
		}
	case event.DiskDone:
		g.complete(in.done, in.Status, in.Data)
	}
}

// booting says that the guest still reads its disk.
func (g *guest) booting() bool {
	return slices.ContainsFunc(g.slots, func(s slot) bool { return !s.loaded })
}

func (g *guest) submit(r request) {
	g.ids++
	r.id = g.ids
	g.pending = append(g.pending, r)
	g.acc = mix(g.acc, r.id)
	if r.read {
		g.issued = append(g.issued, r)
		return
	}
	g.do(effect{kind: write, request: r})
}

func (g *guest) do(e effect) {
	e.boot, e.n = g.boot, uint64(len(g.history))+1
	g.acc = mix(g.acc, e.op.value+e.request.record.value+e.n)
	e.hash = g.acc
	g.history = append(g.history, e.hash)
	g.effects = append(g.effects, e)
}

var errMachine = errors.New("the simulated machine can't do that")

// Apply takes an input in: it changes registers at once and is handled when
// the guest runs.
func (g *guest) Apply(e event.Entry) error {
	g.acc = mix(g.acc, uint64(e.Kind)+e.ID+e.Now+uint64(e.Status)<<56)
	switch e.Kind {
	case event.Frame:
		if _, ok := decodeOp(e.Data); !ok {
			return fmt.Errorf("%w: frame of %d bytes", errMachine, len(e.Data))
		}
	case event.DiskDone:
		if n := len(e.Data); n != 0 && n != blockSize {
			return fmt.Errorf("%w: %d bytes from the disk", errMachine, n)
		}
	case event.Time:
		g.now = e.Now
		return nil
	default:
		return fmt.Errorf("%w: %v", errMachine, e.Kind)
	}
	e.Data = slices.Clone(e.Data)
	in := input{Entry: e}
	if e.Kind == event.DiskDone { // the disk completes it now, whenever the guest looks
		i := slices.IndexFunc(g.pending, func(r request) bool { return r.id == e.ID })
		if i < 0 {
			return nil
		}
		in.done = g.pending[i]
		g.pending = slices.Delete(g.pending, i, i+1)
	}
	g.queue = append(g.queue, in)
	if len(g.queue) == 1 {
		g.work = int(g.acc >> 60)
	}
	return nil
}

// TakeEffects returns the effects since it was called last. They stay what they are
// until it is called again.
func (g *guest) TakeEffects() []effect {
	e := g.effects
	g.effects, g.taken = g.taken[:0], e
	return e
}

// takeIssued returns the reads that the guest issued; those leave at once.
func (g *guest) takeIssued() []request {
	r := g.issued
	g.issued = nil
	return r
}

// flip is a fault: from here on the guest's execution is another one. A
// machine that a fault changed is still a sound one, only not a replica.
func (g *guest) flip(bits uint64) {
	g.acc ^= bits
	g.flipped = bits
}
