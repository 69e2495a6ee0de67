package sim

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/duet-ft/duet/ftlink/arbiter"
	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/lockstep"
)

const (
	faultTime  = 9 * time.Second
	repairTime = 8 * time.Second
)

var vmID = pair.UUID{0xd0, 0xe7}

// Options say how a history is played.
type Options struct {
	Trace io.Writer // what happens, one line each; nil: nothing is written

	// OneAtATime lets the next fault come only when the last is repaired and the
	// VM is protected. Then the guest has to survive all of them.
	OneAtATime bool

	// Deaths has only the live copy's host die, and only a protected one, in a world in
	// which nothing is slow.
	Deaths bool

	// Link is the time that every message between the hosts takes, exactly, while
	// executing the log takes none; 0: both are drawn.
	Link time.Duration

	// Speed has the guest work all the time, and its secondary do so at this part of the
	// primary's speed; 0: a guest waits for its clients, and work takes no time.
	Speed float64

	// Tell is told of each event of the hosts' role machines; nil: nobody is.
	Tell func(host int, e pair.Event)

	// Keep are the only steps that take place; nil: all do. Vary is another draw of
	// everything else, delays for instance. Story has the steps told.
	Keep  []Step
	Vary  uint64
	Story bool

	bugs bugs
}

// bugs are mistakes in what surrounds the role machine, to prove that the
// checks find them.
type bugs struct {
	ackBeforeReceipt bool // the primary counts the log as held once it is sent
	noReadBack       bool // an arbiter error counts as success
	fenceAfterLive   bool // the fence is said to be done and comes later
	gateBeforeSolo   bool // a primary lets effects go when it asks for the block
	promoteHalf      bool // the first piece of a seeding counts as all of it
	noBarrier        bool // what left before the gate was set is forgotten
	ackAfterSeal     bool // a secondary that asks for the block goes on acknowledging
	forgetPending    bool // pending disk requests aren't reissued
	fenceKeepsTasks  bool // the fence doesn't abort what is on its way
	keepSession      bool // a halted guest's disk requests may still take effect
	blindSwap        bool // COMPARE AND WRITE doesn't compare
	refRaced         bool // a read is a reference although a write to it was pending
	refUngated       bool // ... although effects leave at once
	ackUnheld        bool // the log counts as received without what it refers to
	pauseWithTasks   bool // a switchover doesn't wait for disk requests under way
	pauseUnexecuted  bool // a switchover doesn't wait for the last of the log
	runOn            bool // the guest runs on when the block is asked for
	readsAtOnce      bool // answers to reads don't wait in the gate, for they change nothing
	neverRegistered  bool // a secondary says that it may write, and may not
	openUnprotected  bool // effects leave at once when a user wants no secondary
	neverConsumed    bool // a secondary never says that it has executed what it has
	ackUnexecuted    bool // a secondary says that it has executed what it holds
	errorUnlogged    bool // the log says that a disk request that failed has not
	forgetsUser      bool // a new process isn't told that a user wants no secondary
}

// World is one history.
type World struct {
	bugs   bugs
	single bool          // Options.OneAtATime
	sound  time.Duration // when the last fault is over
	trace  io.Writer
	rng    *rand.Rand
	now    time.Duration
	queue  queue
	order  uint64
	err    error
	count  Counters
	plan   plan

	level   lockstep.Level
	hosts   [2]*process // the process of each host; nil: none
	drained [2]bool

	// Of a history that measures.
	deaths    bool
	link      time.Duration
	speed     float64
	tell      func(host int, e pair.Event)
	died      time.Duration   // when the live copy's host died; 0: it didn't, or the other one is live
	failovers []time.Duration // from there until the other one is live
	delays    []time.Duration // of effects that waited for an acknowledgement

	able [2]time.Duration // when the host was last seen unable to go on with the VM by itself

	unprotected bool    // a user wants the VM to run without a secondary
	told        [2]bool // and the host knows

	volume  *volume
	network network
	clients [clientCount]*client
	truth   truth
}

// Run plays the history of a seed. The error says what broke and when.
func Run(seed uint64, o Options) (Counters, error) {
	w, err := run(seed, o)
	return w.count, err
}

func run(seed uint64, o Options) (*World, error) {
	w := newWorld(seed, o)
	w.play(faultTime + repairTime)
	return w, w.outcome(seed)
}

// outcome looks at a world whose history is over.
func (w *World) outcome(seed uint64) error {
	if w.err == nil {
		w.checkEnd()
	}
	if w.err != nil {
		return fmt.Errorf("seed %d, after %v: %w", seed, w.now, w.err)
	}
	return nil
}

// newWorld arranges the history of a seed.
func newWorld(seed uint64, o Options) *World {
	w := &World{
		deaths: o.Deaths, link: o.Link, speed: o.Speed, tell: o.Tell, bugs: o.bugs, single: o.OneAtATime, trace: o.Trace, rng: rand.New(rand.NewPCG(seed, 0xd0e7+o.Vary)), plan: newPlan(seed, o),
	}
	w.level = lockstep.Level(w.rng.IntN(2))
	if w.speed > 0 {
		w.level = lockstep.Verified
	}
	w.volume = &volume{w: w, data: make([]block, keyCount)}
	free := pair.Block{VM: vmID, Kind: pair.Free, Epoch: 1}
	w.volume.block = arbiter.Encode(free, arbiter.MinSize)
	w.network.w = w
	for h := range w.hosts {
		w.startProcess(h)
	}
	for c := range w.clients {
		w.clients[c] = newClient(w, c)
	}
	w.after(100*time.Millisecond, w.userStarts)
	w.after(within(w.plan.times['f'], 0, time.Second), w.nextFault)
	w.at(faultTime, w.repair)
	w.after(watchEvery, w.watch)
	if w.deaths {
		return w
	}
	w.after(within(w.plan.times['u'], time.Second, 3*time.Second), w.userMoves)
	w.at(faultTime+repairTime/3, func() { w.inject('e', w.lastWish) })
	return w
}

// userStarts is a user who wants the VM to run, and may have stopped it.
func (w *World) userStarts() {
	if p := w.hosts[w.rng.IntN(2)]; p != nil && w.blockNow().Kind == pair.Free {
		p.do(func() { p.step(pair.Command{Verb: pair.Start}) })
	}
	w.after(300*time.Millisecond, w.userStarts)
}

// userMoves is a user who has the VM change hosts, and tests the failover.
func (w *World) userMoves() {
	w.inject('u', func() {
		verb, kind := pair.Switchover, moveSwitchover
		if !w.single && w.chance(10) {
			verb, kind = pair.TestFailover, moveTest
		}
		host := w.rng.IntN(2)
		if !w.single && w.now < faultTime && w.chance(8) {
			w.drain(host, !w.drained[host])
			return
		}
		if !w.single && w.now < faultTime && w.chance(8) {
			w.unprotect(!w.unprotected)
			return
		}
		if p := w.hosts[host]; p != nil {
			w.did(kind, host, "%v is told: %s", p, faultNames[kind])
			p.do(func() { p.step(pair.Command{Verb: verb}) })
		}
	})
	if w.now < faultTime+repairTime/2 {
		w.after(within(w.plan.times['u'], 100*time.Millisecond, 2*time.Second), w.userMoves)
	}
}

// drain is a user who wants no copy on a host, or wants them again.
func (w *World) drain(host int, on bool) {
	if w.drained[host] == on {
		return
	}
	w.drained[host] = on
	verb := pair.Undrain
	if on {
		verb = pair.Drain
		w.did(moveDrain, host, "host      %c is drained", 'a'+host)
	}
	if p := w.hosts[host]; p != nil {
		p.do(func() { p.step(pair.Command{Verb: verb}) })
	}
}

// unprotect is a user who wants the VM to run without a secondary, or with one
// again. The hosts learn it by the VM's definition, which each looks at now and then.
func (w *World) unprotect(on bool) {
	if w.unprotected == on {
		return
	}
	w.unprotected = on
	kind := moveProtect
	if on {
		kind = moveUnprotect
	}
	w.did(kind, both, "user      has the VM %s", faultNames[kind])
	for h := range w.hosts {
		w.after(w.between(0, time.Second), func() { w.tellUnprotected(h) })
	}
}

// lastWish is a user who, in half of all histories, wants no secondary in the
// repaired world, for long enough.
func (w *World) lastWish() {
	if w.chance(50) {
		w.unprotect(true)
		w.after(repairTime/3, w.checkUnprotected)
	}
}

// tellUnprotected gives a host what the user wants now.
func (w *World) tellUnprotected(host int) {
	w.told[host] = w.unprotected
	if p := w.hosts[host]; p != nil {
		p.learnUnprotected(w.told[host])
	}
}

// play lets events happen until a time or until something breaks.
func (w *World) play(until time.Duration) {
	for w.err == nil && len(w.queue) > 0 && w.queue[0].at <= until {
		e := w.queue.pop()
		w.now = e.at
		w.count.Events++
		e.do()
	}
}

func (w *World) at(t time.Duration, do func()) {
	w.order++
	w.queue.push(happening{max(t, w.now), w.order, do})
}

func (w *World) after(d time.Duration, do func()) { w.at(w.now+d, do) }

// between draws a duration.
func (w *World) between(lo, hi time.Duration) time.Duration { return within(w.rng, lo, hi) }

func within(r *rand.Rand, lo, hi time.Duration) time.Duration {
	return lo + time.Duration(r.Int64N(int64(hi-lo)+1))
}

// chance is true in percent of 100 cases.
func (w *World) chance(percent int) bool { return w.rng.IntN(100) < percent }

// fail notes the first thing that broke.
func (w *World) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
	}
}

func (w *World) log(format string, args ...any) {
	if w.trace != nil {
		fmt.Fprintf(w.trace, "%9.4f %s\n", w.now.Seconds(), fmt.Sprintf(format, args...))
	}
}

// checkBlock follows a change of the arbiter block.
func (w *World) checkBlock(old, new []byte) {
	if bytes.Equal(old, new) {
		return
	}
	o, oerr := arbiter.Decode(old)
	n, nerr := arbiter.Decode(new)
	if err := errors.Join(oerr, nerr); err != nil {
		w.fail("the arbiter block is damaged: %v", err)
		return
	}
	w.log("block     %v -> %v", o, n)
	if n.Epoch != o.Epoch+1 {
		w.fail("epoch %d follows %d", n.Epoch, o.Epoch)
	}
}

// happening is something that happens at a time; those of one time happen in
// the order in which they were arranged.
type happening struct {
	at    time.Duration
	order uint64
	do    func()
}

// queue is a binary heap of what is to happen.
type queue []happening

func (q queue) less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].order < q[j].order
}

func (q *queue) push(h happening) {
	*q = append(*q, h)
	s := *q
	for i := len(s) - 1; i > 0; {
		up := (i - 1) / 2
		if !s.less(i, up) {
			return
		}
		s[i], s[up] = s[up], s[i]
		i = up
	}
}

func (q *queue) pop() happening {
	s := *q
	top, last := s[0], len(s)-1
	s[0] = s[last]
	s[last] = happening{}
	s = s[:last]
	*q = s
	for i := 0; ; {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < last; c++ {
			if s.less(c, least) {
				least = c
			}
		}
		if least == i {
			return top
		}
		s[i], s[least] = s[least], s[i]
		i = least
	}
}
