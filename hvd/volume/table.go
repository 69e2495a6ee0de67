package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

func (t *table) find(id GUID) *partition {
	for i := range t.parts {
		if p := &t.parts[i]; p.id == id && p.typ != (GUID{}) {
			return p
		}
	}
	return nil
}

// metadata is the partition "duet".
func (t *table) metadata() (partition, error) {
	i := slices.IndexFunc(t.parts[:], func(p partition) bool { return p.typ == TypeMetadata })
	if i < 0 {
		return partition{}, ErrNotDuet
	}
	p := t.parts[i]
	if (p.last-p.first+1)*uint64(t.blockSize) < metadataSize {
		return p, fmt.Errorf("volume's partition %q is too small: %w", p.name, ErrDamaged)
	}
	return p, nil
}

// tables are both copies of the GPT. Where one has a fault, its table is nil.
type tables struct {
	first, backup       *table
	firstErr, backupErr error
}

// readTables reads both copies of the GPT. An error is one of access.
func readTables(ctx context.Context, b Blocks) (t tables, err error) {
	blocks, bs := b.Capacity()
	if blocks < 2*(2+arrayBlocks(bs)) {
		return tables{firstErr: errNoGPT, backupErr: errNoGPT}, nil
	}
	if t.first, t.firstErr = readTableAt(ctx, b, 1); t.firstErr != nil && isIOError(t.firstErr) {
		return t, t.firstErr
	}
	if t.backup, t.backupErr = readTableAt(ctx, b, blocks-1); t.backupErr != nil && isIOError(t.backupErr) {
		return t, t.backupErr
	}
	return t, nil
}

// use is the first table, or its backup when the first one is damaged. stale:
// one of both wants to be written again. errNoGPT: neither is there.
func (t tables) use() (_ *table, stale bool, err error) {
	switch {
	case t.first != nil:
		return t.first, t.backup == nil || *t.backup != *t.first, nil
	case t.backup != nil:
		return t.backup, true, nil
	case errors.Is(t.firstErr, errNoGPT):
		return nil, false, t.backupErr
	}
	return nil, false, t.firstErr
}

// readTable reads the GPT that holds.
func readTable(ctx context.Context, b Blocks) (*table, error) {
	t, err := readTables(ctx, b)
	if err != nil {
		return nil, err
	}
	use, _, err := t.use()
	return use, err
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
	if err := t.check(); err != nil {
		return nil, err
	}
	return t, nil
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

// superblockOf reads the superblock beside a GPT, or tells from the GPT what it
// must be where it is damaged: the partition's own GUID proves that the GPT's is
// the volume's. fault is the damage then.
func superblockOf(ctx context.Context, b Blocks, t *table, p partition) (s superblock, fault, err error) {
	blocks, bs := b.Capacity()
	rec := make([]byte, bs)
	if err := b.Read(ctx, p.first+superblockAt/uint64(bs), rec); err != nil {
		return s, nil, err
	}
	s, err = decodeSuperblock(rec)
	if err == nil && !isZero(rec[recordLen:]) {
		err = fmt.Errorf("volume's superblock is %w", ErrDamaged)
	}
	if err == nil {
		if s.first != p.first || s.blockSize != uint32(bs) || s.blocks > blocks {
			err = fmt.Errorf("volume was formatted with %d blocks of %d bytes and has %d of %d now: %w", s.blocks, s.blockSize, blocks, bs, ErrDamaged)
		}
		return s, nil, err
	}
	if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNotDuet) || p.id != partitionID(t.disk, "", "") {
		return s, nil, err
	}
	if errors.Is(err, ErrNotDuet) {
		err = fmt.Errorf("volume's superblock is %w: it was overwritten", ErrDamaged)
	}
	return superblock{blockSize: uint32(bs), blocks: blocks, id: t.disk, first: p.first}, err, nil
}

// readSuperblock is superblockOf without the fault.
func readSuperblock(ctx context.Context, b Blocks, t *table, p partition) (superblock, error) {
	s, _, err := superblockOf(ctx, b, t, p)
	return s, err
}
