package sim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/lockstep"
)

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
	boot   uint64
	n      uint64
	hash   uint64
	kind   effectKind
	client int
	id     uint64 // write: the request
	record record
}

// record is what a client stored last; one disk block holds one.
type record struct {
	seq   uint64
	value uint64
}

const recordSize = 16

func (r record) encode() []byte {
	b := make([]byte, 0, recordSize)
	b = binary.LittleEndian.AppendUint64(b, r.seq)
	return binary.LittleEndian.AppendUint64(b, r.value)
}

func decodeRecord(b []byte) record {
	return record{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])}
}

// request is a disk request that the guest waits for: a write of what the slot
// holds, or a read of the client's block while booting.
type request struct {
	id     uint64
	client int
	read   bool
	record record
}

// slot is what the guest keeps for one client.
type slot struct {
	record
	durable bool // it is on the disk
}

// guest is the simulated machine: a store with one value per client. It
// writes a value to its disk and replies when the write is done. Around that
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
	queue   []event.Entry // inputs that the guest has yet to handle
	work    int           // micro-operations until the head of queue is handled
	pending []request
	issued  []request // not yet handed to the host
	ids     uint64
	effects []effect
	history []uint64 // hashes of all effects of this boot
	flipped uint64   // what a fault changed
}

// newGuest boots a guest: it reads the blocks of all clients first.
func newGuest(boot uint64, clients int) *guest {
	g := &guest{boot: boot, acc: mix(boot, 0x9e3779b97f4a7c15), slots: make([]slot, clients)}
	for c := range clients {
		g.submit(request{client: c, read: true})
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
	c.issued, c.effects = nil, nil
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
			g.queue = g.queue[1:]
			g.handle(head)
			if len(g.queue) > 0 {
				g.work = int(g.acc >> 60)
			}
		}
		g.pos++
		return lockstep.Exit{Kind: lockstep.Sync, Traps: g.traps}, nil
	}
}

// handle is the guest's program.
func (g *guest) handle(e event.Entry) {
	switch e.Kind {
	case event.Frame:
		c := int(e.Data[0])
		r := decodeRecord(e.Data[1:])
		s := &g.slots[c]
		switch {
		case g.booting():
		case r.seq == s.seq+1:
			*s = slot{record: r}
			g.submit(request{client: c, record: r})
		case r.seq == s.seq && s.durable:
			g.do(effect{kind: reply, client: c, record: s.record})
		}
	case event.DiskDone:
		i := slices.IndexFunc(g.pending, func(r request) bool { return r.id == e.ID })
		if i < 0 {
			return
		}
		r := g.pending[i]
		g.pending = slices.Delete(g.pending, i, i+1)
		s := &g.slots[r.client]
		if r.read {
			*s = slot{record: decodeRecord(e.Data), durable: true}
			return
		}
		s.durable = true
		g.do(effect{kind: reply, client: r.client, record: s.record})
	}
}

// booting says that the guest still reads its disk.
func (g *guest) booting() bool {
	return slices.ContainsFunc(g.pending, func(r request) bool { return r.read })
}

// reading says that it still reads a client's block.
func (g *guest) reading(client int) bool {
	return slices.ContainsFunc(g.pending, func(r request) bool { return r.read && r.client == client })
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
	g.do(effect{kind: write, client: r.client, id: r.id, record: r.record})
}

func (g *guest) do(e effect) {
	e.boot, e.n = g.boot, uint64(len(g.history))+1
	g.acc = mix(g.acc, e.record.value+e.n)
	e.hash = g.acc
	g.history = append(g.history, e.hash)
	g.effects = append(g.effects, e)
}

var errMachine = errors.New("the simulated machine can't do that")

// Apply takes an input in: it changes registers at once and is handled when
// the guest runs.
func (g *guest) Apply(e event.Entry) error {
	g.acc = mix(g.acc, uint64(e.Kind)+e.ID+e.Now)
	switch e.Kind {
	case event.Frame:
		if len(e.Data) != 1+recordSize || int(e.Data[0]) >= len(g.slots) {
			return fmt.Errorf("%w: frame of %d bytes", errMachine, len(e.Data))
		}
	case event.DiskDone:
		if n := len(e.Data); n != 0 && n != recordSize {
			return fmt.Errorf("%w: %d bytes from the disk", errMachine, n)
		}
	case event.Time:
		g.now = e.Now
		return nil
	default:
		return fmt.Errorf("%w: %v", errMachine, e.Kind)
	}
	e.Data = slices.Clone(e.Data)
	g.queue = append(g.queue, e)
	if len(g.queue) == 1 {
		g.work = int(g.acc >> 60)
	}
	return nil
}

func (g *guest) TakeEffects() []effect {
	e := g.effects
	g.effects = nil
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
