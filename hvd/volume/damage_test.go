package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sector reads one block.
func (m *Memory) sector(lba uint64) []byte {
	p := make([]byte, m.blockSize)
	m.read(lba, p)
	return p
}

// metadataSectors are all blocks that hold metadata, without the arbiter's.
func metadataSectors(t *testing.T, v *Volume) (list []uint64) {
	t.Helper()
	blocks, bs := v.b.Capacity()
	add := func(lba, n uint64) {
		for i := range n {
			list = append(list, lba+i)
		}
	}
	n := arrayBlocks(bs)
	add(0, 2+n)
	add(blocks-1-n, 1+n)
	add(v.lba(superblockAt), 1)
	add(v.lba(lockAt), 1)
	for i, at := range slotAt {
		d, err := v.readSlot(t.Context(), i)
		must(t, err)
		b, err := d.encode(i)
		must(t, err)
		add(v.lba(at), uint64(len(b)/bs))
	}
	return list
}

// damages are what becomes of a sector: how its content now, an earlier content
// of it and that of its counterpart in the other slot make another.
var damages = []struct {
	name string
	make func(r *rand.Rand, now, before, other []byte) []byte
}{
	{"a bit flipped", func(r *rand.Rand, now, _, _ []byte) []byte {
		p := bytes.Clone(now)
		p[r.IntN(len(p))] ^= 1 << r.IntN(8)
		return p
	}},
	{"zeroed", func(_ *rand.Rand, now, _, _ []byte) []byte { return make([]byte, len(now)) }},
	{"garbage", func(r *rand.Rand, now, _, _ []byte) []byte {
		p := make([]byte, len(now))
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		return p
	}},
	{"an older version", func(_ *rand.Rand, _, before, _ []byte) []byte { return before }},
	{"the other slot's", func(_ *rand.Rand, _, _, other []byte) []byte { return other }},
}

// TestEachSector damages each sector of the metadata in turn. Each time, the
// definitions and the disks stay what they were, Inspect names the piece, and
// Repair leaves nothing damaged.
func TestEachSector(t *testing.T) {
	for _, bs := range []int{512, 4096} {
		ctx, r := t.Context(), rand.New(rand.NewPCG(7, uint64(bs)))
		m := newMemory(t, bs)
		v := open(t, m.Session("a"))
		for _, name := range []string{"one", "two"} {
			_, err := v.create(ctx, vm(name, 10))
			must(t, err)
		}
		before := m.clone()
		_, err := v.create(ctx, vm("three", 10))
		must(t, err)
		want, err := v.Definitions(ctx)
		must(t, err)
		tried := map[string]int{}
		for _, lba := range metadataSectors(t, v) {
			now := m.sector(lba)
			other := now
			for i, at := range slotAt {
				if from := v.lba(at); lba >= from && lba < from+slotMax/uint64(bs) {
					other = m.sector(lba - from + v.lba(slotAt[1-i]))
				}
			}
			for _, d := range damages {
				bad := d.make(r, now, before.sector(lba), other)
				if bytes.Equal(bad, now) {
					continue
				}
				tried[d.name]++
				n := m.clone()
				n.data[lba] = bad
				oneDamage(t, n, fmt.Sprintf("block %d of %d bytes, %s", lba, bs, d.name), want)
			}
		}
		t.Logf("blocks of %d bytes: %v", bs, tried)
		if len(tried) != len(damages) {
			t.Errorf("not all kinds of damage were tried: %v", tried)
		}
	}
}

func oneDamage(t *testing.T, m *Memory, what string, want []Definition) {
	t.Helper()
	ctx := t.Context()
	v, err := Open(ctx, m.Session("b"))
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	v.poll, v.steal = time.Millisecond, 5*time.Millisecond
	look := func(when string) *Health {
		got, err := v.Definitions(ctx)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s, %s: %v, definitions differ: %s", what, when, err, diff)
		}
		for _, d := range want {
			if _, err := v.Disk(ctx, d.Name, "root"); err != nil {
				t.Errorf("%s, %s: %v", what, when, err)
			}
		}
		h, err := Inspect(ctx, m.Session("b"))
		must(t, err)
		return h
	}
	h := look("before the repair")
	faults := 0
	for _, p := range h.Pieces {
		if p.Fault != "" {
			faults++
			if !p.Repairable || strings.Contains(p.Fault, "\n") {
				t.Errorf("%s: %+v", what, p)
			}
		}
	}
	if faults != 1 {
		t.Errorf("%s: %d pieces have faults: %+v", what, faults, h.Pieces)
	}
	var told []string
	v.OnRepair(func(line string) { told = append(told, line) })
	if err := v.Repair(ctx); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	for _, p := range h.Pieces {
		older := strings.Contains(p.Fault, "is an older one") // of the lock: each update replaces it
		if p.Fault != "" && !older && (len(told) != 1 || !strings.Contains(told[0], "volume's "+p.Name+" was repaired")) {
			t.Errorf("%s: of the repair of %+v was told %q", what, p, told)
		}
	}
	if h := look("after the repair"); h.Damaged() || h.Err != nil || h.Locked != "" {
		t.Errorf("%s: after the repair: %+v", what, h)
	}
}

// TestTorn lets each prefix of sectors of each write of an update reach the
// volume, and nothing behind: the old definitions hold or the new ones, with the
// disks that belong to them, and what is left is repaired.
func TestTorn(t *testing.T) {
	ctx := t.Context()
	base := newMemory(t, 512)
	v := open(t, base.Session("a"))
	for _, name := range []string{"old", "other"} {
		_, err := v.create(ctx, vm(name, 20))
		must(t, err)
	}
	for op, c := range map[string]struct {
		do    func(v *Volume) error
		after string
	}{
		"create": {func(v *Volume) error { _, err := v.create(ctx, vm("new", 20)); return err }, "new old other"},
		"delete": {func(v *Volume) error { return v.Delete(ctx, "old", "") }, "other"},
		"modify": {func(v *Volume) error {
			return v.Modify(ctx, "old", func(d *Definition) { d.Cmdline = strings.Repeat("x", 2000) })
		}, "old other"},
	} {
		cuts := 0
		for n, blocks := 1, 1; blocks > 0; n++ {
			for k := 0; k == 0 || k < blocks; k++ {
				m := base.clone()
				blocks = tornAt(t, m, n, k, c.do)
				cuts++
				w := open(t, m.Session("b"))
				w.steal = 5 * time.Millisecond
				got := names(t, w)
				if got != "old other" && got != c.after {
					t.Fatalf("%s, %d sectors of write %d: VMs %q", op, k, n, got)
				}
				for _, name := range strings.Fields(got) {
					if _, err := w.Disk(ctx, name, "root"); err != nil {
						t.Fatalf("%s, %d sectors of write %d: %v", op, k, n, err)
					}
				}
				must(t, w.Repair(ctx))
				if h, err := Inspect(ctx, m.Session("b")); err != nil || h.Damaged() || names(t, w) != got {
					t.Fatalf("%s, %d sectors of write %d, after the repair: %v, %+v", op, k, n, err, h)
				}
			}
		}
		t.Logf("%s: %d power cuts", op, cuts)
		if cuts < 30 { // the two copies alone have as many sectors
			t.Errorf("%s: only %d power cuts", op, cuts)
		}
	}
}

// tornAt runs do with a power cut in its n-th write, of which k sectors are
// executed. It returns how many the write has; 0: there were fewer writes.
func tornAt(t *testing.T, m *Memory, n, k int, do func(v *Volume) error) (blocks int) {
	t.Helper()
	s, writes := m.Session("a"), 0
	v := open(t, s)
	s.Fault = func(op Op, _ uint64, all int) Fault {
		if op == OpWrite || op == OpCompareAndWrite {
			writes++
			if writes == n {
				blocks = all
				if op == OpWrite {
					return Fault{Err: errPowerCut, Blocks: k}
				}
			}
		}
		if writes >= n {
			return Fault{Err: errPowerCut}
		}
		return Fault{}
	}
	if err := do(v); err != nil && !errors.Is(err, errPowerCut) {
		t.Fatal(err)
	}
	return blocks
}

// TestTwoDamages hits what one copy can't make up for. Nothing is acted on.
func TestTwoDamages(t *testing.T) {
	ctx := t.Context()
	base := newMemory(t, 512)
	v := open(t, base.Session("a"))
	_, err := v.create(ctx, vm("one", 10))
	must(t, err)
	slot := func(i int) uint64 { return v.lba(slotAt[i] + slotHeader) }
	for _, c := range []struct {
		name string
		hit  []uint64
		swap bool
		want string
	}{
		{"both copies", []uint64{slot(0), slot(1)}, false, "both copies"},
		{"the lock and a copy", []uint64{v.lba(lockAt), slot(1)}, false, "nobody knows whether the other copy"},
		{"both GPTs", []uint64{1, base.blocks - 1}, false, "damaged"},
		{"swapped copies", nil, true, "those of the other slot"},
	} {
		m := base.clone()
		for _, lba := range c.hit {
			p := m.sector(lba)
			p[60] ^= 4
			m.data[lba] = p
		}
		if c.swap {
			for i := range uint64(slotMax / 512) {
				a, b := v.lba(slotAt[0])+i, v.lba(slotAt[1])+i
				m.data[a], m.data[b] = m.data[b], m.data[a]
			}
		}
		w, err := Open(ctx, m.Session("b"))
		if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if h, err := Inspect(ctx, m.Session("b")); err != nil || !h.Damaged() || h.Err == nil {
			t.Errorf("%s: Inspect: %v, %+v", c.name, err, h)
		}
		if w != nil {
			w.poll, w.steal = time.Millisecond, 5*time.Millisecond
			if err := w.Repair(ctx); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s: a repair out of nothing: %v", c.name, err)
			}
		}
	}
}

// cutAfterCommit makes a volume on which only one copy has the newest
// definitions, and damages that one.
func cutAfterCommit(t *testing.T) (*Memory, *Volume) {
	t.Helper()
	ctx := t.Context()
	m := newMemory(t, 512)
	v := open(t, m.Session("a"))
	_, err := v.create(ctx, vm("one", 10))
	must(t, err)
	s := m.Session("b")
	w := open(t, s)
	slotWrites := 0
	s.Fault = func(op Op, lba uint64, _ int) Fault {
		if op == OpWrite && (lba == w.lba(slotAt[0]) || lba == w.lba(slotAt[1])) {
			if slotWrites++; slotWrites == 2 {
				return Fault{Err: errors.New("medium error")} // and the lock is given back
			}
		}
		return Fault{}
	}
	if _, err := w.create(ctx, vm("two", 10)); err == nil || !strings.Contains(err.Error(), "the change holds, but its second copy") {
		t.Fatalf("the second copy: %v", err)
	}
	if got := names(t, v); got != "one two" {
		t.Fatalf("VMs: %q", got)
	}
	sl, err := v.readSlots(ctx)
	must(t, err)
	slot, err := sl.newest()
	must(t, err)
	lba := v.lba(slotAt[slot] + slotHeader)
	p := m.sector(lba)
	p[9] ^= 1
	m.data[lba] = p
	return m, v
}

// TestRollback: where the only newest copy is damaged, nothing falls back to the
// older one by itself. A person may.
func TestRollback(t *testing.T) {
	ctx := t.Context()
	for _, lockToo := range []bool{false, true} {
		m, v := cutAfterCommit(t)
		if lockToo {
			m.data[v.lba(lockAt)] = make([]byte, 512)
		}
		if _, err := v.Definitions(ctx); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), `"hvd volume rollback"`) {
			t.Errorf("damaged definitions: %v", err)
		}
		if _, err := v.create(ctx, vm("three", 10)); !errors.Is(err, ErrDamaged) {
			t.Errorf("update of damaged definitions: %v", err)
		}
		if err := v.Repair(ctx); !errors.Is(err, ErrDamaged) {
			t.Errorf("repair of damaged definitions: %v", err)
		}
		must(t, v.Rollback(ctx))
		if got := names(t, v); got != "one" {
			t.Errorf("after Rollback: %q", got)
		}
		_, err := v.create(ctx, vm("three", 10))
		must(t, err)
		if h, err := Inspect(ctx, m.Session("x")); err != nil || h.Damaged() || names(t, v) != "one three" {
			t.Errorf("after Rollback and Create: %q, %v, %+v", names(t, v), err, h)
		}
	}
}

// TestLostLock: an update whose lock block was overwritten writes nothing more.
func TestLostLock(t *testing.T) {
	m := newMemory(t, 512)
	s := m.Session("a")
	v := open(t, s)
	free := m.sector(v.lba(lockAt))
	s.Fault = func(op Op, lba uint64, _ int) Fault {
		if op == OpWrite && lba == v.ArbiterLBA(0) {
			m.mu.Lock()
			m.data[v.lba(lockAt)] = free // an older version of itself
			m.mu.Unlock()
		}
		return Fault{}
	}
	if _, err := v.create(context.Background(), vm("web", 10)); !errors.Is(err, ErrBusy) {
		t.Errorf("update without its lock: %v", err)
	}
	if got := names(t, v); got != "" {
		t.Errorf("VMs: %q", got)
	}
}
