package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/duet-ft/duet/hvd/api"
)

const (
	// killAfter and killWithin bound the random moment of a kill, counted from when the load is under way.
	killAfter  = 2 * time.Second
	killWithin = 8 * time.Second
	// killStream separates the numbers for kill times from others of the same seed.
	killStream = 1
)

// killTimes are how long the load runs before each kill. They follow from the seed alone.
func killTimes(seed uint64) [2]time.Duration {
	r := rand.New(rand.NewPCG(seed, killStream))
	var d [2]time.Duration
	for i := range d {
		d[i] = killAfter + time.Duration(r.Int64N(int64(killWithin-killAfter)))
	}
	return d
}

// rates are what a stretch of time cost.
type rates struct {
	ticks, exits, log float64 // in all
	resync            float64 // of log, what resyncs took
	seconds           float64
}

// errChanged says that the two looks are at different epochs: a secondary came or went.
var errChanged = errors.New("the pair changed while it was measured")

// between compares two looks at the same live copy.
func between(before, after api.VM, d time.Duration) (rates, error) {
	b, a := before.Counters, after.Counters
	if before.Epoch != after.Epoch || a.Ticks < b.Ticks || a.Exits < b.Exits || a.LogBytes < b.LogBytes ||
		a.ResyncBytes < b.ResyncBytes {
		return rates{}, fmt.Errorf("%w (epoch %d, then %d)", errChanged, before.Epoch, after.Epoch)
	}
	if a.Ticks == b.Ticks {
		return rates{}, fmt.Errorf("the guest's timer didn't tick within %v", d)
	}
	return rates{
		ticks: float64(a.Ticks - b.Ticks), exits: float64(a.Exits - b.Exits),
		log: float64(a.LogBytes - b.LogBytes), resync: float64(a.ResyncBytes - b.ResyncBytes), seconds: d.Seconds(),
	}, nil
}

// roundTrips are a delay as multiples of the link's round trip in ms; 0 if that isn't known.
func (d Delay) roundTrips(ms float64) Delay {
	if ms == 0 {
		return Delay{}
	}
	return Delay{d.Median / ms, d.P99 / ms}
}

// perUsed is what a state transfer sent, as a multiple of the guest's memory that held anything.
func perUsed(seed api.Seed) float64 {
	if seed.Used == 0 {
		return 0
	}
	return float64(seed.Bytes) / float64(seed.Used*pageSize)
}

// pageSize is a guest's, in bytes.
const pageSize = 4096

func (r rates) logPerTick() float64     { return r.log / r.ticks }
func (r rates) resyncPerTick() float64  { return r.resync / r.ticks }
func (r rates) exitsPerTick() float64   { return r.exits / r.ticks }
func (r rates) logPerSecond() float64   { return r.log / r.seconds }
func (r rates) ticksPerSecond() float64 { return r.ticks / r.seconds }

// perRequest is what a request cost beyond what the same ticks cost when idle: bytes of log, and exits.
func (r rates) perRequest(idle rates, requests int) (log, exits float64) {
	if requests == 0 {
		return 0, 0
	}
	n := float64(requests)
	return max(0, r.log-r.ticks*idle.logPerTick()) / n, max(0, r.exits-r.ticks*idle.exitsPerTick()) / n
}
