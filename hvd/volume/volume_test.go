package volume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/iscsi"
	"github.com/google/go-cmp/cmp"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newMemory is a formatted volume of 256 MiB.
func newMemory(t *testing.T, blockSize int) *Memory {
	t.Helper()
	m := NewMemory(256<<20/uint64(blockSize), blockSize)
	must(t, Format(t.Context(), m.Session("format")))
	return m
}

// open opens with short times for the lock.
func open(t *testing.T, b Blocks) *Volume {
	t.Helper()
	v, err := Open(t.Context(), b)
	must(t, err)
	v.poll, v.steal, v.lease = time.Millisecond, 50*time.Millisecond, 5*time.Second
	return v
}

func vm(name string, mib uint64) Definition {
	return Definition{
		Name: name, Slot: AutoSlot, MemoryMiB: 512, Disks: []DiskDef{{Name: "root", SizeBytes: mib << 20}},
	}
}

func names(t *testing.T, v *Volume) string {
	t.Helper()
	vms, err := v.Definitions(t.Context())
	must(t, err)
	var s []string
	for _, d := range vms {
		s = append(s, d.Name)
	}
	return strings.Join(s, " ")
}

func TestCreateDelete(t *testing.T) {
	for _, bs := range []int{512, 4096} {
		t.Run(fmt.Sprint(bs), func(t *testing.T) {
			ctx := t.Context()
			m := newMemory(t, bs)
			v := open(t, m.Session("a"))
			web := vm("web", 100)
			web.Disks = append(web.Disks, DiskDef{Name: "data", SizeBytes: 3 << 20})
			web, err := v.create(ctx, web)
			must(t, err)
			if web.Slot != 0 || web.CID != 3 || web.Output != OutputVerified || len(web.UUID) != 36 {
				t.Errorf("chosen: %+v", web)
			}
			db, err := v.create(ctx, vm("db", 50))
			must(t, err)
			if db.Slot != 1 || db.MAC == web.MAC {
				t.Errorf("chosen: %+v", db)
			}
			// another host sees the same
			w := open(t, m.Session("b"))
			got, err := w.Definitions(ctx)
			must(t, err)
			if diff := cmp.Diff([]Definition{db, web}, got); diff != "" {
				t.Error(diff)
			}
			var end uint64
			for _, k := range []struct {
				vm, disk string
				n        uint64
			}{{"web", "root", 100 << 20}, {"web", "data", 3 << 20}, {"db", "root", 50 << 20}} {
				e, err := w.Disk(ctx, k.vm, k.disk)
				must(t, err)
				if e.Blocks*uint64(bs) != k.n || e.FirstLBA < end || e.FirstLBA*uint64(bs)%alignment != 0 {
					t.Errorf("%s/%s at %+v", k.vm, k.disk, e)
				}
				end = e.FirstLBA + e.Blocks
			}
			if _, err := v.create(ctx, vm("big", 90)); !errors.Is(err, ErrFull) {
				t.Errorf("too big: %v", err)
			}
			must(t, v.Delete(ctx, "web", ""))
			if _, err := v.Disk(ctx, "web", "root"); !errors.Is(err, ErrNotFound) {
				t.Errorf("disk of a deleted VM: %v", err)
			}
			if _, err := v.create(ctx, vm("big", 90)); err != nil {
				t.Errorf("room of a deleted VM isn't free: %v", err)
			}
			must(t, w.Modify(ctx, "big", func(d *Definition) { d.MemoryMiB = 64 }))
			if d, err := v.Definition(ctx, "big"); err != nil || d.MemoryMiB != 64 {
				t.Errorf("modified: %+v %v", d, err)
			}
			if got := names(t, v); got != "big db" {
				t.Errorf("VMs: %s", got)
			}
			if err := v.Delete(ctx, "web", ""); !errors.Is(err, ErrNotFound) {
				t.Errorf("deleted twice: %v", err)
			}
		})
	}
}

// TestSgdisk lets the usual tool check the GPT.
func TestSgdisk(t *testing.T) {
	sgdisk, err := exec.LookPath("sgdisk")
	if err != nil {
		if sgdisk, err = exec.LookPath("/usr/sbin/sgdisk"); err != nil {
			t.Skip("sgdisk is missing: apt-get install gdisk")
		}
	}
	path := filepath.Join(t.TempDir(), "volume.img")
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(256<<20))
	b, err := NewFile(f, 512)
	must(t, err)
	must(t, Format(t.Context(), b))
	v := open(t, b)
	_, err = v.create(t.Context(), vm("web", 100))
	must(t, err)
	run := func(args ...string) string {
		out, err := exec.Command(sgdisk, append(args, path)...).CombinedOutput()
		if err != nil {
			t.Fatalf("sgdisk %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	verify := func() {
		t.Helper()
		if out := run("--verify"); !strings.Contains(out, "No problems found") {
			t.Errorf("sgdisk --verify: %s", out)
		}
	}
	verify()
	web, err := v.Definition(t.Context(), "web")
	must(t, err)
	must(t, v.GrowDisk(t.Context(), web, "root", 110<<20, func(context.Context, *DiskIO) error { return nil }))
	must(t, v.AddDisk(t.Context(), web, DiskDef{Name: "data", SizeBytes: 5 << 20}))
	verify()
	must(t, v.RemoveDisk(t.Context(), web, "data"))
	must(t, v.Repair(t.Context()))
	verify()
	if out := run("--print"); !strings.Contains(out, "duet:web:root") || !strings.Contains(out, "16.0 MiB") {
		t.Errorf("sgdisk --print: %s", out)
	}
	if out := run("--info=1"); !strings.Contains(out, TypeMetadata.String()) {
		t.Errorf("sgdisk --info: %s", out)
	}
	// sgdisk writes the table anew, and we still read it
	run("--randomize-guids", "--change-name=1:duet")
	if _, err := readTable(t.Context(), b); err != nil {
		t.Error(err)
	}
}

func TestFormatRefuses(t *testing.T) {
	put := func(at int, s string) func(p []byte) { return func(p []byte) { copy(p[at:], s) } }
	for _, c := range []struct {
		name, want string
		fill       func(p []byte)
	}{
		{"ext4", "ext4 file system; it is never overwritten", put(1080, "\x53\xef")},
		{"xfs", "XFS", put(0, "XFSB")},
		{"lvm", "LVM", put(512, "LABELONE")},
		{"mbr", "MBR partition table with 1 partitions", func(p []byte) { p[450], p[510], p[511] = 0x83, 0x55, 0xaa }},
		{"gpt", "a GPT with 3 partitions that aren't Duet's", func(p []byte) {
			tb := &table{blocks: uint64(len(p) / 512), blockSize: 512}
			for range 3 {
				must(t, tb.allocate(partition{typ: GUID{1}}, 1<<20))
			}
			a, b := tb.encode()
			copy(p, a)
			copy(p[len(p)-len(b):], b)
		}},
		{"gpt backup", "GPT", func(p []byte) {
			tb := &table{blocks: uint64(len(p) / 512), blockSize: 512}
			_, b := tb.encode()
			copy(p[len(p)-len(b):], b)
		}},
		{"text", "data that isn't Duet's", put(9000, "something")},
		{"where we would write", "data that isn't Duet's", put(16<<20, "something")},
		{"at the end", "data at its end", put(64<<20-700, "x")},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := make([]byte, 64<<20)
			c.fill(p)
			m := NewMemory(uint64(len(p)/512), 512)
			s := m.Session("a")
			must(t, s.Write(t.Context(), 0, p))
			s.Fault = func(op Op, _ uint64, _ int) Fault {
				if op == OpWrite || op == OpCompareAndWrite {
					t.Error("Format writes")
				}
				return Fault{}
			}
			err := Format(t.Context(), s)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	if err := Format(t.Context(), NewMemory(100, 512).Session("a")); err == nil || !strings.Contains(err.Error(), "64 MiB are needed") {
		t.Errorf("small volume: %v", err)
	}
	if err := Format(t.Context(), newMemory(t, 512).Session("a")); !errors.Is(err, ErrFormatted) {
		t.Errorf("second format: %v", err)
	}
	if _, err := Open(t.Context(), NewMemory(1<<18, 512).Session("a")); !errors.Is(err, ErrNotDuet) {
		t.Errorf("open of an empty volume: %v", err)
	}
	s := NewMemory(1<<18, 512).Session("a")
	s.Fault = func(op Op, _ uint64, _ int) Fault {
		if op == OpCompareAndWrite {
			return Fault{Err: iscsi.ErrNoCompareAndWrite}
		}
		return Fault{}
	}
	if err := Format(t.Context(), s); err == nil || !strings.Contains(err.Error(), "has no COMPARE AND WRITE") {
		t.Errorf("target without COMPARE AND WRITE: %v", err)
	}
}

var errPowerCut = errors.New("power cut")

// crashAt fails all accesses from the n-th write on; with a torn write, the
// n-th one is executed in part.
func crashAt(s *MemorySession, n int, torn bool) {
	writes := 0
	s.Fault = func(op Op, _ uint64, blocks int) Fault {
		if op == OpWrite || op == OpCompareAndWrite {
			writes++
		}
		switch {
		case writes == n && torn && op == OpWrite && blocks > 1:
			return Fault{Err: errPowerCut, Blocks: (blocks + 1) / 2}
		case writes >= n:
			return Fault{Err: errPowerCut}
		}
		return Fault{}
	}
}

// TestCrash cuts the power at each write of a Create and of a Delete, with and
// without a torn write, with random losses from the cache: the old or the new
// definitions hold, the disks of others stay where they are, and the next
// update works.
func TestCrash(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	base := newMemory(t, 512)
	v := open(t, base.Session("a"))
	for _, name := range []string{"old", "other"} {
		_, err := v.create(t.Context(), vm(name, 20))
		must(t, err)
	}
	for _, op := range []string{"create", "delete"} {
		for n, done := 1, false; !done; n++ {
			for _, torn := range []bool{false, true} {
				for loss := range 3 {
					done = crashOnce(t, r, base, op, n, torn, loss)
				}
			}
			if n > 40 {
				t.Fatal("an update has more than 40 writes")
			}
		}
	}
}

// clone copies a volume.
func (m *Memory) clone() *Memory {
	n := NewMemory(m.blocks, m.blockSize)
	maps.Copy(n.data, m.data) // blocks are replaced, never changed
	return n
}

func crashOnce(t *testing.T, r *rand.Rand, base *Memory, op string, n int, torn bool, loss int) (finished bool) {
	t.Helper()
	ctx := t.Context()
	m := base.clone()
	where, err := open(t, m.Session("a")).Disk(ctx, "other", "root")
	must(t, err)

	s := m.Session("a")
	w := open(t, s)
	crashAt(s, n, torn)
	want := []string{"old other"}
	if op == "create" {
		_, err = w.create(ctx, vm("new", 20))
		want = append(want, "new old other")
	} else {
		err = w.Delete(ctx, "old", "")
		want = append(want, "other")
	}
	if err == nil {
		want = want[1:]
	} else if !errors.Is(err, errPowerCut) {
		t.Fatal(err)
	}
	m.Crash(func(uint64) bool { return loss == 0 || loss == 1 && r.IntN(2) == 0 })

	after := open(t, m.Session("b"))
	got := names(t, after)
	if got != want[0] && got != want[len(want)-1] {
		t.Fatalf("%s, power cut at write %d (torn %v): VMs %q, want one of %q", op, n, torn, got, want)
	}
	now, err := after.Disk(ctx, "other", "root")
	must(t, err)
	if now != where {
		t.Fatalf("disk moved from %+v to %+v", where, now)
	}
	_, err = after.create(ctx, vm("next", 150))
	must(t, err)
	if got2 := names(t, after); !strings.Contains(got2, "next") || !strings.Contains(got2, "other") {
		t.Fatalf("VMs after the next update: %s", got2)
	}
	return err == nil && got == want[len(want)-1] && len(want) == 1
}

// TestFormatCrash: a Format that died can be done again.
func TestFormatCrash(t *testing.T) {
	for n := 1; ; n++ {
		m := NewMemory(64<<20/512, 512)
		s := m.Session("a")
		crashAt(s, n, n%2 == 0)
		err := Format(t.Context(), s)
		if err != nil && !errors.Is(err, errPowerCut) {
			t.Fatal(err)
		}
		m.Crash(func(lba uint64) bool { return lba%3 != 0 })
		if err := Format(t.Context(), m.Session("b")); err != nil && !errors.Is(err, ErrFormatted) {
			t.Fatalf("power cut at write %d, then: %v", n, err)
		}
		open(t, m.Session("b"))
		if err == nil {
			return
		}
	}
}

// TestTwoWriters: hosts that create and delete at once, with lost replies,
// never lose each other's updates.
func TestTwoWriters(t *testing.T) {
	ctx := t.Context()
	m := NewMemory(1<<30/512, 512)
	must(t, Format(ctx, m.Session("format")))
	var wg sync.WaitGroup
	for h := range 4 {
		s := m.Session(fmt.Sprint("host", h))
		v := open(t, s)
		v.lease, v.steal = 2*time.Second, 3*time.Second
		r := rand.New(rand.NewPCG(uint64(h), 1))
		s.Fault = func(op Op, _ uint64, _ int) Fault {
			if op == OpCompareAndWrite && r.IntN(8) == 0 {
				return []Fault{LostReply(), LostRequest()}[r.IntN(2)]
			}
			return Fault{}
		}
		wg.Go(func() {
			for i := range 8 {
				if _, err := v.create(ctx, vm(fmt.Sprintf("vm-%d-%d", h, i), 1)); err != nil && !errors.Is(err, iscsi.ErrUnknownOutcome) {
					t.Error(err)
				}
				if i%4 == 3 {
					if err := v.Delete(ctx, fmt.Sprintf("vm-%d-%d", h, i), ""); err != nil && !errors.Is(err, iscsi.ErrUnknownOutcome) {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	v := open(t, m.Session("x"))
	vms, err := v.Definitions(ctx)
	must(t, err)
	if len(vms) != 24 {
		t.Errorf("%d VMs, want 24: %s", len(vms), names(t, v))
	}
	slots := map[int]bool{}
	for _, d := range vms {
		slots[d.Slot] = true
		if _, err := v.Disk(ctx, d.Name, "root"); err != nil {
			t.Error(err)
		}
	}
	if len(slots) != len(vms) {
		t.Errorf("%d slots for %d VMs", len(slots), len(vms))
	}
}

// TestGPTBackup: the backup takes over, and the next update repairs the first.
func TestGPTBackup(t *testing.T) {
	ctx := t.Context()
	m := newMemory(t, 4096)
	s := m.Session("a")
	v := open(t, s)
	_, err := v.create(ctx, vm("one", 10))
	must(t, err)
	must(t, s.Write(ctx, 1, make([]byte, 4096)))
	must(t, v.Modify(ctx, "one", func(d *Definition) { d.MemoryMiB++ }))
	if _, err := readTableAt(ctx, s, 1); err != nil {
		t.Errorf("first GPT wasn't repaired: %v", err)
	}
}

// TestStaleLock: the lock of a dead host is taken over, that of a live one is
// waited for.
func TestStaleLock(t *testing.T) {
	m := newMemory(t, 512)
	v := open(t, m.Session("a"))
	h, err := v.takeLock(t.Context(), false)
	must(t, err)
	w := open(t, m.Session("b"))
	w.steal = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := w.create(ctx, vm("web", 10)); !errors.Is(err, ErrBusy) {
		t.Errorf("lock is held: %v", err)
	}
	w.steal = 20 * time.Millisecond
	_, err = w.create(t.Context(), vm("web", 10))
	must(t, err)
	// the dead host isn't dead after all, and gives its lock back late
	v.giveLock(t.Context(), h, 77)
	if got := names(t, v); got != "web" {
		t.Errorf("VMs: %q", got)
	}
	v.lease = -1
	if _, err := v.create(t.Context(), vm("late", 10)); err == nil || !strings.Contains(err.Error(), "took") {
		t.Errorf("update that takes too long: %v", err)
	}
	if got := names(t, v); got != "web" {
		t.Errorf("VMs: %q", got)
	}
}

func TestArbiterBlocks(t *testing.T) {
	ctx := t.Context()
	m := newMemory(t, 512)
	s := m.Session("a")
	v := open(t, s)
	seen := map[uint64]bool{}
	for i := range MaxVMs {
		lba := v.ArbiterLBA(i)
		if seen[lba] || lba < v.lba(arbiterAt) || lba >= v.lba(slotAt[0]) {
			t.Errorf("arbiter block %d is %d", i, lba)
		}
		seen[lba] = true
	}
	must(t, s.Write(ctx, v.ArbiterLBA(0), []byte(strings.Repeat("x", 512))))
	_, err := v.create(ctx, vm("web", 10))
	must(t, err)
	p := make([]byte, 512)
	must(t, s.Read(ctx, v.ArbiterLBA(0), p))
	if !isZero(p) {
		t.Error("a new VM got the arbiter block of an old one")
	}
}
