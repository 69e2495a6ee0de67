package boottest

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/appliance/agent/wire"
	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/api/console"
	"github.com/duet-ft/duet/image/lab"
	"github.com/duet-ft/duet/image/load"
	"github.com/duet-ft/duet/image/pairlab"
)

const (
	// pairTimeout is the limit of TestPair, the builds not included: about four times what it takes.
	pairTimeout = 20 * time.Minute
	// settleTimeout is how long the pair may take to come to what a test waits for, a host's boot included.
	settleTimeout = 4 * time.Minute
	// lookEvery is the pause between two looks at the pair; a state transfer takes seconds.
	lookEvery = 100 * time.Millisecond
	// loadClients, loadSlots and loadShared keep the load small enough for a shared core.
	loadClients, loadSlots, loadShared = 4, 200, 4
	// pullTries is how often the cable may be pulled too late to hit a state transfer.
	pullTries = 4
)

// Roles of a copy, by ftlink/pair's names.
const (
	solo, seeding, receiving, standby, diverged = "solo", "seeding", "receiving", "standby", "diverged"
)

// TestPair harms a pair under load, one thing after the other. The guest must not notice any of it, nor its clients.
func TestPair(t *testing.T) {
	p := startPair(t)
	defer func() {
		if t.Failed() {
			t.Log("the last lines of both hosts:\n" + p.pair.Tails())
		}
	}()
	for _, step := range []struct {
		name string
		do   func(*testing.T)
	}{
		{"recorded", p.record},
		{"switched over", p.switchOver},
		{"host drained", p.drain},
		{"unprotected", p.unprotect},
		{"failover tested", p.testFailover},
		{"cable pulled in lockstep", p.pullInLockstep},
		{"cable pulled while seeding", p.pullWhileSeeding},
		{"console", p.logIn},
		{"reads", p.readFiles},
		{"cells of the matrix", p.quickCells},
		{"primary killed", p.killPrimary},
		{"console after the takeover", p.stillLoggedIn},
		{"host replaced", p.replaceHost},
		{"end", p.end},
		{"recording replayed", p.replayed},
	} {
		begin := time.Now()
		if !t.Run(step.name, step.do) {
			return
		}
		t.Logf("%s: %.1f s", step.name, time.Since(begin).Seconds())
	}
}

// trial is a pair with a guest under load.
type trial struct {
	ctx     context.Context
	pair    *pairlab.Pair
	load    *load.Load
	info    wire.Info        // what the guest said of itself, the last time
	primary string           // the last one that was protected
	found   map[string]error // divergences by host and time

	seedings int            // that were refused so far
	typist   console.Typist // at the guest's console
	tape     string         // path of a recording
}

// needPair skips the test where a pair can't be made, with the reason.
func needPair(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("skipped with -short: boots a pair in QEMU")
	}
	for _, tool := range []string{"qemu-system-x86_64", "istgt", "mke2fs", "e2fsck"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is missing: install the packages %v", tool, lab.Missing())
		}
	}
	guestImage(t)
}

// startPair makes a pair in lockstep, and sets clients to work.
func startPair(t *testing.T) *trial {
	t.Helper()
	needPair(t)
	ctx, cancel := context.WithTimeout(t.Context(), pairTimeout)
	t.Cleanup(cancel)
	pair, err := pairlab.Start(ctx, pairlab.Config{Dir: t.TempDir(), Proxied: true, Log: func(line string) { t.Log(line) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pair.Close(); err != nil {
			t.Error(err)
		}
	})
	p := &trial{ctx: ctx, pair: pair, primary: pairlab.Names[0], found: map[string]error{}, tape: filepath.Join(t.TempDir(), "recording")}
	begin := time.Now()
	if err := pair.StartGuest(ctx, pairlab.Names[0]); err != nil {
		t.Fatal(err)
	}
	if p.info, err = pair.Info(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("the guest runs and serves (%.1f s)", time.Since(begin).Seconds())
	p.protected(t)
	p.load, err = load.Start(ctx, load.Config{Dial: pair.Dial, Clients: loadClients, Slots: loadSlots, Shared: loadShared})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.load.Close)
	p.answered(t)
	return p
}

// pullInLockstep cuts the direct link of a protected pair. The hosts still hear each other over the management network
// and both reach the volume, so one copy goes on alone and the other gives up.
func (p *trial) pullInLockstep(t *testing.T) {
	primary := p.protected(t)
	p.pair.Cable.Cut(true)
	var live string
	p.until(t, "exactly one copy to go on alone", func() (ok bool, detail string) {
		live, ok, detail = p.alone()
		return ok, detail
	})
	p.answered(t)
	p.alive(t)
	if again, ok, detail := p.alone(); !ok || again != live {
		t.Errorf("host %s went on alone, and now: %s", live, detail)
	}
	p.pair.Cable.Cut(false)
	p.protected(t)
	p.intact(t)
	vm, err := p.pair.VM(t.Context(), live)
	switch {
	case err != nil:
		t.Error(err)
	case vm.Seed == nil:
		t.Errorf("host %s tells of no state transfer", live)
	case live == primary && vm.Seed.Known < vm.Seed.Pages:
		// A copy that was never live leaves its memory behind.
		t.Errorf("the copy that was lost got %d pages, and had only %d", vm.Seed.Pages, vm.Seed.Known)
	default:
		t.Logf("the state transfer sent %d pages in %d bytes; %d were there", vm.Seed.Pages, vm.Seed.Bytes, vm.Seed.Known)
	}
}

// pullWhileSeeding cuts the direct link in the middle of a state transfer to a host that has just booted.
func (p *trial) pullWhileSeeding(t *testing.T) {
	primary := p.protected(t)
	secondary := p.pair.Peer(primary)
	p.noteDivergences()
	if err := p.pair.Kill(secondary); err != nil {
		t.Fatal(err)
	}
	p.until(t, "the primary to go on alone", func() (bool, string) {
		vm, err := p.look(primary)
		return err == nil && vm.Role == solo, describe(vm, err)
	})
	p.answered(t)
	if err := p.pair.Host(secondary).Boot(); err != nil {
		t.Fatal(err)
	}
	for try := 1; !p.pull(t, primary, secondary); try++ {
		if try == pullTries {
			t.Fatalf("%d times, a state transfer was over before the cable was pulled", try)
		}
		p.pair.Cable.Cut(false) // the next transfer begins
	}
	p.toldOfTheLink(t, primary)
	p.answered(t)
	p.alive(t)
	p.pair.Cable.Cut(false)
	if now := p.protected(t); now != primary {
		t.Errorf("host %s is primary; it was %s, which alone had the guest's state", now, primary)
	}
	p.intact(t)
}

// toldOfTheLink checks that a host that gave up a state transfer says that it was the link.
func (p *trial) toldOfTheLink(t *testing.T, name string) {
	t.Helper()
	events, err := p.pair.API(name).Events(p.ctx)
	if err != nil {
		t.Fatal(err)
	}
	why := ""
	for _, e := range events {
		if e.Role == solo {
			why = e.What
		}
	}
	if why != "the direct link is silent" && why != "the log stream is down" {
		t.Errorf("host %s gave up the state transfer, and says: %q", name, why)
	}
}

// pull waits for a state transfer and pulls the cable. It says whether the transfer was still under way, and returns
// when the primary is alone again.
func (p *trial) pull(t *testing.T, primary, secondary string) (hit bool) {
	t.Helper()
	var epoch uint64
	p.until(t, "a state transfer", func() (bool, string) {
		from, err := p.look(primary)
		if err != nil || from.Role != seeding {
			return false, primary + ": " + describe(from, err)
		}
		epoch = from.Epoch
		to, err := p.look(secondary)
		return err == nil && to.Role == receiving, secondary + ": " + describe(to, err)
	})
	p.pair.Cable.Cut(true)
	var after api.VM
	p.until(t, "the state transfer to break off", func() (ok bool, detail string) {
		var live string
		if live, ok, detail = p.alone(); !ok {
			return false, detail
		}
		if live != primary {
			t.Fatalf("host %s is live instead of %s, which alone had the guest's state: %s", live, primary, detail)
		}
		var err error
		after, err = p.look(primary)
		return err == nil && after.Role == solo, detail
	})
	return after.Epoch == epoch // one that had become a secondary would have cost an epoch
}

// killPrimary ends the primary's host by SIGKILL while clients write.
func (p *trial) killPrimary(t *testing.T) {
	victim := p.protected(t)
	survivor := p.pair.Peer(victim)
	p.noteDivergences()
	p.answered(t)
	if err := p.pair.Kill(victim); err != nil {
		t.Fatal(err)
	}
	live, err := p.pair.WaitLive(p.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if live != survivor {
		t.Fatalf("host %s is live, want %s", live, survivor)
	}
	p.answered(t)
	vm, err := p.look(survivor)
	if err != nil {
		t.Fatal(err)
	}
	if f := vm.Failover; f == nil || f.Cause == "" {
		t.Errorf("host %s doesn't tell why it took over: %+v", survivor, f)
	} else {
		t.Logf("host %s took over (%s): live %.0f ms after it last heard of %s", survivor, f.Cause, f.LiveMS, victim)
	}
	p.alive(t)
	p.intact(t)
	if err := p.pair.Restart(p.ctx, victim); err != nil {
		t.Fatal(err)
	}
	p.primary = survivor
	p.protected(t)
	p.intact(t)
}

// end looks at everything once more, and at the volume.
func (p *trial) end(t *testing.T) {
	p.alive(t)
	p.intact(t)
	p.noteDivergences()
	for where, what := range p.found {
		t.Errorf("a divergence at %s: %v", where, what)
	}
	p.load.Close()
	p.shutDown(t)
	if err := p.pair.Fsck(p.ctx); err != nil {
		t.Error(err)
	}
}

// protected waits until the pair is in lockstep, and returns the primary's name.
func (p *trial) protected(t *testing.T) string {
	t.Helper()
	begin := time.Now()
	primary, err := p.pair.WaitProtected(p.ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("protected, primary %s (%.1f s)", primary, time.Since(begin).Seconds())
	if primary != p.primary { // an emulated host on a shared core may be silent for long enough
		vm, err := p.look(primary)
		t.Logf("the primary was %s before: %s, %+v", p.primary, describe(vm, err), vm.Failover)
	}
	p.primary = primary
	return primary
}

// answered waits until every client has got an answer to a new request over its first and only connection.
func (p *trial) answered(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, settleTimeout)
	defer cancel()
	if err := p.load.Answered(ctx); err != nil {
		t.Fatalf("the clients: %v", err)
	}
}

// intact reads back what was acknowledged.
func (p *trial) intact(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, settleTimeout)
	defer cancel()
	r, err := p.load.Check(ctx)
	switch {
	case err != nil:
		t.Fatal(err)
	case !r.Clean():
		t.Fatalf("of %d acknowledged writes: %v; %d of %d connections reset (%v)", r.Acknowledged, r.Findings, r.Resets, r.Connections, r.Broken)
	case r.Acknowledged == 0:
		t.Fatal("nothing was written, so nothing was tested")
	}
	t.Logf("read back: %d acknowledged writes, %v", r.Acknowledged, r.Findings)
}

// alive checks that the guest is the one that it was.
func (p *trial) alive(t *testing.T) {
	t.Helper()
	info, err := p.pair.Info(p.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if info.BootID != p.info.BootID || info.Uptime <= p.info.Uptime {
		t.Fatalf("the guest has booted anew: boot_id %s was %s, uptime %.1f s was %.1f s",
			info.BootID, p.info.BootID, info.Uptime, p.info.Uptime)
	}
	p.info = info
}

// noteDivergences remembers those that both hosts tell of; a host's events end with it.
func (p *trial) noteDivergences() {
	for _, name := range pairlab.Names {
		events, err := p.pair.API(name).Events(p.ctx)
		if err != nil {
			p.found["host "+name] = fmt.Errorf("its events can't be read: %w", err)
		}
		for _, e := range events {
			if e.Role == diverged {
				p.found[fmt.Sprintf("host %s, %v", name, e.At)] = fmt.Errorf("%s", e.What)
			}
		}
	}
}

// look asks a host for its copy.
func (p *trial) look(name string) (api.VM, error) {
	ctx, cancel := context.WithTimeout(p.ctx, 5*time.Second)
	defer cancel()
	return p.pair.VM(ctx, name)
}

func describe(vm api.VM, err error) string {
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%s, epoch %d %s", vm.Role, vm.Epoch, vm.Error)
}

// alone tells whether one copy is live and by itself, which, and the other one holds nothing.
func (p *trial) alone() (live string, ok bool, detail string) {
	ok = true
	var details []string
	for _, name := range pairlab.Names {
		vm, err := p.look(name)
		details = append(details, name+": "+describe(vm, err))
		switch {
		case err == nil && vm.Live && live == "" && (vm.Role == solo || vm.Role == seeding):
			live = name
		case err == nil && vm.Role == standby:
		default:
			ok = false
		}
	}
	return live, ok && live != "", strings.Join(details, "; ")
}

// until waits for a condition.
func (p *trial) until(t *testing.T, what string, look func() (ok bool, detail string)) {
	t.Helper()
	begin := time.Now()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		ok, detail := look()
		if ok {
			return
		}
		select {
		case <-tick.C:
		case <-p.ctx.Done():
		}
		if p.ctx.Err() != nil || time.Since(begin) > settleTimeout {
			t.Fatalf("waited %.0f s for %s: %s", time.Since(begin).Seconds(), what, detail)
		}
	}
}
