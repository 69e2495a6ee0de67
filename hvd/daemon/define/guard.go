package define

import (
	"context"

	"github.com/duet-ft/duet/hvd/volume"
)

// guarded is a volume on which a keeper writes only while its hold is good.
type guarded struct {
	volume.Blocks
	h *Hold
}

// zeroing is one whose target fills blocks with zeros by itself.
type zeroing struct {
	guarded
	zero func(ctx context.Context, lba, n uint64) error
}

// Guard opens the volume anew for what the hold allows: writes fail when it couldn't be renewed for too long.
func (h *Hold) Guard(ctx context.Context, v *volume.Volume) (*volume.Volume, error) {
	g := guarded{v.Blocks(), h}
	if z, ok := v.Blocks().(interface {
		Zero(ctx context.Context, lba, n uint64) error
	}); ok {
		return v.Reopen(ctx, zeroing{g, z.Zero})
	}
	return v.Reopen(ctx, g)
}

// Write implements volume.Blocks.
func (g guarded) Write(ctx context.Context, lba uint64, p []byte) error {
	if err := g.h.Valid(); err != nil {
		return err
	}
	return g.Blocks.Write(ctx, lba, p)
}

// CompareAndWrite implements volume.Blocks.
func (g guarded) CompareAndWrite(ctx context.Context, lba uint64, old, new []byte) (bool, error) {
	if err := g.h.Valid(); err != nil {
		return false, err
	}
	return g.Blocks.CompareAndWrite(ctx, lba, old, new)
}

// Zero fills blocks with zeros.
func (z zeroing) Zero(ctx context.Context, lba, n uint64) error {
	if err := z.h.Valid(); err != nil {
		return err
	}
	return z.zero(ctx, lba, n)
}
