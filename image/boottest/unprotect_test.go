package boottest

import (
	"testing"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/image/pairlab"
)

// unprotect has the guest run without a secondary, which the other host is told, and has it protected again. Clients write
// meanwhile.
func (p *trial) unprotect(t *testing.T) {
	from := p.protected(t)
	other := p.pair.Peer(from)
	if vm, err := p.pair.API(other).Unprotect(p.ctx, pairlab.Guest); err != nil || !vm.Unprotected {
		t.Fatalf("host %s is told: %+v, %v", other, vm, err)
	}
	p.until(t, "the secondary to be dropped", func() (bool, string) {
		live, ok, detail := p.alone()
		return ok && live == from, detail
	})
	p.answered(t)
	vm, err := p.look(from)
	switch {
	case err != nil:
		t.Error(err)
	case vm.Role != solo || !vm.Unprotected || vm.Protected:
		t.Errorf("host %s: %+v", from, vm)
	}
	if err := p.pair.API(from).Switchover(p.ctx, pairlab.Guest); err == nil {
		t.Error("a guest that isn't protected has changed hosts")
	}
	if _, err := p.pair.API(from).Protect(p.ctx, pairlab.Guest); err != nil {
		t.Fatal(err)
	}
	if now := p.protected(t); now != from {
		t.Errorf("host %s is primary, want %s", now, from)
	}
	list, err := p.pair.API(from).Events(p.ctx)
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	for _, e := range list {
		if e.VM == pairlab.Guest && e.Host != "" && e.Position > 0 && e.From != "" {
			told[e.Kind] = true
		}
	}
	for _, kind := range []string{api.EventCommand, api.EventArbiter, api.EventSeed} {
		if !told[kind] {
			t.Errorf("of %d events, none changes the role, has a position, and is about %s", len(list), kind)
		}
	}
	p.alive(t)
	p.intact(t)
}
