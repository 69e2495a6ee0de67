package vm

import (
	"context"

	"github.com/duet-ft/duet/hvd/locate"
	"github.com/duet-ft/duet/hvd/machine"
)

// locate has this thread, which is the one that runs the machine, find points;
// the function that it returns ends that. A primary goes on making them.
func (e *Engine) locate() (end func(), err error) {
	if err := e.m.Locate(e.cfg.Locator); err != nil {
		return nil, err
	}
	e.makePoints(e.primary != nil)
	return func() {
		// A counter that can't be closed would be one that isn't open.
		_ = e.m.Locate(locate.Locator{})
	}, nil
}

// points says whether a log that begins now has points.
func (e *Engine) points() bool { return e.cfg.Locator.Method != locate.None && !e.blind }

// makePoints says whether a kick ends at a point from here on, if it can. Such a
// stop is as good as a trap, so it comes as early.
func (e *Engine) makePoints(logged bool) {
	on := logged && e.points()
	e.m.MakePoints(on)
	e.kick.soon.Store(on)
}

// Blind says that the reader of the log that begins next can't find points
// between two exits, so that the log must have none; or that it can. A recording
// is read by hvd/playback, which can.
func (e *Engine) Blind(ctx context.Context, blind bool) error {
	return e.Do(ctx, func(*machine.Machine) error {
		e.blind = blind
		return nil
	})
}
