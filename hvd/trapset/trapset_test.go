package trapset

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/duet-ft/duet/hvd/kvm"
)

var costs = Costs{Trap: 2 * time.Microsecond, Resync: 500 * time.Microsecond, KB: 10 * time.Microsecond}

// guest is a load: what each window brings, given what is counted.
type guest struct {
	cr3, pf, calls uint64 // a window
	due            uint64 // inputs that find no exit
	pages          uint64 // written to again and again
	bytes          uint64 // of a resync
}

// ticks are a window's, at 250 Hz.
const ticks = 125

// run puts the chooser before windows of that load and returns the sets and
// periods that were in force.
func (g guest) run(c *Chooser, l *Load, windows int) (sets []uint64, harvests []uint64) {
	for range windows {
		l.Now += Window
		l.Harvests++
		left := g.due
		count := func(flag uint64, kind int, traps uint64) {
			if l.Set&flag == 0 || traps == 0 {
				return
			}
			l.Traps[kind] += traps
			// The more there are, the more of the inputs find one.
			n := min(left, g.due*min(traps, 1000)/1000)
			l.Placed[kind] += n
			left -= n
		}
		count(kvm.FlagCR3, kvm.KindCR3, g.cr3)
		count(kvm.FlagPF, kvm.KindPF, g.pf)
		count(kvm.FlagSyscall, kvm.KindSyscall, g.calls)
		l.Traps[kvm.KindWrite] += g.pages * ticks / max(1, l.Every)
		l.Resyncs += left
		l.ResyncBytes += left * g.bytes
		if choice, ok := c.Next(*l); ok {
			l.Set, l.Every = choice.Set, choice.Every
		}
		sets, harvests = append(sets, l.Set), append(harvests, l.Every)
	}
	return sets, harvests
}

func begin() (*Chooser, *Load) {
	return New(kvm.Counted, costs), &Load{Set: Initial, Every: MaxEvery}
}

func TestIdleGuestKeepsWhatCostsNothing(t *testing.T) {
	c, l := begin()
	for i, set := range first(guest{cr3: 40, pf: 10}.run(c, l, 1000)) {
		if set != Initial {
			t.Fatalf("window %d has set %#x, want %#x", i, set, Initial)
		}
	}
	if l.Every != MaxEvery {
		t.Errorf("harvests each %d ticks, want %d", l.Every, MaxEvery)
	}
}

func first(a, _ []uint64) []uint64 { return a }

func TestSystemCallsAreCountedWhereTheySaveResyncs(t *testing.T) {
	c, l := begin()
	// A hash of a file: 125 ticks a window find nothing, 20,000 calls.
	guest{calls: 20_000, due: 125, bytes: 50_000}.run(c, l, 5)
	if l.Set&kvm.FlagSyscall == 0 {
		t.Fatalf("set %#x after 5 windows, system calls aren't in it", l.Set)
	}
	before := l.Resyncs
	guest{calls: 20_000, due: 125, bytes: 50_000}.run(c, l, 200)
	// Now and then they have to prove it, for a window.
	if n := (l.Resyncs - before) / 125; n < 1 || n > 8 {
		t.Errorf("%d windows of 200 with resyncs that system calls could have saved", n)
	}
	// Then a server: as many calls, and no input that wouldn't find an exit.
	guest{calls: 20_000}.run(c, l, 4)
	if l.Set&kvm.FlagSyscall != 0 {
		t.Errorf("set %#x 4 windows after system calls ceased to save anything", l.Set)
	}
}

// TestNeedlessSystemCallsGo: inputs stop at them because they come first, but
// would find another trap as well.
func TestNeedlessSystemCallsGo(t *testing.T) {
	c, l := begin()
	l.Set |= kvm.FlagSyscall
	on := 0
	for range 400 {
		l.Now += Window
		l.Harvests++
		kind := kvm.KindTSC
		if l.Set&kvm.FlagSyscall != 0 {
			on++
			kind = kvm.KindSyscall
			l.Traps[kind] += 20_000
		}
		l.Placed[kind] += 125
		if choice, ok := c.Next(*l); ok {
			l.Set, l.Every = choice.Set, choice.Every
		}
	}
	if on > 2*minStay {
		t.Errorf("system calls were counted in %d windows of 400, and never needed", on)
	}
}

func TestUselessMembersAreTriedEverLess(t *testing.T) {
	c, l := begin()
	// Calls come in bursts between which the inputs fall: none is of use.
	on := 0
	for range 4000 {
		l.Now += Window
		l.Harvests++
		l.Resyncs += 50
		l.ResyncBytes += 50 * 1000
		if l.Set&kvm.FlagSyscall != 0 {
			on++
			l.Traps[kvm.KindSyscall] += 100_000
		}
		if choice, ok := c.Next(*l); ok {
			l.Set, l.Every = choice.Set, choice.Every
		}
	}
	if on == 0 || on > 60 {
		t.Errorf("system calls were counted in %d windows of 4,000, want some, but no more than 60", on)
	}
}

func TestPageFaultsGoWhereTheyOnlyCost(t *testing.T) {
	c, l := begin()
	guest{pf: 50_000}.run(c, l, 4)
	if l.Set&kvm.FlagPF != 0 {
		t.Errorf("set %#x after 4 windows of page faults that served nothing", l.Set)
	}
	guest{pf: 10_000, due: 100, bytes: 1000}.run(c, l, 10)
	if l.Set&kvm.FlagPF == 0 {
		t.Errorf("set %#x after 10 windows in which page faults would have saved resyncs", l.Set)
	}
}

func TestHarvestsFollowTheSizeOfResyncs(t *testing.T) {
	c, l := begin()
	guest{due: 20, bytes: 500_000}.run(c, l, 4)
	if l.Every != minEvery {
		t.Errorf("harvests each %d ticks while resyncs ship 500 KB, want %d", l.Every, minEvery)
	}
	guest{}.run(c, l, 7)
	if l.Every != MaxEvery {
		t.Errorf("harvests each %d ticks after 7 windows without a resync, want %d", l.Every, MaxEvery)
	}
}

// TestHarvestsCostNoMoreThanTheySave: a guest that writes to many pages all the time
// is harvested more only as far as that costs less than its resyncs.
func TestHarvestsCostNoMoreThanTheySave(t *testing.T) {
	for _, x := range []struct{ pages, due, bytes, want uint64 }{
		{pages: 100, due: 20, bytes: 500_000, want: minEvery},
		{pages: 3000, due: 20, bytes: 500_000, want: 16}, // 94 ms of resyncs; 12 ms of first writes at 64, 47 at 16
		{pages: 20_000, due: 20, bytes: 500_000, want: MaxEvery},
	} {
		c, l := begin()
		guest{pages: x.pages, due: x.due, bytes: x.bytes}.run(c, l, 30)
		if l.Every != x.want {
			t.Errorf("%d pages: harvests each %d ticks, want %d", x.pages, l.Every, x.want)
		}
	}
	c, l := begin()
	l.Every = minEvery
	guest{pages: 20_000, due: 1, bytes: 500_000}.run(c, l, 6)
	if l.Every != MaxEvery {
		t.Errorf("harvests each %d ticks where they cost more than the resyncs, want %d", l.Every, MaxEvery)
	}
}

// TestSilentGuestIsHarvested: what is chosen is written into the log again where
// no tick has harvested for a window.
func TestSilentGuestIsHarvested(t *testing.T) {
	c, l := begin()
	c.Next(*l)
	l.Now += Window
	if choice, ok := c.Next(*l); !ok || choice != (Choice{Initial, MaxEvery}) {
		t.Errorf("chose %+v, %t in a window without a harvest, want the same again", choice, ok)
	}
	l.Now += Window
	l.Harvests++
	if choice, ok := c.Next(*l); ok {
		t.Errorf("chose %+v in a window with a harvest, and nothing to change", choice)
	}
}

func TestOldKernelIsLeftAlone(t *testing.T) {
	c := New(0, costs)
	l := &Load{Set: kvm.FlagCR3, Every: MaxEvery}
	guest{due: 200, bytes: 500_000}.run(c, l, 20)
	if l.Set != kvm.FlagCR3 || l.Every != MaxEvery {
		t.Errorf("chose %#x each %d where nothing can change", l.Set, l.Every)
	}
}

// TestChoicesAreWithinBounds: whatever the load, only what can be counted is
// chosen, and not more than one change a window.
func TestChoicesAreWithinBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		can := rapid.Uint64Range(0, kvm.Counted).Draw(t, "can") & kvm.Counted
		c := New(can, costs)
		l := &Load{Set: Initial & can, Every: MaxEvery}
		for range rapid.IntRange(1, 50).Draw(t, "windows") {
			g := guest{
				cr3: rapid.Uint64Range(0, 1<<20).Draw(t, "cr3"), pf: rapid.Uint64Range(0, 1<<20).Draw(t, "pf"),
				calls: rapid.Uint64Range(0, 1<<24).Draw(t, "calls"), due: rapid.Uint64Range(0, 1000).Draw(t, "due"),
				bytes: rapid.Uint64Range(0, 1<<30).Draw(t, "bytes"),
			}
			g.run(c, l, 1)
			if l.Set&^can != 0 || l.Every == 0 || l.Every > MaxEvery {
				t.Fatalf("chose %#x each %d of what %#x can", l.Set, l.Every, can)
			}
			if _, again := c.Next(*l); again {
				t.Fatal("chose again in the same window")
			}
		}
	})
}
