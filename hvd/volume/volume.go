package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// Volume is an open volume. Its methods may be called concurrently. Nothing is
// kept in memory: other hosts change the volume, too.
type Volume struct {
	b     Blocks
	id    GUID
	first uint64 // block of the partition "duet"
	host  string // for messages of other hosts

	onRepair func(line string) // may be nil

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

// Open checks that the volume is formatted for Duet. ErrNotDuet says that it
// isn't. Damage that another copy makes up for is no error: Inspect finds it,
// and Repair puts it right. Where only the newest VM definitions are damaged, it
// returns the volume beside ErrDamaged, for Rollback.
func Open(ctx context.Context, b Blocks) (*Volume, error) {
	t, err := readTable(ctx, b)
	if err != nil {
		if errors.Is(err, errNoGPT) {
			return nil, ErrNotDuet
		}
		return nil, err
	}
	p, err := t.metadata()
	if err != nil {
		return nil, err
	}
	s, err := readSuperblock(ctx, b, t, p)
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unnamed host"
	}
	v := &Volume{b: b, id: s.id, first: p.first, host: host, lease: lockLease, steal: lockSteal, poll: lockPoll}
	_, err = v.Definitions(ctx)
	return v, err
}

// OnRepair has f told, in one line, of each damaged piece of metadata that an
// update writes again on its way. Set it before use.
func (v *Volume) OnRepair(f func(line string)) { v.onRepair = f }

// Reopen opens the volume by another way to its blocks.
func (v *Volume) Reopen(ctx context.Context, b Blocks) (*Volume, error) {
	w, err := Open(ctx, b)
	if err == nil {
		w.onRepair = v.onRepair
	}
	return w, err
}

// repaired tells of a piece that was damaged and is good again.
func (v *Volume) repaired(piece string, fault error) {
	if v.onRepair != nil && fault != nil {
		v.onRepair(fmt.Sprintf("volume's %s was repaired from an undamaged copy; it was: %v", piece, fault))
	}
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

// Disk returns where a VM's disk lies, whether it is ready or not.
func (v *Volume) Disk(ctx context.Context, vm, disk string) (Extent, error) {
	e, _, err := v.disk(ctx, vm, disk)
	return e, err
}

func (v *Volume) disk(ctx context.Context, vm, disk string) (e Extent, k DiskDef, err error) {
	d, err := v.Definition(ctx, vm)
	if err != nil {
		return e, k, err
	}
	i := d.find(disk)
	if i < 0 {
		return e, k, fmt.Errorf("disk %.40q of VM %q %w on the volume", disk, vm, ErrNotFound)
	}
	t, err := readTable(ctx, v.b)
	if err != nil {
		return e, k, err
	}
	p := t.find(partitionID(v.id, d.UUID, disk))
	if p == nil {
		return e, k, fmt.Errorf("partition of disk %q of VM %q %w in the volume's GPT: %w", disk, vm, ErrNotFound, ErrDamaged)
	}
	_, bs := v.b.Capacity()
	e = Extent{FirstLBA: p.first, Blocks: d.Disks[i].SizeBytes / uint64(bs)}
	if e.Blocks > p.last-p.first+1 {
		return e, k, fmt.Errorf("partition of disk %q of VM %q is smaller than the disk: %w", disk, vm, ErrDamaged)
	}
	return e, d.Disks[i], nil
}

// OpenDisk returns a VM's disk for reading and writing. ErrNotReady: what it
// holds is no disk's content.
func (v *Volume) OpenDisk(ctx context.Context, vm, disk string) (*DiskIO, error) {
	e, k, err := v.disk(ctx, vm, disk)
	if err == nil {
		err = k.Ready(vm)
	}
	if err != nil {
		return nil, err
	}
	return NewDiskIO(v.b, e)
}
