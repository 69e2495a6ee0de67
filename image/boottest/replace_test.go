package boottest

import (
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/image/pairlab"
)

// replaceHost lets the secondary's host die for good, and another one take its place. The guest runs on all the while, and
// the fresh host protects it.
func (p *trial) replaceHost(t *testing.T) {
	primary := p.protected(t)
	victim := p.pair.Peer(primary)
	if _, err := p.pair.API(primary).ShowCode(p.ctx); err == nil || !strings.Contains(err.Error(), "which is alive and in session") {
		t.Errorf("a code while the partner lives: %v", err)
	}
	p.noteDivergences()
	if err := p.pair.Kill(victim); err != nil {
		t.Fatal(err)
	}
	p.until(t, "the primary to go on alone", func() (bool, string) {
		vm, err := p.look(primary)
		return err == nil && vm.Role == solo, describe(vm, err)
	})
	before, err := p.pair.API(primary).Host(p.ctx)
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := p.pair.Replace(p.ctx, victim); err != nil {
		t.Fatal(err)
	}
	t.Logf("host %s was replaced and paired (%.1f s)", victim, time.Since(begin).Seconds())
	if got := p.protected(t); got != primary {
		t.Errorf("the guest runs on host %s, want %s", got, primary)
	}
	after, err := p.pair.API(victim).Host(p.ctx)
	if err != nil || after.Peer != primary || before.Peer != victim {
		t.Errorf("the fresh host: %+v, %v", after, err)
	}
	if _, err := p.pair.API(primary).Unpair(p.ctx); err == nil || !strings.Contains(err.Error(), "VM "+pairlab.Guest+" is in lockstep") {
		t.Errorf("unpaired in lockstep: %v", err)
	}
	p.answered(t)
	p.alive(t)
	p.intact(t)
}
