package sim

import (
	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/lockstep"
)

// still is a live guest that stands still for a switchover.
type still struct {
	op  uint64 // of the Pause; 0: the guest runs
	cut bool   // the log has ended
}

// batch is a piece of a log.
type batch struct {
	seed  pair.Seed
	lsn   uint64
	bytes []byte
}

// pauseGuest lets the guest stand still.
func (p *process) pauseGuest(op uint64) {
	p.still = still{op: op}
	p.standStill()
}

// standStill takes inputs at the guest's position. Once nothing of the guest's
// is under way, the log ends.
func (p *process) standStill() {
	if p.still.cut {
		return
	}
	p.live.Mark()
	p.sendLog()
	p.release()
	if p.gate.Held() > 0 || p.inflight > 0 && !p.w.bugs.pauseWithTasks {
		return
	}
	p.still.cut = true
	op, lsn := p.still.op, p.live.Log.LSN()
	if p.w.bugs.pauseUnexecuted {
		lsn = 0
	}
	p.w.after(0, func() { p.do(func() { p.step(pair.Paused{Op: op, LSN: lsn}) }) })
}

func (p *process) resumeGuest() {
	p.w.count.GivenUp++
	p.still, p.early = still{}, nil
	if p.live != nil {
		p.run()
	}
}

// register lets this host write.
func (p *process) register(op uint64) {
	p.w.volume.register(p, func(err error) { p.step(pair.Registered{Op: op, Err: err}) })
}

// yield makes the guest, which stands still, the replica of the one that takes
// over.
func (p *process) yield(seed pair.Seed) {
	p.w.count.Switchovers++
	early := p.early
	p.live, p.still, p.early, p.inflight, p.streaming = nil, still{}, nil, 0, false
	p.shut()
	p.seed, p.diverged, p.sealed, p.consuming = seed, false, false, false
	p.follow()
	p.acknowledge()
	for _, b := range early {
		p.receiveLog(b.seed, b.lsn, b.bytes)
	}
}

// shut gives the process a gate that lets nothing out.
func (p *process) shut() {
	p.gate = lockstep.Gate[effect]{Level: p.w.level}
	p.gate.Set(lockstep.Closed)
	p.mode = pair.GateClosed
}

// takeOver makes the replica the primary: its log begins here, on the stream
// that carried the one that it followed.
func (p *process) takeOver(seed pair.Seed) {
	p.w.count.TakeOvers++
	if p.half || p.guest == nil {
		p.w.fail("%v takes over half seeded", p)
		return
	}
	p.becomeLive()
	p.load.pace.Reset()
	p.seed, p.streaming = seed, p.stream != nil && p.stream == p.carrier
	p.gate = lockstep.Gate[effect]{Level: p.w.level}
	p.gate.Set(lockstep.Acked)
	p.mode = pair.GateAcked
}
