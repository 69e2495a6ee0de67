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

// tend looks for damage of the volume's metadata now and then, and puts right what an undamaged copy makes up for. Where
// none does, it says so; then a person has to decide. What an update under way looks like is told apart by a second look.
func (d *instance) tend(ctx context.Context, v *volume.Volume) {
	now := time.Now()
	if now.Sub(d.tended) < tendEvery && d.suspect == nil {
		return
	}
	d.tended = now
	before := d.suspect
	d.suspect = nil
	h, err := volume.Inspect(ctx, v.Blocks())
	if err != nil || h.Locked != "" {
		return // refresh tells the first; the second passes
	}
	found := map[string]bool{}
	for _, p := range h.Pieces {
		if p.Fault == "" {
			continue
		}
		line := fmt.Sprintf("volume's %s (block %d): %s", p.Name, p.LBA, api.OneLine(p.Fault))
		found[line] = p.Repairable
	}
	repair := len(found) > 0
	for line, repairable := range found {
		if _, seen := before[line]; !seen {
			d.suspect = found // until the next look
			return
		}
		repair = repair && repairable
		d.say("metadata "+line, line)
	}
	if !repair {
		return
	}
	if err := v.Repair(ctx); err != nil {
		d.say("repair", err.Error())
		return
	}
	for line := range found {
		d.event("", line+"; it was repaired from an undamaged copy")
	}
}
