package boottest

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/duet-ft/duet/image/pairlab"
)

// TestUnlikeHosts makes a pair of two hosts that don't fit each other. The guest must run on alone, the line must say
// why and come once, and a host that fits must be taken afterwards.
func TestUnlikeHosts(t *testing.T) {
	needPair(t)
	ctx, cancel := context.WithTimeout(t.Context(), pairTimeout)
	t.Cleanup(cancel)
	const a, b = "a", "b"
	pair, err := pairlab.Start(ctx, pairlab.Config{
		Dir: t.TempDir(), Log: func(line string) { t.Log(line) },
		// Without erms the guest's kernel copies memory by other instructions.
		HostExtra: map[string][]string{b: {"-cpu", "max,model-id=Another CPU,-erms"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pair.Close(); err != nil {
			t.Error(err)
		}
	})
	p := &trial{ctx: ctx, pair: pair, primary: a, found: map[string]error{}}
	defer func() {
		if t.Failed() {
			t.Log("the last lines of both hosts:\n" + pair.Tails())
		}
	}()
	if err := pair.StartGuest(ctx, a); err != nil {
		t.Fatal(err)
	}
	if p.info, err = pair.Info(ctx); err != nil {
		t.Fatal(err)
	}
	p.refused(t, "host b can't protect the VM: its CPU is Another CPU, host a's is QEMU ")

	if err := pair.Kill(b); err != nil {
		t.Fatal(err)
	}
	pair.Refit(b, []string{"-cpu", "max,ucode-rev=0x1000099"})
	if err := pair.Restart(ctx, b); err != nil {
		t.Fatal(err)
	}
	p.refused(t, "host b can't protect the VM: its CPU's microcode is 0x1000099, host a's is 0x")

	if err := pair.Kill(b); err != nil {
		t.Fatal(err)
	}
	pair.Refit(b, nil)
	if err := pair.Restart(ctx, b); err != nil {
		t.Fatal(err)
	}
	if now := p.protected(t); now != a {
		t.Errorf("host %s is primary instead of a", now)
	}
	p.alive(t)
}

// refused waits until host b says that line, and checks that nothing else came of it: the guest runs on host a alone,
// and neither host repeats itself.
func (p *trial) refused(t *testing.T, line string) {
	t.Helper()
	p.until(t, "host b to refuse and host a to go on alone", func() (bool, string) {
		onA, errA := p.look("a")
		onB, errB := p.look("b")
		return errA == nil && errB == nil && onA.Live && onA.Role == solo && strings.Contains(onA.Error, line) &&
			onB.Role == standby && strings.HasPrefix(onB.Error, line), describe(onA, errA) + "; " + describe(onB, errB)
	})
	before := map[string]int{}
	for _, name := range pairlab.Names {
		if before[name] = p.said(t, name, line); before[name] != 1 {
			t.Errorf("host %s says it %d times: %s", name, before[name], line)
		}
	}
	// The guest's clock has to advance by what a repetition would take.
	begin := p.info.Uptime
	p.alive(t)
	p.until(t, "the guest to run on", func() (bool, string) {
		p.alive(t)
		return p.info.Uptime > begin+quietSeconds, ""
	})
	for name, n := range before {
		if now := p.said(t, name, line); now != n {
			t.Errorf("host %s said it %d times, then %d times: %s", name, n, now, line)
		}
	}
	if n := p.said(t, "a", "seeds host"); n != p.seedings+1 {
		t.Errorf("host a began %d state transfers, want %d", n, p.seedings+1)
	}
	p.seedings++
	for _, name := range pairlab.Names {
		if vm, err := p.look(name); err != nil || vm.Live != (name == "a") || vm.Protected {
			t.Errorf("host %s: %s", name, describe(vm, err))
		}
	}
}

// quietSeconds of the guest's time must pass without a word: far more than a second, and than what lies between two
// state transfers.
const quietSeconds = 10

// said counts the lines of a host's programs that contain a text.
func (p *trial) said(t *testing.T, name, text string) (n int) {
	t.Helper()
	b, err := os.ReadFile(p.pair.Host(name).ProgramsLog())
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		if strings.Contains(l, text) {
			n++
		}
	}
	return n
}
