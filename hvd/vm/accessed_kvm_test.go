package vm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/boot"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/mem"
)

// otherKernel is where image/boottest puts a kernel of another version, with
// what it needs to reach the guest's disk built in.
const otherKernel = "/guest.vmlinuz"

// reclaimMemory is little enough that the workload fills it.
const reclaimMemory = 128 << 20

// reclaimScript is a workload in which much depends on accessed bits: memory is
// full of pages of files and of swapped ones, bits are cleared through /proc,
// and processes fork. What it prints depends on what was reclaimed. It runs
// as process 1, and has no double quotes, for it is a kernel argument.
const reclaimScript = `mount -t proc p /proc;mount -t devtmpfs d /dev 2>/dev/null;exec >/dev/ttyS0 2>&1;` +
	`echo START;dd if=/dev/zero of=/swapfile bs=1M count=40 2>/dev/null;chmod 600 /swapfile;mkswap /swapfile >/dev/null;swapon /swapfile;` +
	`perl -e '$x=q(abcd);$x.=$x for 1..23;for $r(1..2){for($i=0;$i<length $x;$i+=8192){substr($x,$i,1)=chr(65+$r)}` +
	`open F,q(>/proc/self/clear_refs);print F 1;close F;` +
	`$p=fork;if(!$p){for($i=0;$i<length $x;$i+=65536){substr($x,$i,1)=q(c)}exit 0}` +
	`for($i=0;$i<length $x;$i+=12288){$s+=ord substr($x,$i,1)}` +
	`system(q(find /usr/lib/modules /usr/lib/x86_64-linux-gnu -type f|xargs cat|head -c 24m|wc -c));waitpid $p,0;print qq($r $s\n)}';` +
	`grep -E 'pgact|pgdeact|pgrefill|refault|pswp|pgsteal|pgscan' /proc/vmstat;echo END;sleep 100000`

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
	m, err := machine.New(sys, machine.Config{
		MemoryBytes: reclaimMemory,
		Board: board.Config{
			Disks: []board.Disk{{Sectors: uint64(size / 512), Serial: "guest"}},
			MAC:   guestMAC, CID: 3, Wall: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		},
		Traps: kvm.FlagCR3 | kvm.FlagPF,
	})
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
	exits int
	set   int // bits so far
}

// noiseEvery is how many exits pass between two disturbances.
const noiseEvery = 40

func (n *noise) disturb(s machine.Step) {
	n.exits++
	if n.exits < noiseEvery || s.Reason != kvm.ExitIO && s.Reason != kvm.ExitMMIO && s.Reason != kvm.ExitHLT {
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
		case e&pteAccessed == 0 && n.rng.IntN(4) == 0:
			// Marked as written, as KVM's dirty log does it for a processor.
			if err := n.m.Memory.Write(at&pteFrame+uint64(8*i), []byte{byte(e | pteAccessed)}); err != nil {
				panic(err)
			}
			n.set++
		}
	}
}

// ending is what is compared after the workload. Accessed bits don't count.
type ending struct {
	position, fingerprint uint64
	state                 string
	pages                 []uint64
}

func endingOf(t *testing.T, m *machine.Machine) ending {
	t.Helper()
	f := finalOf(t, m)
	x := ending{position: f.position, fingerprint: f.fingerprint, state: string(f.state)}
	for p := range m.Memory.Pages() {
		x.pages = append(x.pages, m.Memory.HashPage(p))
	}
	return x
}

// reclaimed is a recorded workload.
type reclaimed struct {
	base  event.Base
	log   []byte
	end   ending
	steps []machine.Step
}

// TestAccessedBits records a workload that reclaims memory, and replays it on a
// machine whose processor sets accessed bits at will. With the kernel's
// functions for accessed bits switched off, as boot.Load does, the replay is
// exact; with the kernel untouched, the same noise makes it diverge, so the
// noise is one that matters.
func TestAccessedBits(t *testing.T) {
	for _, c := range []struct {
		name             string
		other, untouched bool
	}{
		{"guest's kernel", false, false},
		{"guest's kernel untouched", false, true},
		{"other kernel", true, false},
		{"other kernel untouched", true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			sys := duetKVM(t)
			r := recordReclaim(t, sys, c.other, c.untouched)
			diverged, set := replayNoisy(t, sys, r, c.other, c.untouched)
			switch {
			case set == 0:
				t.Error("no accessed bit was set")
			case c.untouched && diverged == "":
				t.Errorf("%d accessed bits were set in a guest that looks at them, and nothing has diverged", set)
			case !c.untouched && diverged != "":
				t.Errorf("after %d accessed bits: %s", set, diverged)
			}
			t.Logf("%d accessed bits were set; divergence: %q", set, diverged)
		})
	}
}

func recordReclaim(t *testing.T, sys *kvm.System, other, untouched bool) reclaimed {
	t.Helper()
	m := bootReclaim(t, sys, other, untouched)
	defer m.Close()
	rim := newTestRim(t)
	defer rim.disk.Close()
	e := New(m, rim, tcgConfig())
	rim.engine = e
	r := reclaimed{base: m.Base()}
	var log bytes.Buffer
	startLog(t, e, m, &log)
	m.Trace = func(s machine.Step) {
		if len(r.steps) < maxSteps {
			r.steps = append(r.steps, s)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	begun := time.Now()
	go func() { ended <- e.Live(ctx) }()
	go progress(ctx, e)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !strings.Contains(rim.tail(), "END\r\n") {
		select {
		case err := <-ended:
			t.Fatalf("the guest ended: %v\nconsole:\n%s", err, rim.tail())
		case <-tick.C:
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatalf("the guest ended: %v\nconsole:\n%s", err, rim.tail())
	}
	if err := e.flush(true); err != nil {
		t.Fatal(err)
	}
	report(t, "record", e, time.Since(begun))
	t.Logf("console:\n%s", rim.tail())
	r.log, r.end = log.Bytes(), endingOf(t, m)
	return r
}

// replayNoisy replays a recording with noise. It returns what differs, "" if
// nothing does, and how many accessed bits were set.
func replayNoisy(t *testing.T, sys *kvm.System, r reclaimed, other, untouched bool) (diverged string, set int) {
	t.Helper()
	m := bootReclaim(t, sys, other, untouched)
	defer m.Close()
	if err := m.Track(); err != nil {
		t.Fatal(err)
	}
	e := New(m, discard{}, tcgConfig())
	n := &noise{m: m, rng: rand.New(rand.NewPCG(1, 2))}
	at, first := 0, -1
	m.Trace = func(s machine.Step) {
		if at < len(r.steps) && s != r.steps[at] && first < 0 {
			first = at
			t.Logf("recorded %+v\nreplayed %+v", r.steps[at], s)
		}
		at++
		n.disturb(s)
	}
	if err := e.Feed(0, r.log); err != nil {
		t.Fatal(err)
	}
	e.Consume()
	begun := time.Now()
	err := e.Replay(t.Context(), r.base, func(uint64, uint64) {})
	report(t, "replay", e, time.Since(begun))
	switch {
	case errors.Is(err, lockstep.ErrDiverged) || first >= 0:
		return fmt.Sprintf("exit %d is the first that differs: %v", first, err), n.set
	case err != nil:
		t.Fatal(err)
	}
	got := endingOf(t, m)
	if slices.Equal(got.pages, r.end.pages) && got.state == r.end.state && got.fingerprint == r.end.fingerprint {
		return "", n.set
	}
	var pages []int
	for p := range got.pages {
		if got.pages[p] != r.end.pages[p] {
			pages = append(pages, p)
		}
	}
	return fmt.Sprintf("at exit %d: state differs: %t, pages that differ: %d, first %#x",
		got.position, got.state != r.end.state, len(pages), pages[:min(8, len(pages))]), n.set
}
