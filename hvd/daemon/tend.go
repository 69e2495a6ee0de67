package daemon

import (
	"context"
	"fmt"
	"time"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/volume"
)

// tendEvery is how often the volume's metadata is looked at for damage.
const tendEvery = time.Minute

// tend looks for damage of the volume's metadata now and then, and has what an undamaged copy makes up for written again;
// the volume tells of that (OnRepair). Where no copy does, it says so: then a person has to decide.
func (d *instance) tend(ctx context.Context, v *volume.Volume) {
	if now := time.Now(); now.Sub(d.tended) < tendEvery {
		return
	}
	h := settled(ctx, v)
	if h == nil {
		return // at the next look
	}
	d.tended = time.Now()
	repair := h.Damaged()
	for _, p := range h.Pieces {
		if p.Fault == "" || p.Repairable {
			continue
		}
		repair = false
		line := fmt.Sprintf("volume's %s (block %d): %s", p.Name, p.LBA, api.OneLine(p.Fault))
		d.say("metadata "+p.Name, line)
	}
	if !repair {
		return
	}
	if err := v.Repair(ctx); err != nil {
		d.say("repair", err.Error())
	}
}

// settled looks at the metadata while nobody changes it; nil if that didn't work out. What an update under way looks like is
// told apart from damage by a second look: if no lock was seen and its generation is the same, there was none.
func settled(ctx context.Context, v *volume.Volume) *volume.Health {
	first, err := volume.Inspect(ctx, v.Blocks())
	if err != nil || first.Locked != "" {
		return nil
	}
	if !first.Damaged() {
		return first
	}
	second, err := volume.Inspect(ctx, v.Blocks())
	if err != nil || second.Locked != "" || !second.Damaged() || lockGeneration(first) != lockGeneration(second) {
		return nil
	}
	return second
}

// lockGeneration is the generation in the lock block.
func lockGeneration(h *volume.Health) uint64 {
	for _, p := range h.Pieces {
		if p.Name == volume.LockName {
			return p.Generation
		}
	}
	return 0
}
