package sim

import (
	"flag"
	"math"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
)

var hoursFlag = flag.Float64("sim.hours", 2, "simulated hours of heartbeats under load")

// tickOften is hvd/vmproc's.
const tickOften = 12 * time.Millisecond

// rival is a host of which only the role machine is simulated, and when it gets what.
type rival struct {
	m      *pair.Machine
	due    time.Duration // the next tick
	tickAt time.Duration // when it comes
	inbox  []arrival     // heartbeats on their way here
	answer []arrival     // answers of the volume
}

type arrival struct {
	at time.Duration
	in pair.Input
}

// jitters is a pair in lockstep whose heartbeats and ticks come late at random.
type jitters struct {
	t      *testing.T
	rng    *rand.Rand
	jitter float64 // standard deviation of how late a heartbeat comes and a tick is, in heartbeats and ticks
	hosts  [2]rival
	block  pair.Block
	alarms int // suspicions
}

// late draws a delay: half of a normal distribution.
func (j *jitters) late(of time.Duration) time.Duration {
	return time.Duration(math.Abs(j.rng.NormFloat64()) * j.jitter * float64(of))
}

// first is the index of what comes first, and when; -1 if there is nothing.
func first(list []arrival) (at time.Duration, i int) {
	at, i = math.MaxInt64, -1
	for n, a := range list {
		if a.at < at {
			at, i = a.at, n
		}
	}
	return at, i
}

func take(list *[]arrival, i int) pair.Input {
	l := *list
	in := l[i].in
	l[i] = l[len(l)-1]
	*list = l[:len(l)-1]
	return in
}

// play runs for so long. Nothing fails, so nobody must be suspected.
func (j *jitters) play(length time.Duration) {
	for now := time.Duration(0); now < length; {
		now = math.MaxInt64
		host, do := 0, func() pair.Input { return nil }
		for h := range j.hosts {
			r := &j.hosts[h]
			if r.tickAt < now {
				now, host = r.tickAt, h
				do = func() pair.Input {
					at := r.tickAt
					r.due += tickOften
					r.tickAt = max(at, r.due+j.late(tickOften))
					return pair.Tick{Now: at}
				}
			}
			for _, list := range []*[]arrival{&r.inbox, &r.answer} {
				if at, i := first(*list); at < now {
					now, host = at, h
					do = func() pair.Input { return take(list, i) }
				}
			}
		}
		j.step(host, now, do())
	}
}

func (j *jitters) step(host int, now time.Duration, in pair.Input) {
	r := &j.hosts[host]
	for _, o := range r.m.Step(in) {
		switch o := o.(type) {
		case pair.Send:
			to := &j.hosts[1-host]
			to.inbox = append(to.inbox, arrival{now + 200*time.Microsecond + j.late(heartbeat), pair.Received(o)})
		case pair.Arbiter:
			done := pair.ArbiterDone{Op: o.Op, Answer: pair.Current}
			if o.Kind == pair.Swap && o.Old == j.block {
				j.block, done.Answer = o.New, pair.Swapped
			}
			done.Block = j.block
			r.answer = append(r.answer, arrival{now + time.Millisecond, done})
		case pair.Fence:
			r.answer = append(r.answer, arrival{now + time.Millisecond, pair.FenceDone{}})
		case pair.StartSeed:
			to := &j.hosts[1-host]
			to.answer = append(to.answer, arrival{now + time.Millisecond, pair.SeedBegin(o)}, arrival{now + 100*time.Millisecond, pair.Seeded(o)})
		case pair.Gate:
			if o.Mode == pair.GateAcked {
				r.answer = append(r.answer, arrival{now, pair.Gated{}})
			}
		case pair.Event:
			if o.Kind == pair.AboutSuspicion {
				j.alarms++
			}
		}
	}
}

// newJitters makes a pair of which host a is the primary.
func newJitters(t *testing.T, seed uint64, jitter float64) *jitters {
	j := &jitters{t: t, rng: rand.New(rand.NewPCG(seed, 0x717e)), block: pair.Block{VM: vmID, Kind: pair.Free, Epoch: 1}}
	for h := range j.hosts {
		m, err := pair.New(pair.Config{Self: pair.HostID(10 + h), Peer: pair.HostID(11 - h), VM: vmID}, uint64(h)+1)
		if err != nil {
			t.Fatal(err)
		}
		j.hosts[h].m = m
	}
	for h := range j.hosts {
		j.step(h, 0, pair.Tick{})
		j.step(h, 0, pair.LinkUp{Incarnation: uint64(1-h) + 1})
	}
	j.step(0, 0, pair.Command{Verb: pair.Start})
	j.play(time.Second)
	if a, b := j.hosts[0].m.Role(), j.hosts[1].m.Role(); a != pair.Primary || b != pair.Secondary {
		t.Fatalf("a is %v, b is %v", a, b)
	}
	j.jitter = jitter
	return j
}

// falseAlarms is how often one of two healthy hosts suspected the other one, in so many hours on all processors.
func falseAlarms(t *testing.T, hours, jitter float64) (alarms int) {
	n := runtime.GOMAXPROCS(0)
	each := time.Duration(hours * float64(time.Hour) / float64(n))
	pairs := make([]*jitters, n)
	var all sync.WaitGroup
	for i := range pairs {
		pairs[i] = newJitters(t, uint64(i), jitter)
		all.Go(func() { pairs[i].play(time.Second + each) })
	}
	all.Wait()
	for _, j := range pairs {
		alarms += j.alarms
	}
	return alarms
}

// TestNoFalseFailovers: with heartbeats and ticks that come late by a random time, whose standard deviation is 40 % of their
// interval, no host ever suspects the other. -sim.hours=1000 is for long.
func TestNoFalseFailovers(t *testing.T) {
	begun := time.Now()
	alarms := falseAlarms(t, *hoursFlag, 0.4)
	t.Logf("%v hours in %v", *hoursFlag, time.Since(begun).Round(time.Millisecond))
	if alarms != 0 {
		t.Errorf("%d suspicions in %v hours, and nobody failed", alarms, *hoursFlag)
	}
	if falseAlarms(t, 0.05, 2.5) == 0 { // else the test can't fail
		t.Error("no suspicion although heartbeats come as late as 2.5 of their intervals")
	}
}
