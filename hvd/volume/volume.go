package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// Volume is an open volume. Its methods may be called concurrently. Nothing is
// kept in memory: other hosts change the volume, too.
type Volume struct {
	b     Blocks
	id    GUID
	first uint64 // block of the partition "duet"
	host  string // for messages of other hosts

	// Timing of the lock; see the package comment.
	lease, steal, poll time.Duration
}

// Timing of the lock on the definitions.
const (
	lockLease = 20 * time.Second
	lockSteal = 60 * time.Second
	lockPoll  = 50 * time.Millisecond
)

// Extent is a range of blocks of the volume.
type Extent struct {
	FirstLBA uint64
	Blocks   uint64
}

// Open checks that the volume is formatted for Duet, and undamaged. ErrNotDuet
// says that it isn't. Where only the newest VM definitions are damaged, it
// returns the volume beside ErrDamaged, for Rollback.
func Open(ctx context.Context, b Blocks) (*Volume, error) {
	t, err := readTable(ctx, b)
	if err != nil {
		if errors.Is(err, errNoGPT) {
			return nil, ErrNotDuet
		}
		return nil, err
	}
	i := slices.IndexFunc(t.parts[:], func(p partition) bool { return p.typ == TypeMetadata })
	if i < 0 {
		return nil, ErrNotDuet
	}
	p := t.parts[i]
	blocks, bs := b.Capacity()
	if (p.last-p.first+1)*uint64(bs) < metadataSize {
		return nil, fmt.Errorf("volume's partition %q is too small: %w", p.name, ErrDamaged)
	}
	rec, err := readBytes(ctx, b, p.first*uint64(bs)+superblockAt, max(recordLen, uint64(bs)))
	if err != nil {
		return nil, err
	}
	s, err := decodeSuperblock(rec)
	if err != nil {
		return nil, err
	}
	if s.first != p.first || s.blockSize != uint32(bs) || s.blocks > blocks {
		return nil, fmt.Errorf("volume was formatted with %d blocks of %d bytes and has %d of %d now: %w", s.blocks, s.blockSize, blocks, bs, ErrDamaged)
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unnamed host"
	}
	v := &Volume{b: b, id: s.id, first: p.first, host: host, lease: lockLease, steal: lockSteal, poll: lockPoll}
	_, err = v.Definitions(ctx)
	return v, err
}

// ID identifies the volume; both hosts of a pair must see the same.
func (v *Volume) ID() GUID { return v.id }

// Blocks returns what the volume was opened on.
func (v *Volume) Blocks() Blocks { return v.b }

// lba turns an offset in the partition "duet" into a block of the volume.
func (v *Volume) lba(offset uint64) uint64 {
	_, bs := v.b.Capacity()
	return v.first + offset/uint64(bs)
}

// ArbiterLBA is the block that decides over the VM in a slot, 0 to 63. Its
// content belongs to the arbiter; zeros mean that it was never used.
func (v *Volume) ArbiterLBA(slot int) uint64 {
	if slot < 0 || slot >= MaxVMs {
		panic(fmt.Sprintf("volume: no arbiter block %d", slot))
	}
	return v.lba(arbiterAt + uint64(slot)*arbiterStride)
}

// Definitions returns the VMs, sorted by name.
func (v *Volume) Definitions(ctx context.Context) ([]Definition, error) {
	d, _, err := v.load(ctx)
	return d.vms, err
}

// Definition returns the VM with that name, or ErrNotFound.
func (v *Volume) Definition(ctx context.Context, name string) (Definition, error) {
	vms, err := v.Definitions(ctx)
	if err != nil {
		return Definition{}, err
	}
	for _, d := range vms {
		if d.Name == name {
			return d, nil
		}
	}
	return Definition{}, fmt.Errorf("VM %.40q %w on the volume", name, ErrNotFound)
}

// load returns the definitions that hold and the slot that they are in. An
// update that commits meanwhile can make the lock block look newer than the
// slots that were read a moment before, so a mismatch is looked at again.
func (v *Volume) load(ctx context.Context) (d definitions, slot int, err error) {
	for range 5 {
		var l lockRecord
		if d, slot, err = v.newest(ctx); errors.Is(err, ErrDamaged) {
			continue // may be half written right now
		} else if err != nil {
			return d, slot, err
		}
		if l, err = v.readLock(ctx); err != nil {
			return d, slot, err
		}
		if l.generation <= d.generation {
			return d, slot, nil
		}
		err = fmt.Errorf("VM definitions of generation %d on the volume are %w; those of generation %d are intact, and \"hvd volume rollback\" returns to them", l.generation, ErrDamaged, d.generation)
	}
	return d, slot, err
}

// newest returns the newest slot with good checksums.
func (v *Volume) newest(ctx context.Context) (best definitions, slot int, err error) {
	slot = -1
	var first error // of the slots that are damaged
	for i := range slotAt {
		d, err := v.readSlot(ctx, i)
		switch {
		case err != nil && !errors.Is(err, ErrDamaged):
			return best, -1, err
		case err != nil:
			first = err
		case slot < 0 || d.generation > best.generation:
			best, slot = d, i
		}
	}
	if slot < 0 {
		return best, slot, fmt.Errorf("both copies of the VM definitions on the volume are unreadable: %w", first)
	}
	return best, slot, nil
}

func (v *Volume) readSlot(ctx context.Context, i int) (definitions, error) {
	head := make([]byte, slotHeader)
	if err := v.b.Read(ctx, v.lba(slotAt[i]), head); err != nil {
		return definitions{}, err
	}
	n, err := slotLength(head)
	if err != nil {
		return definitions{}, err
	}
	all := make([]byte, roundUp(uint64(slotHeader+n), 4096))
	if err := v.b.Read(ctx, v.lba(slotAt[i]), all); err != nil {
		return definitions{}, err
	}
	d, err := decodeSlot(all)
	slices.SortFunc(d.vms, func(a, b Definition) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return d, err
}

// Disk returns where a VM's disk lies.
func (v *Volume) Disk(ctx context.Context, vm, disk string) (Extent, error) {
	d, err := v.Definition(ctx, vm)
	if err != nil {
		return Extent{}, err
	}
	i := slices.IndexFunc(d.Disks, func(k DiskDef) bool { return k.Name == disk })
	if i < 0 {
		return Extent{}, fmt.Errorf("disk %.40q of VM %q %w on the volume", disk, vm, ErrNotFound)
	}
	t, err := readTable(ctx, v.b)
	if err != nil {
		return Extent{}, err
	}
	p := t.find(partitionID(v.id, d.UUID, disk))
	if p == nil {
		return Extent{}, fmt.Errorf("partition of disk %q of VM %q %w in the volume's GPT: %w", disk, vm, ErrNotFound, ErrDamaged)
	}
	_, bs := v.b.Capacity()
	e := Extent{FirstLBA: p.first, Blocks: d.Disks[i].SizeBytes / uint64(bs)}
	if e.Blocks > p.last-p.first+1 {
		return Extent{}, fmt.Errorf("partition of disk %q of VM %q is smaller than the disk: %w", disk, vm, ErrDamaged)
	}
	return e, nil
}

// OpenDisk returns a VM's disk for reading and writing.
func (v *Volume) OpenDisk(ctx context.Context, vm, disk string) (*DiskIO, error) {
	e, err := v.Disk(ctx, vm, disk)
	if err != nil {
		return nil, err
	}
	return NewDiskIO(v.b, e)
}

func (t *table) find(id GUID) *partition {
	for i := range t.parts {
		if p := &t.parts[i]; p.id == id && p.typ != (GUID{}) {
			return p
		}
	}
	return nil
}

// readTable reads the GPT, or its backup when the first one is damaged.
// errNoGPT: neither is there.
func readTable(ctx context.Context, b Blocks) (*table, error) {
	blocks, bs := b.Capacity()
	if blocks < 2*(2+arrayBlocks(bs)) {
		return nil, errNoGPT
	}
	t, err := readTableAt(ctx, b, 1)
	if err == nil || isIOError(err) {
		return t, err
	}
	t, err2 := readTableAt(ctx, b, blocks-1)
	if err2 == nil {
		t.fromBackup = true
		return t, nil
	}
	if isIOError(err2) {
		return nil, err2
	}
	if errors.Is(err, errNoGPT) {
		err = err2
	}
	return nil, err
}

// isIOError says that the volume couldn't be read, which says nothing about
// what is on it.
func isIOError(err error) bool { return !errors.Is(err, ErrDamaged) && !errors.Is(err, errNoGPT) }

func readTableAt(ctx context.Context, b Blocks, at uint64) (*table, error) {
	blocks, bs := b.Capacity()
	p := make([]byte, bs)
	if err := b.Read(ctx, at, p); err != nil {
		return nil, err
	}
	h, err := decodeHeader(p, at, blocks)
	if err != nil {
		return nil, err
	}
	n := roundUp(uint64(h.entries)*gptEntryLen, uint64(bs))
	if h.entries != gptEntries || h.array+n/uint64(bs) > blocks {
		return nil, fmt.Errorf("GPT with %d entries at block %d: %w", h.entries, h.array, ErrDamaged)
	}
	array := make([]byte, n)
	if err := b.Read(ctx, h.array, array); err != nil {
		return nil, err
	}
	parts, err := decodeEntries(h, array)
	if err != nil {
		return nil, err
	}
	t := &table{disk: h.disk, blocks: blocks, blockSize: bs}
	copy(t.parts[:], parts)
	return t, t.check()
}

// writeTable writes the backup first: at each moment, one of the two is whole.
func writeTable(ctx context.Context, b Blocks, t *table) error {
	primary, backup := t.encode()
	if err := b.Write(ctx, t.blocks-uint64(len(backup)/t.blockSize), backup); err != nil {
		return err
	}
	if err := b.Sync(ctx); err != nil {
		return err
	}
	if err := b.Write(ctx, 0, primary); err != nil {
		return err
	}
	return b.Sync(ctx)
}
