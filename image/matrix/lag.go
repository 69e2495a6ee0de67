package matrix

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"slices"
	"time"
)

const (
	// maxLagMS is what an emulated primary keeps its secondary's lag under, by slowing itself down; a real one, 100 ms.
	maxLagMS = 1000
	// settleLag is how long the primary may take to find its speed.
	settleLag = 2 * time.Second
)

// work keeps the guest's processor busy for some 10 ms of an emulated host: a secondary of half the speed couldn't follow.
const work = `EVAL "for i=1,1000 do redis.sha1hex(tostring(i)) end" 0` + "\r\n"

// ahead is how many commands are under way: with one, the guest would wait for its answer to leave, as long as the lag is.
const ahead = 20

// burn has the guest's Redis compute without end, until ctx ends; done is closed then.
func (t *Trial) burn(ctx context.Context) (done chan struct{}, err error) {
	conn, err := t.rig.Dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	done = make(chan struct{})
	go func() {
		defer close(done)
		defer conn.Close()
		defer stop()
		in := bufio.NewReader(conn)
		for n := 0; ; n++ {
			if _, err := io.WriteString(conn, work); err != nil {
				return
			}
			if n < ahead {
				continue
			}
			if _, err := in.ReadString('\n'); err != nil {
				return
			}
		}
	}()
	return done, nil
}

// watchLag has the guest compute, and looks at the lag for a while. Of what is seen once the primary has found its speed, the median counts: a host
// on a shared core stands still now and then for longer than the limit.
func (c *course) watchLag(ctx context.Context, d time.Duration) error {
	busy, idle := context.WithCancel(ctx)
	burnt, err := c.burn(busy)
	defer func() {
		idle()
		if burnt != nil {
			<-burnt
		}
	}()
	if err != nil {
		return err
	}
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
	if after.Counters.Throttled == before.Counters.Throttled {
		return fmt.Errorf("the primary was never slowed down, and the secondary's lag was %.0f ms: nothing was tested", c.out.LagMS)
	}
	if c.out.LagMS > maxLagMS {
		return fmt.Errorf("the secondary's lag is %.0f ms, and the primary should keep it under %d ms", c.out.LagMS, maxLagMS)
	}
	return nil
}
