package sim

import (
	"fmt"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/diskref"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/lockstep"
)

// process is what runs on a host for the VM: the role machine, and what
// carries out its outputs.
type process struct {
	w           *World
	host        int
	incarnation uint64
	session     uint64 // with the volume
	machine     *pair.Machine
	alive       bool
	ticks       func() // tick and clock, made once
	clocks      func()
	paused      bool
	deferred    []func() // while paused

	guest *guest
	half  bool // the guest's state isn't complete
	mode  pair.GateMode
	gate  lockstep.Gate[effect]
	seed  pair.Seed

	live      *lockstep.Primary[effect]
	still     still
	inflight  int     // disk requests of the live guest
	stream    *stream // nil: none
	carrier   *stream // of the present seeding and its log
	streaming bool    // live: the log goes to the secondary

	tracker diskref.Tracker
	keeper  diskref.Keeper
	holder  diskref.Holder
	scan    *event.Decoder // a second look at the log, for its references
	other   bool           // a reference was read that the volume has other bytes for

	early     []batch // log that came before this copy knew that it had yielded
	replica   *lockstep.Secondary[effect]
	load      load
	epoch     uint64                      // the newest that the machine knew
	executing *lockstep.Secondary[effect] // the replica for which a step is arranged
	unwanted  bool                        // it knows that a user wants no secondary
	consuming bool
	sealed    bool
	diverged  bool
}

const tickEvery = 25 * time.Millisecond

// String names the process in a trace: its host, incarnation and role.
func (p *process) String() string {
	return fmt.Sprintf("%c/%d (%v)", 'a'+p.host, p.incarnation, p.machine.Role())
}

// startProcess runs a new process on a host that has none.
func (w *World) startProcess(h int) {
	w.order++
	m, err := pair.New(pair.Config{
		Self: pair.HostID(10 + h), Peer: pair.HostID(11 - h), VM: vmID, Level: pair.Level(w.level),
		Grace: time.Second, VolumeCheck: 500 * time.Millisecond, VolumeStale: time.Second, Reseed: 300 * time.Millisecond,
	}, w.order)
	if err != nil {
		w.fail("%v", err)
		return
	}
	p := &process{w: w, host: h, incarnation: w.order, session: w.order, machine: m, alive: true}
	tick, clock := p.tick, p.clock
	p.ticks, p.clocks = func() { p.do(tick) }, func() { p.do(clock) }
	w.hosts[h] = p
	w.log("%v starts", p)
	p.tick()
	if w.drained[h] {
		p.step(pair.Command{Verb: pair.Drain})
	}
	if p.unwanted = w.told[h]; p.unwanted && !w.bugs.forgetsUser {
		p.learnUnprotected(true)
	}
	p.clock()
	if w.speed > 0 {
		p.startLoad()
	}
	w.network.dial()
}

// learnUnprotected tells the role machine whether a user wants no secondary.
func (p *process) learnUnprotected(on bool) {
	verb := pair.Protect
	if on {
		verb = pair.Unprotect
	}
	p.do(func() {
		if on && p.w.bugs.openUnprotected && p.live != nil {
			p.mode = pair.GateAcked // the check of two open gates shall not be what finds it
			p.gate.Set(lockstep.Open)
			p.release()
		}
		p.unwanted = on
		p.step(pair.Command{Verb: verb})
	})
}

// do runs a step of the process: never when it is dead, later when it is
// paused.
func (p *process) do(f func()) {
	switch {
	case !p.alive || p.w.err != nil:
	case p.paused:
		p.deferred = append(p.deferred, f)
	default:
		f()
	}
}

func (p *process) tick() {
	p.step(pair.Tick{Now: p.w.now})
	p.w.after(tickEvery, p.ticks)
}

// kill ends the process. When its host lives on, the other end of its stream
// is told.
func (p *process) kill(hostToo bool) {
	p.w.log("%v ends", p)
	p.alive = false
	p.w.noteGone(p)
	p.w.hosts[p.host] = nil
	if s := p.stream; s != nil && !hostToo {
		s.reset(p.host)
	}
}

func (p *process) pause(d time.Duration) {
	p.paused = true
	p.w.after(d, p.thaw)
}

func (p *process) thaw() {
	if !p.paused {
		return
	}
	p.w.log("%v thaws", p)
	p.paused = false
	deferred := p.deferred
	p.deferred = nil
	for _, f := range deferred {
		p.do(f)
	}
}

// step gives an input to the role machine and carries out what it says.
func (p *process) step(in pair.Input) {
	for _, o := range p.machine.Step(in) {
		if p.w.err == nil {
			p.carryOut(o)
		}
	}
	p.checkMachine()
}

func (p *process) carryOut(o pair.Output) {
	if s, ok := o.(pair.Send); ok {
		p.w.network.send(p, s)
		return
	}
	if a, ok := o.(pair.Arbiter); !ok || a.Kind == pair.Swap {
		p.w.log("%v %v", p, o)
	}
	switch o := o.(type) {
	case pair.Arbiter:
		p.arbitrate(o)
	case pair.Fence:
		p.fence()
	case pair.StartSeed:
		p.startSeed(o.Seed)
	case pair.EndSeed:
		p.endSeed(o.Seed)
	case pair.Gate:
		p.setGate(o.Mode)
	case pair.Consume:
		if p.w.bugs.neverConsumed {
			return
		}
		if p.half { // only by mistake
			p.step(pair.Consumed{})
			return
		}
		p.consuming = true
		p.execute()
	case pair.Seal:
		p.sealed = true
		if p.stream != nil && !p.w.bugs.ackAfterSeal {
			p.closeStream()
		}
	case pair.Register:
		p.register(o.Op)
	case pair.Pause:
		p.pauseGuest(o.Op)
	case pair.Resume:
		p.resumeGuest()
	case pair.Yield:
		p.yield(o.Seed)
	case pair.TakeOver:
		p.takeOver(o.Seed)
	case pair.Reissue:
		p.reissue()
	case pair.GoLive:
		p.goLive()
	case pair.Boot:
		p.boot(o.Epoch)
	case pair.Announce:
		p.w.network.claims = p.host
	case pair.Halt:
		p.halt()
	case pair.Event:
		p.note(o)
	}
}

// note counts the changes of role that a history met.
func (p *process) note(e pair.Event) {
	if p.w.tell != nil {
		p.w.tell(p.host, e)
	}
	if e.From == e.Role {
		return
	}
	p.w.atTheWorstMoment(e.Role)
	switch e.Role {
	case pair.Primary:
		p.w.count.Pairings++
	case pair.Seeding:
		p.w.count.Seedings++
		if p.unwanted {
			p.w.fail("%v makes a secondary, and a user wants none", p)
		}
	}
}

func (p *process) arbitrate(o pair.Arbiter) {
	if p.w.bugs.gateBeforeSolo && o.Kind == pair.Swap && o.Old.Kind == pair.Pair && p.live != nil {
		p.mode = pair.GateAcked // the check of two open gates shall not be what finds it
		p.gate.Set(lockstep.Open)
		p.release()
	}
	p.w.volume.arbitrate(p, o, func(d pair.ArbiterDone) { p.step(d) })
}

func (p *process) fence() {
	if p.w.bugs.fenceAfterLive {
		p.w.after(0, func() { p.do(func() { p.step(pair.FenceDone{}) }) })
		p.w.after(300*time.Millisecond, func() { p.w.volume.fence(p, func(error) {}) })
		p.w.volume.registered[p.host] = true
		return
	}
	p.w.volume.fence(p, func(err error) { p.step(pair.FenceDone{Err: err}) })
}

func (p *process) setGate(mode pair.GateMode) {
	p.mode = mode
	switch mode {
	case pair.GateOpen:
		p.gate.Set(lockstep.Open)
		p.w.checkGates()
	case pair.GateAcked:
		p.gate.Set(lockstep.Acked)
		lsn := p.live.Log.LSN()
		if p.w.bugs.noBarrier {
			lsn = 0
		}
		p.w.after(0, func() { p.do(func() { p.step(pair.Gated{LSN: lsn}) }) })
	case pair.GateClosed:
		p.gate.Set(lockstep.Closed)
	}
	p.release()
}

func (p *process) closeStream() {
	if s := p.stream; s != nil {
		p.stream = nil
		s.reset(p.host)
	}
}

// halt ends the guest. The next command to the volume comes in a new session,
// which ends what this guest issued.
func (p *process) halt() {
	p.w.count.Halts++
	p.w.noteGone(p)
	if !p.w.bugs.keepSession {
		p.w.order++
		p.session = p.w.order
	}
	p.guest, p.half, p.live, p.replica = nil, false, nil, nil
	p.streaming, p.consuming, p.sealed, p.diverged = false, false, false, false
	p.holder, p.other = diskref.Holder{}, false
	p.still, p.inflight, p.early = still{}, 0, nil
	p.shut()
}
