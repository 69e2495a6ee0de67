package vm

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"io/fs"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/boot"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/kvm/kvmtest"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/transfer"
)

var (
	noiseEvery  = flag.Int("noise", 40, "exits between two disturbances of TestAccessedBits; 0: none")
	accessedFor = flag.Duration("accessed.for", 0, "let TestAccessedBits measure for so long")
	otherToo    = flag.Bool("accessed.other", false, "TestAccessedBits with the other kernel, too")
)

// otherKernel is where image/boottest puts a kernel of another version, with
// what it needs to reach the guest's disk built in.
const otherKernel = "/guest.vmlinuz"

// reclaimMemory is little enough that the workload fills it.
const reclaimMemory = 128 << 20

// reclaimScript is a workload in which much depends on accessed bits: memory is
// full of pages of files and of swapped ones, bits are cleared through /proc,
// and processes fork. What it prints each round depends on what was reclaimed.
// It runs as process 1, and has no double quotes, for it is a kernel argument.
const reclaimScript = `mount -t proc p /proc;mount -t devtmpfs d /dev 2>/dev/null;exec >/dev/ttyS0 2>/dev/null;` +
	`fallocate -l 40M /swapfile;chmod 600 /swapfile;mkswap /swapfile >/dev/null;swapon /swapfile;` +
	`perl -e '$x=q(abcd);$x.=$x for 1..23;for $r(1..1e9){for($i=0;$i<length $x;$i+=8192){substr($x,$i,1)=chr(65+$r%26)}` +
	`open F,q(>/proc/self/clear_refs);print F 1;close F;` +
	`$p=fork;if(!$p){for($i=0;$i<length $x;$i+=65536){substr($x,$i,1)=q(c)}exit 0}` +
	`for($i=0;$i<length $x;$i+=12288){$s+=ord substr($x,$i,1)}` +
	`system(q(find /usr/lib/modules /usr/lib/x86_64-linux-gnu -type f|xargs cat|head -c 24m|wc -c));waitpid $p,0;print qq(\nround $r $s\n);` +
	`open V,q(/proc/vmstat);print grep{/pgsteal_[af]|pswp|refault/}<V>;close V}'`

// reclaimRound is what the guest prints at the end of each round.
const reclaimRound = "\nround "

// reclaimConfig is the machine that the workload runs on.
func reclaimConfig(t *testing.T) machine.Config {
	t.Helper()
	c := guestConfig(t)
	c.MemoryBytes, c.SweepCycle = reclaimMemory, 10*time.Second
	return c
}

// bootReclaim makes a machine that is about to run the workload, on the guest's
// own kernel or on the other one.
func bootReclaim(t *testing.T, sys *kvm.System, other, untouched bool) *machine.Machine {
	t.Helper()
	disk, err := os.Open(guestDisk)
	if err != nil {
		t.Skip("needs a guest's disk at ", guestDisk)
	}
	defer disk.Close()
	size, err := disk.Seek(0, 2)
	if err != nil {
		t.Fatal(err)
	}
	image, err := boot.Find(disk, size)
	if err != nil {
		t.Fatal(err)
	}
	if other {
		kernel, err := os.ReadFile(otherKernel)
		if errors.Is(err, fs.ErrNotExist) {
			t.Skip("needs a kernel at ", otherKernel)
		} else if err != nil {
			t.Fatal(err)
		}
		image = &boot.Image{Kernel: kernel, Root: "root=/dev/vda"}
	}
	m, err := machine.New(sys, reclaimConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	entry, err := boot.Load(m.Memory, image, boot.Options{
		Seed: [32]byte{4, 5, 6}, Quiet: !*loud, Untouched: untouched,
		Cmdline: `init=/bin/sh -- -c "` + reclaimScript + `"`,
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := map[bool]string{false: boot.Steady, true: boot.Untouched}[untouched]; entry.Accessed.State != want {
		t.Fatalf("the kernel is %v, want %s", entry.Accessed, want)
	}
	if err := m.Boot(entry); err != nil {
		t.Fatal(err)
	}
	return m
}

// noise sets accessed bits of old pages of the current process now and then,
// as a processor may by speculation.
type noise struct {
	m     *machine.Machine
	rng   *rand.Rand
	every int // exits between two disturbances; 0: none
	exits int
	seen  atomic.Int64 // entries of pages that it has looked at
	set   atomic.Int64 // bits so far
	off   atomic.Bool
}

func (n *noise) disturb(s machine.Step) {
	n.exits++
	if n.every == 0 || n.off.Load() || n.exits < n.every || s.Reason != kvm.ExitIO && s.Reason != kvm.ExitMMIO && s.Reason != kvm.ExitHLT {
		return
	}
	n.exits = 0
	cr3, err := n.m.PageTable()
	if err != nil {
		panic(err)
	}
	n.table(cr3, 4)
}

// Bits of a page table's entry.
const (
	ptePresent, pteUser, pteAccessed, pteLarge = 1 << 0, 1 << 2, 1 << 5, 1 << 7
	pteFrame                                   = 1<<52 - 1<<12
)

// table goes through one page table, and those below it.
func (n *noise) table(at uint64, level int) {
	view, err := n.m.Memory.View(at&pteFrame, mem.PageSize)
	if err != nil {
		return // no memory there
	}
	entries := 512
	if level == 4 {
		entries = 256 // the rest is the kernel's
	}
	for i := range entries {
		e := binary.LittleEndian.Uint64(view[8*i:])
		switch {
		case e&(ptePresent|pteUser) != ptePresent|pteUser || level > 1 && e&pteLarge != 0:
		case level > 1:
			n.table(e, level-1)
		case e&pteAccessed != 0:
			n.seen.Add(1)
		case n.rng.IntN(4) == 0:
			// Marked as written, as KVM's dirty log does it for a processor.
			if err := n.m.Memory.Write(at&pteFrame+uint64(8*i), []byte{byte(e | pteAccessed)}); err != nil {
				panic(err)
			}
			n.seen.Add(1)
			n.set.Add(1)
		}
	}
}

// pressed is a live guest that reclaims memory, with a replica on which the
// processor sets accessed bits at will.
type pressed struct {
	e       *Engine
	m       *machine.Machine
	rim     *testRim
	noise   noise
	began   time.Time // when it was protected first
	replica *replica
	repairs []mending

	here, there lately // the primary's exits, the replica's
}

// lately holds the last exits of a machine by their positions.
type lately [1 << 15]machine.Step

func (l *lately) note(s machine.Step) { l[s.Position%uint64(len(l))] = s }

// differs returns the first exit of both that differs, and the one before it.
func (l *lately) differs(other *lately) (before, here, there machine.Step) {
	all := slices.Clone(other[:])
	slices.SortFunc(all, func(a, b machine.Step) int { return cmp.Compare(a.Position, b.Position) })
	for _, there := range all {
		here := l[there.Position%uint64(len(l))]
		if here.Position == there.Position && here != there {
			return before, here, there
		}
		before = there
	}
	return before, here, there
}

// mending is what one divergence took.
type mending struct {
	what          error
	held          time.Duration // how long effects waited when the primary went on alone
	whole         time.Duration // until the replica has verified its first log
	pause         time.Duration // how long the guest stood still
	differ, pages int           // pages that differed, pages sent
	bytes         int           // hashes, pages and state
}

// rounds is how many the guest has finished.
func (p *pressed) rounds() int {
	p.rim.mu.Lock()
	defer p.rim.mu.Unlock()
	return bytes.Count(p.rim.console, []byte(reclaimRound))
}

// press boots the guest, alone, and protects it when it works.
func press(ctx context.Context, t *testing.T, sys *kvm.System, other, untouched bool) *pressed {
	t.Helper()
	p := &pressed{m: bootReclaim(t, sys, other, untouched), rim: newTestRim(t)}
	p.noise.rng, p.noise.every = rand.New(rand.NewPCG(1, 2)), *noiseEvery
	p.e = New(p.m, p.rim, tcgConfig())
	p.rim.engine = p.e
	p.m.Trace = p.here.note
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- p.e.Live(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the primary ended: %v\nconsole:\n%s", err, p.rim.tail())
		}
		if err := errors.Join(p.m.Close(), p.rim.disk.Close()); err != nil {
			t.Error(err)
		}
	})
	await(t, "first round of the guest's", func() bool { return p.rounds() > 0 })
	p.began = time.Now()
	p.protect(ctx, t, sys, nil)
	return p
}

// protect gives the guest a replica.
func (p *pressed) protect(ctx context.Context, t *testing.T, sys *kvm.System, memory *mem.Memory) SeedStats {
	t.Helper()
	cfg := reclaimConfig(t)
	cfg.Memory = memory
	m, err := machine.New(sys, cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.noise.m, p.there = m, lately{}
	m.Trace = func(s machine.Step) {
		p.there.note(s)
		p.noise.disturb(s)
	}
	r, stats := protect(ctx, t, p.e, m, memory)
	p.replica = r
	return stats
}

// repair goes on after a divergence.
func (p *pressed) repair(ctx context.Context, t *testing.T, sys *kvm.System, what error) {
	t.Helper()
	begun, lag := time.Now(), p.e.Lag()
	x := mending{what: what}
	if err := p.e.Do(ctx, func(*machine.Machine) error {
		before, here, there := p.here.differs(&p.there)
		t.Logf("the last equal exit %+v", before)
		t.Logf("the primary's next  %+v", here)
		t.Logf("the secondary's     %+v", there)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	memory := unprotect(ctx, t, p.e, p.replica)
	x.held = lag + time.Since(begun)
	s := p.protect(ctx, t, sys, memory)
	verified := func() bool { return p.replica.e.Stats.Verified.Load() > 0 }
	if err := p.replica.until(t, awaitLimit, "verified log", verified); err != nil {
		t.Logf("diverged at once: %v", err)
		p.replica.err <- err // to be repaired next
	}
	x.whole, x.pause = time.Since(begun), s.Pause
	x.differ, x.pages = memory.Pages()-s.Known, s.Pages
	x.bytes = s.Pages*mem.PageSize + memory.Pages()*len(transfer.Sum{}) + len(p.replica.state)
	p.repairs = append(p.repairs, x)
	t.Logf("%.1f s, %d bits set: %v; effects waited for %v, protected after %v, pause %v, %d pages differed, %d sent, %d bytes",
		begun.Sub(p.began).Seconds(), p.noise.set.Load(), what, x.held, x.whole, x.pause, x.differ, x.pages, x.bytes)
}

// run lets the pair work until enough is true, and repairs what diverges.
func (p *pressed) run(ctx context.Context, t *testing.T, sys *kvm.System, enough func() bool) {
	t.Helper()
	for {
		err := p.replica.until(t, awaitLimit+*accessedFor, "end of the workload", enough)
		if err == nil {
			return
		}
		p.repair(ctx, t, sys, err)
	}
}

// TestAccessedBits lets a guest reclaim memory, and sets accessed bits on its
// secondary as a processor may. With the kernel changed as boot.Load does it, no
// entry stays old, so there is next to nothing to set, and the secondary follows
// exactly. With the kernel untouched the same noise makes it diverge: the noise is
// one that matters, and it is repaired while the guest goes on.
func TestAccessedBits(t *testing.T) {
	for _, c := range []struct {
		name             string
		other, untouched bool
	}{
		{"guest's kernel untouched", false, true},
		{"guest's kernel", false, false},
		{"other kernel untouched", true, true},
		{"other kernel", true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.other && !*otherToo {
				t.Skip("one kernel is enough for each day: -accessed.other tries this one, too")
			}
			sys := kvmtest.Open(t)
			runtime.GOMAXPROCS(4)
			ctx := t.Context()
			p := press(ctx, t, sys, c.other, c.untouched)
			first := p.rounds()
			p.run(ctx, t, sys, func() bool {
				n := p.rounds() - first
				switch {
				case *accessedFor > 0:
					return time.Since(p.began) > *accessedFor
				case c.untouched:
					return len(p.repairs) > 0 || n >= patience
				}
				return n >= curedRounds || len(p.repairs) > 0
			})
			p.finish(ctx, t, sys)
			switch n, bits := len(p.repairs), p.noise.set.Load(); {
			case p.noise.seen.Load() == 0 && *noiseEvery > 0:
				t.Error("no page table was looked at")
			case c.untouched && bits == 0 && *noiseEvery > 0:
				t.Error("no accessed bit was set")
			case c.untouched && n == 0:
				t.Errorf("%d accessed bits were set in a guest that looks at them, and nothing has diverged", bits)
			case !c.untouched && n > 0:
				t.Errorf("the secondary has diverged %d times by %d accessed bits", n, bits)
			}
			p.report(t)
		})
	}
}

// Rounds of the workload after which a cured guest has shown that it is, and
// after which an untouched one must have diverged.
const curedRounds, patience = 1, 12

// finish compares the two copies, without noise meanwhile.
func (p *pressed) finish(ctx context.Context, t *testing.T, sys *kvm.System) {
	t.Helper()
	p.noise.off.Store(true)
	for range 5 {
		err := same(ctx, t, p.e, p.replica)
		if !errors.Is(err, lockstep.ErrDiverged) {
			if err != nil {
				t.Errorf("not found, and not dead: %v", err)
			}
			if err := unprotect(ctx, t, p.e, p.replica).Close(); err != nil {
				t.Error(err)
			}
			return
		}
		p.repair(ctx, t, sys, err)
	}
	t.Error("the repaired copies don't stay equal")
}

// report says what the divergences cost.
func (p *pressed) report(t *testing.T) {
	t.Helper()
	took := time.Since(p.began)
	median, p99 := p.e.Stats.Delays()
	t.Logf("%.0f s, %d rounds, %d entries seen, %d bits set, %d divergences (%.0f an hour); effects: median %v, 99 of 100 within %v",
		took.Seconds(), p.rounds(), p.noise.seen.Load(), p.noise.set.Load(), len(p.repairs), float64(len(p.repairs))/took.Hours(), median, p99)
	if len(p.repairs) == 0 {
		return
	}
	middle := func(of func(mending) int) int {
		var all []int
		for _, x := range p.repairs {
			all = append(all, of(x))
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	t.Logf("medians: %d pages differ, %d sent, %d bytes; effects waited for %v, protected after %v, pause %v",
		middle(func(x mending) int { return x.differ }), middle(func(x mending) int { return x.pages }), middle(func(x mending) int { return x.bytes }),
		time.Duration(middle(func(x mending) int { return int(x.held) })), time.Duration(middle(func(x mending) int { return int(x.whole) })),
		time.Duration(middle(func(x mending) int { return int(x.pause) })))
}
