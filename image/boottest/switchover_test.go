package boottest

import (
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/image/pairlab"
)

// Roles of the two copies of a protected guest, by ftlink/pair's names.
const (
	leads, follows = "primary", "secondary"
	// switches is how often the guest changes hosts.
	switches = 4
)

// switchOver has the guest change hosts while clients write, there and back. No state is sent for it, and it is protected
// all the while.
func (p *trial) switchOver(t *testing.T) {
	from := p.protected(t)
	to := p.pair.Peer(from)
	if err := p.pair.API(to).Switchover(p.ctx, pairlab.Guest); err == nil || !strings.Contains(err.Error(), "it doesn't run here") {
		t.Errorf("asked where the guest doesn't run: %v", err)
	}
	for range switches {
		before, err := p.look(from)
		if err != nil {
			t.Fatal(err)
		}
		p.answered(t)
		p.load.Window()
		begin := time.Now()
		if err := p.pair.API(from).Switchover(p.ctx, pairlab.Guest); err != nil {
			t.Fatal(err)
		}
		took := time.Since(begin)
		p.until(t, "the roles to be exchanged", func() (bool, string) {
			a, errA := p.look(from)
			b, errB := p.look(to)
			return errA == nil && errB == nil && a.Role == follows && b.Role == leads,
				from + ": " + describe(a, errA) + "; " + to + ": " + describe(b, errB)
		})
		p.answered(t)
		w := p.load.Window()
		after, err := p.look(to)
		switch {
		case err != nil:
			t.Fatal(err)
		case after.Epoch != before.Epoch+1:
			t.Errorf("the block is at epoch %d, and was at %d: that was more than a switchover", after.Epoch, before.Epoch)
		case !after.Protected:
			t.Errorf("host %s took over, and isn't protected", to)
		}
		t.Logf("%s -> %s in %.0f ms (%s); a client waited %.0f ms at most",
			from, to, took.Seconds()*1000, p.lastOf(t, to, "stood still"), w.Longest.Seconds()*1000)
		p.primary = to
		from, to = to, from
	}
	p.alive(t)
	p.intact(t)
}

// lastOf is the last event of a host that has a text in it.
func (p *trial) lastOf(t *testing.T, name, text string) string {
	t.Helper()
	events, err := p.pair.API(name).Events(p.ctx)
	if err != nil {
		t.Fatal(err)
	}
	what := "no event tells"
	for _, e := range events {
		if strings.Contains(e.What, text) {
			what = e.What
		}
	}
	return what
}

// testFailover has the primary's copy dropped by a user's command.
func (p *trial) testFailover(t *testing.T) {
	from := p.protected(t)
	to := p.pair.Peer(from)
	p.noteDivergences()
	if err := p.pair.API(from).TestFailover(p.ctx, pairlab.Guest); err != nil {
		t.Fatal(err)
	}
	p.until(t, "the other host to take over", func() (bool, string) {
		vm, err := p.look(to)
		return err == nil && vm.Live, describe(vm, err)
	})
	p.answered(t)
	t.Log(from + ": " + p.lastOf(t, from, "tested the failover"))
	p.primary = to
	if now := p.protected(t); now != to {
		t.Errorf("host %s is primary, want %s", now, to)
	}
	p.alive(t)
	p.intact(t)
}

// drain has all VMs leave the primary's host, and come back.
func (p *trial) drain(t *testing.T) {
	from := p.protected(t)
	to := p.pair.Peer(from)
	before, err := p.look(to)
	if err != nil {
		t.Fatal(err)
	}
	h, err := p.pair.API(from).Drain(p.ctx)
	if err != nil || !h.Drained {
		t.Fatalf("host %s is told to be drained: %+v, %v", from, h, err)
	}
	p.until(t, "the guest to leave host "+from, func() (bool, string) {
		live, ok, detail := p.alone()
		return ok && live == to, detail
	})
	p.answered(t)
	p.alive(t)
	if err := p.pair.API(from).Start(p.ctx, pairlab.Guest); err != nil {
		t.Errorf("a start where the host is drained is answered by an event, and not by: %v", err)
	}
	if _, err := p.pair.API(from).Undrain(p.ctx); err != nil {
		t.Fatal(err)
	}
	p.primary = to
	if now := p.protected(t); now != to {
		t.Errorf("host %s is primary, want %s", now, to)
	}
	after, err := p.look(to)
	switch {
	case err != nil:
		t.Fatal(err)
	case after.Failover != nil && (before.Failover == nil || after.Failover.At != before.Failover.At):
		t.Errorf("host %s took over by a failover: %+v", to, after.Failover)
	case after.Seed == nil || after.Seed.Known == 0:
		t.Errorf("the copy that left has left no memory behind: %+v", after.Seed)
	default:
		t.Logf("seeded again: %d pages in %d bytes, %d were there", after.Seed.Pages, after.Seed.Bytes, after.Seed.Known)
	}
	p.intact(t)
}
