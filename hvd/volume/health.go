package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
)

// Piece is one piece of the volume's metadata, which has a copy or not.
type Piece struct {
	// Name is what people call it: "GPT backup".
	Name string
	// LBA is its first block.
	LBA uint64
	// Generation counts updates; of the definitions and the lock only.
	Generation uint64
	// Fault is what is wrong with it, one line; empty: nothing.
	Fault string
	// Repairable: Repair puts it right, from what is undamaged.
	Repairable bool
}

// Extents is a partition of the volume.
type Extents struct {
	Number int // from 1 on, as partitioning tools count
	Name   string
	Bytes  uint64
}

// LockName is the Piece that is the lock block.
const LockName = "lock block"

// Health is what Inspect finds.
type Health struct {
	ID      GUID
	Pieces  []Piece
	VMs     []Definition
	Parts   []Extents
	Free    uint64 // bytes that no partition takes
	Largest uint64 // bytes of the largest disk that could be made
	Locked  string // the host that changes the definitions right now
	// Err is why the definitions can't be used, nil if they can.
	Err error
}

// Damaged says whether any piece has a fault.
func (h *Health) Damaged() bool {
	for _, p := range h.Pieces {
		if p.Fault != "" {
			return true
		}
	}
	return false
}

// Inspect looks at every piece of metadata but the arbiter blocks, which are the
// arbiter's. It changes nothing. An error says that the volume isn't Duet's, or
// couldn't be read; damage is in Health. While another host makes an update,
// pieces of it may look damaged: that passes.
func Inspect(ctx context.Context, b Blocks) (*Health, error) {
	both, err := readTables(ctx, b)
	if err != nil {
		return nil, err
	}
	t, _, err := both.use()
	if errors.Is(err, errNoGPT) {
		return nil, ErrNotDuet
	}
	h := &Health{}
	if err := h.gpt(ctx, b, both, t); err != nil {
		return nil, err
	}
	if t == nil {
		h.Err = err
		return h, nil
	}
	p, err := t.metadata()
	if err != nil {
		return nil, err
	}
	s, fault, err := superblockOf(ctx, b, t, p)
	h.add("superblock", p.first, 0, errors.Join(fault, err), err == nil)
	if err != nil {
		h.Err = err
		return h, nil
	}
	h.ID = s.id
	v := &Volume{b: b, id: s.id, first: p.first}
	if err := h.definitions(ctx, v); err != nil {
		return nil, err
	}
	for i, p := range t.parts {
		if p.typ != (GUID{}) {
			h.Parts = append(h.Parts, Extents{i + 1, p.name, (p.last - p.first + 1) * uint64(t.blockSize)})
		}
	}
	h.Free, h.Largest = t.free()
	return h, nil
}

func (h *Health) add(name string, lba, generation uint64, fault error, repairable bool) {
	p := Piece{Name: name, LBA: lba, Generation: generation}
	if fault != nil {
		p.Fault, p.Repairable = fault.Error(), repairable
	}
	h.Pieces = append(h.Pieces, p)
}

// gpt looks at the protective MBR and both copies of the GPT; t is nil if none
// is good.
func (h *Health) gpt(ctx context.Context, b Blocks, both tables, t *table) error {
	blocks, _ := b.Capacity()
	fault, err := mbrFault(ctx, b)
	if err != nil {
		return err
	}
	h.add("protective MBR", 0, 0, fault, t != nil)
	h.add("GPT", 1, 0, both.firstErr, t != nil)
	if fault = both.backupErr; t != nil && t == both.first && both.backup != nil && *both.backup != *t {
		fault = errors.New("differs from the first: an update wasn't finished")
	}
	h.add("GPT backup", blocks-1, 0, fault, t != nil)
	return nil
}

// mbrFault says whether the protective MBR isn't ours.
func mbrFault(ctx context.Context, b Blocks) (fault, err error) {
	blocks, bs := b.Capacity()
	mbr, want := make([]byte, bs), (&table{blocks: blocks, blockSize: bs}).protectiveMBR()
	if err := b.Read(ctx, 0, mbr); err != nil {
		return nil, err
	}
	if !bytes.Equal(mbr, want) {
		fault = errors.New("isn't what Duet writes")
	}
	return fault, nil
}

// definitions looks at the lock and both copies of the definitions.
func (h *Health) definitions(ctx context.Context, v *Volume) error {
	d, slot, loadErr := v.load(ctx)
	h.Err = loadErr
	s, err := v.readSlots(ctx)
	if err != nil {
		return err
	}
	good := loadErr == nil
	if good {
		h.VMs = d.vms
	}
	lockFault := s.lockErr
	if s.lockErr == nil && s.lock.nonce != (GUID{}) {
		h.Locked = s.lock.owner
	} else if good && s.lockErr == nil && s.lock.generation < s.copies[slot].generation {
		lockFault = fmt.Errorf("volume's lock block is an older one, of generation %d", s.lock.generation)
	}
	h.add(LockName, v.lba(lockAt), s.lock.generation, lockFault, good)
	for i := range slotAt {
		fault := s.faults[i]
		if good && fault == nil && i != slot && s.copies[i].generation != s.copies[slot].generation {
			fault = fmt.Errorf("older than the other one, of generation %d: an update wasn't finished", s.copies[slot].generation)
		}
		if good && fault == nil && i != slot && !sameDefinitions(s.copies[i], s.copies[slot]) {
			fault = errors.New("has the other one's generation, and not its content")
		}
		h.add(slotName(i), v.lba(slotAt[i]), s.copies[i].generation, fault, good)
	}
	return nil
}

func sameDefinitions(a, b definitions) bool {
	x, errX := a.encode(0)
	y, errY := b.encode(0)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// Repair writes again what Inspect found damaged, from the undamaged copies,
// under the lock. It fails where nothing says what the damaged piece held.
func (v *Volume) Repair(ctx context.Context) error {
	err := v.update(ctx, func(u *update) (err error) {
		u.rewrite = true
		if u.mbrFault, err = mbrFault(ctx, v.b); err != nil {
			return err
		}
		_, bs := v.b.Capacity()
		p, err := u.table.metadata()
		if err != nil {
			return err
		}
		s, fault, err := superblockOf(ctx, v.b, u.table, p)
		if err != nil || fault == nil {
			return err
		}
		u.superFault = fault
		block := make([]byte, bs)
		copy(block, s.encode())
		return v.b.Write(ctx, p.first, block)
	})
	if err != nil {
		return fmt.Errorf("repair of the volume's metadata: %w", err)
	}
	return nil
}
