package matrix

import (
	"context"
	"fmt"
	"slices"
	"time"
)

const (
	// maxLagMS is what a primary keeps its secondary's lag under, by slowing itself down.
	maxLagMS = 100
	// settleLag is how long the primary may take to find its speed.
	settleLag = 2 * time.Second
)

// watchLag looks at the lag for a while. Of what is seen once the primary has found its speed, the median counts: a host
// on a shared core stands still now and then for longer than the limit.
func (c *course) watchLag(ctx context.Context, d time.Duration) error {
	from := time.Now()
	var lags []float64
	before, err := c.look(ctx, c.first)
	if err != nil {
		return err
	}
	after := before
	for time.Since(from) < d {
		if err := sleep(ctx, lookEvery); err != nil {
			return err
		}
		if after, err = c.look(ctx, c.first); err != nil {
			return err
		}
		if time.Since(from) > settleLag {
			lags = append(lags, after.LagMS)
		}
	}
	if len(lags) == 0 {
		return fmt.Errorf("the lag was never seen in %v", d)
	}
	slices.Sort(lags)
	c.out.LagMS = lags[len(lags)/2]
	c.log(fmt.Sprintf("lag while slowed: median %.0f ms, longest %.0f ms; slowed down %d times",
		c.out.LagMS, lags[len(lags)-1], after.Counters.Throttled-before.Counters.Throttled))
	if c.out.LagMS > maxLagMS {
		return fmt.Errorf("the secondary's lag is %.0f ms, and the primary should keep it under %d ms", c.out.LagMS, maxLagMS)
	}
	return nil
}
