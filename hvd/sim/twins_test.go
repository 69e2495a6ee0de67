package sim

import (
	"testing"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
)

// playTogether plays several VMs' worlds, whose hosts are the same machines, until a time.
func playTogether(vms []*World, until time.Duration) {
	for {
		var next *World
		for _, w := range vms {
			if w.err == nil && len(w.queue) > 0 && w.queue[0].at <= until && (next == nil || w.queue[0].at < next.queue[0].at) {
				next = w
			}
		}
		if next == nil {
			for _, w := range vms {
				w.now = until
			}
			return
		}
		next.play(next.queue[0].at)
	}
}

// TestMixedRoles: two VMs with their primaries on different hosts survive the death of either host. The one whose primary died
// goes on at the other; the other one never stops.
func TestMixedRoles(t *testing.T) {
	for seed := uint64(1); seed <= 40; seed++ {
		var vms []*World
		for n := range uint64(2) {
			vms = append(vms, newWorld(2*seed+n, Options{Keep: []Step{}}))
		}
		at := 3 * time.Second
		for dies := range 2 {
			playTogether(vms, at)
			for n, w := range vms {
				live, standby := w.protected()
				if live == nil || standby == nil {
					t.Fatalf("seed %d: VM %d isn't protected: %v, %v (%v)", seed, n, w.hosts[0], w.hosts[1], w.err)
				}
				if live.host != n {
					live.do(func() { live.step(pair.Command{Verb: pair.Switchover}) })
				}
			}
			playTogether(vms, at+time.Second)
			lives := [2]int{vms[0].count.GoLives, vms[1].count.GoLives}
			for n, w := range vms {
				if live, _ := w.protected(); live == nil || live.host != n {
					t.Fatalf("seed %d: VM %d is at %v and %v, want its primary on host %c", seed, n, w.hosts[0], w.hosts[1], 'a'+n)
				}
				w.end(dies, true) // starts again after 10 ms to 3 s
			}
			playTogether(vms, at+2*time.Second)
			for n, w := range vms {
				went := w.count.GoLives - lives[n]
				if p := w.hosts[1-dies]; !p.machine.Role().Live() || went != map[bool]int{true: 1, false: 0}[n == dies] {
					t.Errorf("seed %d, host %c is dead: VM %d is %v on the other one, and went live %d times", seed, 'a'+dies, n, p, went)
				}
			}
			at += 6 * time.Second
		}
		playTogether(vms, faultTime+repairTime)
		for n, w := range vms {
			if err := w.outcome(2*seed + uint64(n)); err != nil || w.count.Boots != 1 {
				t.Errorf("VM %d: %v; %d boots", n, err, w.count.Boots)
			}
		}
	}
}
