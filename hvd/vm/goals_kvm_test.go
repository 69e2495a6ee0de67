package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// What a recorded guest may cost, in counts, which don't depend on how fast the
// host is. BenchmarkGuest measures them, and more.
const (
	maxIdleExits    = 3.0  // a tick of Debian's 250 Hz
	maxIdleBytes    = 4.0  // of log
	maxRequestExits = 6.0  // of a request to Redis that writes nothing to the disk
	maxBootResyncs  = 30.0 // MB that the resyncs of a boot to Redis ship
)

// counts are an engine's counters at one moment.
type counts struct{ exits, ticks, bytes float64 }

func countsOf(e *Engine) counts {
	s := &e.Stats
	return counts{float64(s.Exits.Load()), float64(s.Ticks.Load()), float64(s.LogBytes.Load() - s.ResyncBytes.Load())}
}

func (c counts) since(before counts) counts {
	return counts{c.exits - before.exits, c.ticks - before.ticks, c.bytes - before.bytes}
}

// withinGoals measures what the guest's boot, which has just ended, took, an idle
// guest's ticks and its Redis's requests, and says which of them cost too much.
func withinGoals(ctx context.Context, rim *testRim, e *Engine) error {
	resyncs := float64(e.Stats.ResyncBytes.Load()) / 1e6
	if err := ticks(ctx, e, settle); err != nil {
		return err
	}
	before := countsOf(e)
	if err := ticks(ctx, e, settle); err != nil {
		return err
	}
	idle := countsOf(e).since(before)
	idleExits, idleBytes := idle.exits/idle.ticks, idle.bytes/idle.ticks
	var errs []error
	limit := func(what string, is, most float64) {
		fmt.Printf("%s: %.2f, at most %.0f\n", what, is, most)
		if is > most {
			errs = append(errs, fmt.Errorf("%s: %.2f, may be %.0f", what, is, most))
		}
	}
	limit("MB of resyncs of the boot", resyncs, maxBootResyncs)
	limit("exits of an idle tick", idleExits, maxIdleExits)
	limit("bytes of log of an idle tick", idleBytes, maxIdleBytes)

	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", rim.guest+":6379")
	if err != nil {
		return err
	}
	defer conn.Close()
	r := newRedis(conn)
	if _, err := r.do("CONFIG", "SET", "appendfsync", "no"); err != nil {
		return err
	}
	for _, args := range [][]string{{"GET", "k1"}, {"INCR", "n"}} {
		const requests = 200
		before := countsOf(e)
		for range requests {
			if _, err := r.do(args...); err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
		}
		busy := countsOf(e).since(before)
		limit("exits of a "+args[0], (busy.exits-busy.ticks*idleExits)/requests, maxRequestExits)
	}
	return errors.Join(errs...)
}

// ticks waits for so many of the guest's.
func ticks(ctx context.Context, e *Engine, n uint64) error {
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for end := e.Stats.Ticks.Load() + n; e.Stats.Ticks.Load() < end; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-look.C:
		}
	}
	return nil
}
