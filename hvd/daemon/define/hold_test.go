package define

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/volume"
)

// start is what a host does that starts a VM: it swaps the block that it read, and says whether it won.
func start(t *testing.T, v *volume.Volume, def volume.Definition, host pair.HostID) bool {
	t.Helper()
	ctx := context.Background()
	x, err := executor(v, def)
	if err != nil {
		t.Error(err)
		return false
	}
	b, err := x.Read(ctx)
	if err != nil || b.Kind != pair.Free {
		return false
	}
	next := pair.Block{VM: x.VM, Kind: pair.Solo, Epoch: b.Epoch + 1, Owner: host, Nonce: freshNonce()}
	return x.Do(ctx, pair.Arbiter{Kind: pair.Swap, Old: b, New: next}).Answer == pair.Swapped
}

// between has something happen on another host right before the n-th access of a session.
func between(s *volume.MemorySession, n int, do func()) (reached func() bool) {
	accesses := 0
	s.Fault = func(volume.Op, uint64, int) volume.Fault {
		if accesses++; accesses == n {
			do()
		}
		return volume.Fault{}
	}
	return func() bool { return accesses >= n }
}

// other is another host's view of the volume.
func other(t *testing.T, m *volume.Memory) *volume.Volume {
	t.Helper()
	v, err := volume.Open(context.Background(), m.Session("b"))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func formatted(t *testing.T) (*volume.Memory, *volume.Volume, *volume.MemorySession) {
	t.Helper()
	m := volume.NewMemory(1<<17, 512)
	s := m.Session("a")
	if err := volume.Format(context.Background(), s); err != nil {
		t.Fatal(err)
	}
	v, err := volume.Open(context.Background(), s)
	if err != nil {
		t.Fatal(err)
	}
	return m, v, s
}

// TestDeleteOrStart starts a VM before each access that its deletion makes: either the VM is deleted and doesn't start, or
// it starts and isn't deleted.
func TestDeleteOrStart(t *testing.T) {
	ctx := context.Background()
	outcomes := map[bool]int{}
	m, v, s := formatted(t)
	for n, more := 1, true; more; n++ {
		name := fmt.Sprintf("db%d", n)
		def, err := Create(ctx, v, definition(name))
		if err != nil {
			t.Fatal(err)
		}
		w, started := other(t, m), false
		reached := between(s, n, func() { started = start(t, w, def, 7) })
		err = Delete(ctx, v, me, name)
		s.Fault = nil
		more = reached()
		_, gone := w.Definition(ctx, name)
		outcomes[started]++
		switch {
		case started && (err == nil || gone != nil):
			t.Fatalf("access %d: the VM was started, and deleted all the same (%v, %v)", n, err, gone)
		case !started && (err != nil || !errors.Is(gone, volume.ErrNotFound)):
			t.Fatalf("access %d: the VM was neither started nor deleted (%v, %v)", n, err, gone)
		}
	}
	if outcomes[true] == 0 || outcomes[false] < 2 {
		t.Errorf("started, or not: %v", outcomes)
	}
}

// TestDeleteOrReplace has the VM deleted by another host, which makes another VM of its name, before each access of a
// deletion that has found out which VM is meant: the other VM is left alone.
func TestDeleteOrReplace(t *testing.T) {
	ctx := context.Background()
	m, v, s := formatted(t)
	replaced := 0
	const found = 6 // accesses that find the VM: two reads of each slot, the lock, the arbiter block
	for n, more := found+1, true; more; n++ {
		name := fmt.Sprintf("db%d", n)
		if _, err := Create(ctx, v, definition(name)); err != nil {
			t.Fatal(err)
		}
		w, second := other(t, m), volume.Definition{}
		reached := between(s, n, func() {
			ctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond) // the deletion may have the lock
			defer cancel()
			if Delete(ctx, w, me, name) == nil {
				replaced++
				var err error
				if second, err = Create(context.Background(), w, definition(name)); err != nil {
					t.Error(err)
				}
			}
		})
		err := Delete(ctx, v, me, name)
		s.Fault = nil
		more = reached()
		if now, gone := w.Definition(ctx, name); second.UUID != "" && (err == nil || gone != nil || now.UUID != second.UUID) {
			t.Fatalf("access %d: the VM that took the name was deleted, or said to be (%v, %v)", n, err, gone)
		}
	}
	if replaced == 0 {
		t.Error("the VM was never replaced in time")
	}
}

// TestRace deletes and starts one VM by several goroutines at once: one of them wins.
func TestRace(t *testing.T) {
	ctx := context.Background()
	m, v, _ := formatted(t)
	for n := range 30 {
		name := fmt.Sprintf("db%d", n)
		def, err := Create(ctx, v, definition(name))
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		var started, deleted atomic.Int32
		for i := range 3 {
			w := other(t, m)
			all.Go(func() {
				if start(t, w, def, pair.HostID(2*i+1)) {
					started.Add(1)
				}
			})
			w2, keeper := other(t, m), Keeper(strings.Repeat("k", i+1))
			all.Go(func() {
				if Delete(ctx, w2, keeper, name) == nil {
					deleted.Add(1)
				}
			})
		}
		all.Wait()
		_, err = v.Definition(ctx, name)
		if started.Load()+deleted.Load() != 1 || (deleted.Load() == 1) != errors.Is(err, volume.ErrNotFound) {
			t.Fatalf("started %d times, deleted %d times; then %v", started.Load(), deleted.Load(), err)
		}
	}
}

// TestHold: a held VM can't be started, nor held by another keeper, until it is released or taken over.
func TestHold(t *testing.T) {
	ctx := context.Background()
	m, v, _ := formatted(t)
	def, err := Create(ctx, v, definition("db"))
	if err != nil {
		t.Fatal(err)
	}
	w, you := other(t, m), Keeper("iqn.2026-01.org.duet-ft:b")
	h, err := Take(ctx, v, me, def)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(when string) {
		t.Helper()
		if start(t, w, def, 7) {
			t.Errorf("%s: it was started", when)
		}
		if _, err := Take(ctx, w, you, def); !errors.Is(err, ErrHeld) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: held twice: %v", when, err)
		}
		if err := Delete(ctx, w, you, "db"); !errors.Is(err, ErrHeld) {
			t.Errorf("%s: deleted: %v", when, err)
		}
	}
	refused("held")
	before, _ := Block(ctx, w, def)
	if err := h.Renew(ctx); err != nil || h.Valid() != nil {
		t.Errorf("renewed: %v, %v", err, h.Valid())
	}
	if after, _ := Block(ctx, w, def); after == before || !Held(after) || after.Owner != me.ID() {
		t.Errorf("a renewal shows as %v after %v", after, before)
	}
	refused("renewed")
	b, err := Block(ctx, w, def)
	if err != nil {
		t.Fatal(err)
	}
	taken, err := TakeOver(ctx, w, you, def, b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := TakeOver(ctx, w, you, def, b); err == nil {
		t.Error("taken over twice")
	}
	for _, err := range []error{h.Renew(ctx), h.Release(ctx), h.Keep(ctx, h.Renew)} {
		if !errors.Is(err, ErrLost) {
			t.Errorf("the hold that was taken over: %v", err)
		}
	}
	if err := taken.Release(ctx); err != nil {
		t.Fatal(err)
	}
	again, err := Take(ctx, v, me, def)
	if err != nil {
		t.Fatal(err)
	}
	if own, err := Take(ctx, v, me, def); err != nil { // as after a crash
		t.Error(err)
	} else if err := own.Release(ctx); err != nil {
		t.Error(err)
	}
	if err := again.Release(ctx); !errors.Is(err, ErrLost) {
		t.Errorf("released twice: %v", err)
	}
	if !start(t, w, def, 7) {
		t.Error("it can't be started any more")
	}
}

// TestKeeperIsNoHost: hosts' numbers are odd (hvd/vmproc's hostID).
func TestKeeperIsNoHost(t *testing.T) {
	for _, k := range []Keeper{"", "a", "b", me} {
		if id := k.ID(); id == 0 || id&1 != 0 {
			t.Errorf("keeper %q is number %d", k, id)
		}
	}
	if me.ID() == Keeper("b").ID() || me.ID() != Keeper(strings.ToUpper(string(me))).ID() {
		t.Error("keepers' numbers don't tell names apart")
	}
}
