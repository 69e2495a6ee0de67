package sim

import (
	"time"

	"github.com/duet-ft/duet/ftlink/arbiter"
	"github.com/duet-ft/duet/ftlink/pair"
)

// nextFault lets something break and arranges for the next.
func (w *World) nextFault() {
	if w.now >= faultTime {
		return
	}
	times := w.plan.times['f']
	if w.single {
		live, standby := w.protected()
		switch {
		case w.now <= w.sound || live == nil || standby == nil:
		case w.deaths:
			w.inject('f', func() { w.die(live.host) })
		default:
			w.inject('f', w.fault)
		}
		w.after(within(times, 20*time.Millisecond, 300*time.Millisecond), w.nextFault)
		return
	}
	for range 1 + times.IntN(2) {
		w.inject('f', w.fault)
	}
	w.after(within(times, 20*time.Millisecond, 2*time.Second), w.nextFault)
}

// lasts notes that what is broken now stays so for d, and that it takes a
// second more until all have noticed that it is repaired.
func (w *World) lasts(d time.Duration) time.Duration {
	w.sound = max(w.sound, w.now+d+time.Second)
	return d
}

func (w *World) fault() {
	host := w.rng.IntN(2)
	switch w.rng.IntN(13) {
	case 0, 1, 2:
		w.kill(host)
	case 3:
		if p := w.hosts[host]; p != nil && !p.paused {
			w.count.Pauses++
			d := w.lasts(w.between(10*time.Millisecond, 2*time.Second))
			w.did(faultFreeze, host, "%v freezes for %v", p, d)
			p.pause(d)
		}
	case 4, 5, 6:
		w.cutPaths()
	case 7:
		w.volumeFault(host)
	case 8:
		w.loseReplies()
	case 9:
		w.disturb(host)
	case 10:
		w.network.loss = [2]int{w.rng.IntN(30), w.rng.IntN(30)}
		w.network.lag = w.between(0, 100*time.Millisecond)
		w.did(faultLossy, both, "network   loses %d and %d percent, up to %v late", w.network.loss[0], w.network.loss[1], w.network.lag)
		w.after(w.lasts(w.between(100*time.Millisecond, 2*time.Second)), func() {
			w.network.loss, w.network.lag = [2]int{}, 0
		})
	case 11:
		if !w.single {
			w.rare(host)
		}
	case 12:
		w.volume.failing = 10 + w.rng.IntN(60)
		w.did(faultMedium, both, "volume    fails %d percent of reads and writes", w.volume.failing)
		w.after(w.lasts(w.between(100*time.Millisecond, 2*time.Second)), func() { w.volume.failing = 0 })
	}
}

// rare is what would end most histories too early: both lose power, or a user
// stops the VM.
func (w *World) rare(host int) {
	switch w.rng.IntN(4) {
	case 0:
		w.did(faultPower, both, "both lose power")
		w.kill(0)
		w.kill(1)
	case 1:
		if p := w.hosts[host]; p != nil {
			w.did(moveStop, host, "%v is told to stop", p)
			p.do(func() { p.step(pair.Command{Verb: pair.Stop}) })
		}
	}
}

// atTheWorstMoment lets something break just when a copy's role changes. When only
// one thing may break at a time, that is in the middle of a switchover.
func (w *World) atTheWorstMoment(role pair.Role) {
	times, often := w.plan.times['w'], 4
	if w.single {
		often = 25
	}
	moving := role == pair.Pausing || role == pair.Yielding
	if w.now >= faultTime || w.single && (!moving || w.now <= w.sound) || times.IntN(100) >= often {
		return
	}
	w.after(within(times, 0, 6*time.Millisecond), func() {
		if w.single && w.now <= w.sound {
			return
		}
		w.inject('w', func() {
			host := w.rng.IntN(2)
			switch w.rng.IntN(4) {
			case 0:
				w.cutPaths()
			case 1:
				w.loseReplies()
			default:
				w.kill(host)
			}
		})
	})
}

// kill ends a process, or its host with it, and starts a new one later.
func (w *World) kill(host int) {
	p := w.hosts[host]
	if p == nil {
		return
	}
	w.count.Kills++
	whole := w.chance(50)
	w.end(host, whole)
}

// die ends a host whose copy is live, and notes when.
func (w *World) die(host int) {
	w.died = w.now
	w.count.Kills++
	w.end(host, true)
}

// end ends a process, or its host, which starts again later.
func (w *World) end(host int, whole bool) {
	p := w.hosts[host]
	w.did(faultKill, host, "%v is killed%s", p, map[bool]string{true: ", and its host with it"}[whole])
	p.kill(whole)
	w.after(w.lasts(w.between(10*time.Millisecond, 3*time.Second)), func() {
		if w.hosts[host] == nil {
			w.startProcess(host)
		}
	})
}

// cutPaths breaks one or both paths, in one direction or both.
func (w *World) cutPaths() {
	w.count.Cuts++
	which, way := w.rng.IntN(4), w.rng.IntN(3)
	heal := w.lasts(w.between(20*time.Millisecond, 3*time.Second))
	for path := range pair.Path(2) {
		for sender := range 2 {
			if which < 2 && int(path) != which || way < 2 && sender != way {
				continue
			}
			w.did(faultCut, both, "network   path %v from %c is cut for %v", path, 'a'+sender, heal)
			w.network.cutPath(path, sender)
			w.after(heal, func() { w.network.healPath(path, sender) })
		}
	}
}

// volumeFault makes the volume slow, or out of reach for one host or both.
func (w *World) volumeFault(host int) {
	w.count.VolumeFaults++
	if !w.single && w.chance(20) { // while commands are on their way
		w.after(w.between(0, 300*time.Millisecond), func() { w.disturb(w.rng.IntN(2)) })
	}
	d := w.lasts(w.between(50*time.Millisecond, 3*time.Second))
	switch w.rng.IntN(4) {
	case 0:
		w.did(faultStall, host, "volume    stalls for %c for %v", 'a'+host, d)
		w.volume.stallUntil[host] = w.now + d
	case 1:
		w.did(faultStall, both, "volume    stalls for both for %v", d)
		w.volume.stallUntil = [2]time.Duration{w.now + d, w.now + d}
	case 2:
		w.did(faultUnreachable, host, "volume    is out of reach of %c for %v", 'a'+host, d)
		w.volume.unreachable[host] = true
	case 3:
		w.did(faultUnreachable, both, "volume    is out of reach of both for %v", d)
		w.volume.unreachable = [2]bool{true, true}
	}
	w.after(d, func() { w.volume.unreachable = [2]bool{} })
}

// loseReplies makes COMPARE AND WRITE unreliable. Something that has the block
// changed comes soon after.
func (w *World) loseReplies() {
	w.did(faultReplies, both, "volume    loses replies")
	w.volume.loseReplies = true
	w.after(w.lasts(w.between(200*time.Millisecond, 2*time.Second)), func() { w.volume.loseReplies = false })
	if w.chance(50) {
		w.after(w.between(0, 200*time.Millisecond), func() { w.kill(w.rng.IntN(2)) })
	} else {
		w.cutPaths()
	}
}

// disturb harms one copy: its execution differs, it crashes, or it is said to
// be too slow.
func (w *World) disturb(host int) {
	p := w.hosts[host]
	if p == nil {
		return
	}
	switch w.rng.IntN(3) {
	case 0:
		if p.replica != nil && !p.half {
			w.did(faultFlip, host, "%v: a register flips", p)
			w.lasts(time.Second) // until it is noticed
			p.guest.flip(w.rng.Uint64() | 1)
		}
	case 1:
		w.did(faultCrash, host, "%v: the copy crashes", p)
		p.do(func() { p.step(pair.Faulted{Fault: pair.Crashed}) })
	case 2:
		w.did(faultLag, host, "%v: the secondary is said to be too slow", p)
		p.do(func() { p.step(pair.Faulted{Fault: pair.Lagging}) })
	}
}

// repair ends all faults.
func (w *World) repair() {
	w.log("all is repaired")
	w.network.loss, w.network.lag = [2]int{}, 0
	for path := range pair.Path(2) {
		for sender := range 2 {
			w.network.healPath(path, sender)
		}
	}
	w.volume.unreachable, w.volume.loseReplies, w.volume.stallUntil, w.volume.failing = [2]bool{}, false, [2]time.Duration{}, 0
	w.unprotect(false)
	for h, p := range w.hosts {
		w.drain(h, false)
		if p == nil {
			w.startProcess(h)
		} else {
			p.thaw()
		}
	}
	w.network.dial()
}

// blockNow is what the arbiter block says.
func (w *World) blockNow() pair.Block {
	b, err := arbiter.Decode(w.volume.block)
	if err != nil {
		w.fail("%v", err)
	}
	return b
}
