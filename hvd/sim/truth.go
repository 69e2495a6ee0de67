package sim

import (
	"slices"

	"github.com/duet-ft/duet/hvd/lockstep"

	"github.com/duet-ft/duet/ftlink/pair"
)

// truth is what the world outside has seen of the VM, and which copy speaks
// for it now.
type truth struct {
	owner   *process
	guest   *guest // the owner's
	boot    uint64
	history []uint64                      // hash of each effect that has left or that the owner's state holds; 0: neither
	acked   [keyCount][clientCount]uint64 // the number of each client's newest write that it was told is done
	gone    []gone
}

// gone is the history of a secondary that went live or is no more: what it had
// acknowledged may leave its primary late, whoever is live then.
type gone struct {
	boot    uint64
	history []uint64
}

// knows is the hash of an effect in the VM's history, 0 if it isn't there.
func (t *truth) knows(e effect) uint64 {
	if e.boot != t.boot || e.n > uint64(len(t.history)) {
		return 0
	}
	return t.history[e.n-1]
}

// late says that a secondary that is gone knew an effect.
func (t *truth) late(e effect) bool {
	return slices.ContainsFunc(t.gone, func(s gone) bool {
		return s.boot == e.boot && e.n <= uint64(len(s.history)) && s.history[e.n-1] == e.hash
	})
}

// noteGone notes the history of a secondary that goes live or ends, up to the
// end of the log that it received.
func (w *World) noteGone(p *process) {
	if p.replica == nil || p.half {
		return
	}
	for !p.diverged {
		if do, err := p.replica.Step(); err != nil || do == lockstep.Wait {
			break
		}
	}
	w.truth.gone = append(w.truth.gone, gone{p.guest.boot, p.guest.history})
	// One that diverged knows what it received no better than its primary does.
	if g := w.truth.guest; p.diverged && w.level == lockstep.Received && g != nil {
		w.truth.gone = append(w.truth.gone, gone{g.boot, slices.Clone(g.history)})
	}
}

// checkLeaves follows an effect that leaves a process.
func (w *World) checkLeaves(p *process, e effect) {
	w.count.Effects++
	t := &w.truth
	known := t.knows(e)
	switch {
	case p == t.owner && known == e.hash:
		return
	case p != t.owner && t.late(e):
		// A packet that took long. If it is a write, it is fenced.
		w.count.Stale++
		return
	case p != t.owner:
		w.fail("%v lets effect %d of boot %d go, but %v is live and doesn't know it", p, e.n, e.boot, t.owner)
		return
	case known != 0:
		w.fail("%v lets effect %d go; it isn't the one that left before", p, e.n)
		return
	}
	for uint64(len(t.history)) < e.n {
		t.history = append(t.history, 0)
	}
	t.history[e.n-1] = e.hash
}

// checkGoLive follows a secondary that becomes the VM.
func (w *World) checkGoLive(p *process) {
	w.count.GoLives++
	g, t := p.guest, &w.truth
	if p.half || g == nil {
		w.fail("%v goes live half seeded", p)
		return
	}
	if g.boot != t.boot {
		w.fail("%v goes live with boot %d, the VM is at boot %d", p, g.boot, t.boot)
		return
	}
	if p.other {
		w.fail("%v goes live and has read other bytes than its primary", p)
		return
	}
	for i, hash := range t.history {
		if hash != 0 && (i >= len(g.history) || g.history[i] != hash) {
			w.fail("%v goes live and can't explain effect %d, which has left: it knows %d", p, i+1, len(g.history))
			return
		}
	}
	w.checkAcked(p, func(key int) record {
		if !g.slots[key].loaded { // it still boots, and will get what is on the disk
			return w.volume.data[key].newest()
		}
		return g.slots[key].record
	})
	if w.died > 0 {
		w.failovers = append(w.failovers, w.now-w.died)
		w.died = 0
	}
	w.noteGone(p)
	t.owner, t.guest, t.history = p, g, slices.Clone(g.history)
}

// givenTo says that the block gives the VM to a process, by a switchover.
func (w *World) givenTo(p *process) bool {
	b := w.blockNow()
	return b.Kind == pair.Pair && b.Owner == pair.HostID(10+p.host) && b.Seed == p.seed
}

// checkBoot follows a boot from the disk.
func (w *World) checkBoot(p *process, boot uint64) {
	w.count.Boots++
	if w.single && w.count.Boots > 1 {
		w.fail("%v boots the VM anew: one fault at a time lost its state", p)
	}
	w.checkAcked(p, func(key int) record { return w.volume.data[key].newest() })
	w.truth.owner, w.truth.guest, w.truth.boot, w.truth.history = p, p.guest, boot, nil
}

func (w *World) checkAcked(p *process, has func(key int) record) {
	for key, acked := range w.truth.acked {
		if r := has(key); r.behind(record{writes: acked}) {
			w.fail("%v goes live with %v for key %d, but clients were told that %v are done", p, r, key, acked)
		}
	}
}

// checkLanding follows a write that takes effect on the disk.
func (w *World) checkLanding(p *process, g *guest, key int, r record) {
	if p != w.truth.owner || g != w.truth.guest {
		w.fail("a write of %v lands (key %d, %v) while %v is live", p, key, r, w.truth.owner)
	}
	if had := w.volume.data[key].newest(); r.behind(had) {
		w.fail("a write of %v takes key %d back from %v to %v", p, key, had, r)
	}
}

// checkGates follows a gate that was opened.
func (w *World) checkGates() {
	open := 0
	for _, p := range w.hosts {
		if p != nil && p.mode == pair.GateOpen {
			open++
		}
	}
	if open > 1 {
		w.fail("both copies' effects leave at once")
	}
}

// protected returns the primary and the secondary, nil for what isn't there.
func (w *World) protected() (live, standby *process) {
	for _, p := range w.hosts {
		switch {
		case p == nil:
		case p.machine.Role() == pair.Primary:
			live = p
		case p.machine.Role() == pair.Secondary:
			standby = p
		}
	}
	return live, standby
}

// checkUnprotected follows a VM that a user has wanted without a secondary for long,
// in a repaired world. Then it gets one again.
func (w *World) checkUnprotected() {
	alone, standby := 0, 0
	for _, p := range w.hosts {
		switch {
		case p == nil:
		case p.machine.Role() == pair.Alone:
			alone++
		case p.machine.Role() == pair.Standby:
			standby++
		}
	}
	if alone != 1 || standby != 1 {
		w.fail("a user wants no secondary, and there are %v and %v", w.hosts[0], w.hosts[1])
	}
	w.unprotect(false)
}

// checkEnd looks at what the repaired world made of itself.
func (w *World) checkEnd() {
	live, standby := w.protected()
	if live == nil || standby == nil {
		w.fail("not protected at the end: %v, %v, %v", w.hosts[0], w.hosts[1], w.blockNow())
		return
	}
	for i, c := range w.clients {
		if c.lastReply < w.now-repairTime/3 {
			w.fail("client %d got no reply since %v", i, c.lastReply)
		}
	}
	w.checkAcked(live, func(key int) record { return live.guest.slots[key].record })
	w.checkClients()
}
