package survey

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/duet-ft/duet/hvd/daemon/define"
	"github.com/duet-ft/duet/hvd/iscsi"
	"github.com/duet-ft/duet/hvd/nexus"
	"github.com/duet-ft/duet/hvd/volume"
	"github.com/duet-ft/duet/image/target"
)

// good is a volume of a target that has everything, with one VM.
func good() Findings {
	return Findings{
		Portal: "192.0.2.5:3260", Target: "iqn.2026-01.example:duet", LUN: 1, Blocks: 1 << 22, BlockSize: 512,
		Features: &iscsi.Features{
			Inquiry: iscsi.Inquiry{Vendor: "Fake", Product: "target", Revision: "1", Serial: "one"}, Names: []string{"naa.6001020304050607"},
			CompareAndWrite: iscsi.Yes, Reservations: iscsi.Yes, RegistrantsOnly: iscsi.Yes, KeepsPowerless: iscsi.Yes, Unmap: iscsi.Yes,
			WriteSame: iscsi.Yes, UnmappedZero: iscsi.Yes, Thin: iscsi.No, WriteCache: iscsi.Yes, SyncCache: iscsi.Yes, ForceAccess: iscsi.Yes,
			Immediate: 64 << 10, MaxBurst: 1 << 20, MaxSegment: 256 << 10, Queue: 128, HeaderDigest: true, DataDigest: true,
		},
		Registered: []iscsi.Registration{
			{Key: 1, Port: iscsi.Port{Initiator: nexus.Initiator("a"), ISID: nexus.ISID(nexus.Daemon)}, Holder: true},
			{Key: 2, Port: iscsi.Port{Initiator: nexus.Initiator("b"), AnyISID: true}},
			{Key: 3},
		},
		Reservation: iscsi.WriteExclusiveRegistrantsOnly,
		Health: &volume.Health{
			ID: volume.GUID{1, 2, 3},
			Pieces: []volume.Piece{
				{Name: "GPT", LBA: 1},
				{Name: "lock block", LBA: 2056, Generation: 7},
				{Name: "VM definitions, copy 1", LBA: 4096, Generation: 7},
			},
			Parts: []volume.Extents{{Number: 1, Name: "duet", Bytes: 16 << 20}, {Number: 2, Name: "duet:db:root", Bytes: 20 << 30}},
			Free:  100 << 20, Largest: 90 << 20,
		},
		VMs: []VM{{Name: "db", State: "protected, epoch 9"}},
	}
}

// changes are what a line of testdata/reports may make of a good volume, by name.
var changes = map[string]func(f *Findings){
	"file":                 func(f *Findings) { f.Features = nil },
	"no-compare-and-write": func(f *Findings) { f.Features.CompareAndWrite = iscsi.No },
	"no-reservations":      func(f *Findings) { f.Features.Reservations, f.Features.RegistrantsOnly = iscsi.No, iscsi.Unknown },
	"no-type":              func(f *Findings) { f.Features.RegistrantsOnly = iscsi.No },
	"type-not-said": func(f *Findings) {
		f.Features.RegistrantsOnly, f.Features.KeepsPowerless = iscsi.Unknown, iscsi.Unknown
	},
	"no-sync":             func(f *Findings) { f.Features.SyncCache = iscsi.No },
	"no-sync-no-cache":    func(f *Findings) { f.Features.SyncCache, f.Features.WriteCache = iscsi.No, iscsi.No },
	"no-write-same":       func(f *Findings) { f.Features.WriteSame = iscsi.No },
	"no-unmap":            func(f *Findings) { f.Features.Unmap = iscsi.No },
	"unmap-leaves-data":   func(f *Findings) { f.Features.UnmappedZero = iscsi.No },
	"thin":                func(f *Findings) { f.Features.Thin = iscsi.Yes },
	"no-names":            func(f *Findings) { f.Features.Serial, f.Features.Names = "", nil },
	"no-digests":          func(f *Findings) { f.Features.HeaderDigest, f.Features.DataDigest = false, false },
	"blocks-of-2048":      func(f *Findings) { f.BlockSize = 2048 },
	"foreign-reservation": func(f *Findings) { f.Reservation = 3 },
	"nobody-registered":   func(f *Findings) { f.Reservation, f.Registered = 0, nil },
	"not-duets":           func(f *Findings) { f.Health, f.HealthErr, f.VMs = nil, volume.ErrNotDuet, nil },
	"unreadable":          func(f *Findings) { f.Health, f.HealthErr, f.VMs = nil, errors.New("medium error"), nil },
	"damaged-copy": func(f *Findings) {
		f.Health.Pieces[2].Fault, f.Health.Pieces[2].Repairable = "checksum of VM definitions: damaged", true
	},
	"damaged-both": func(f *Findings) {
		f.Health.Pieces[2].Fault, f.Health.Err, f.VMs = "checksum of VM definitions: damaged", volume.ErrDamaged, nil
	},
	"locked":         func(f *Findings) { f.Health.Locked = "b" },
	"disk-not-ready": func(f *Findings) { f.VMs[0].State, f.VMs[0].Wait = "stopped", "disk root of VM db isn't ready" },
	"damaged-block":  func(f *Findings) { f.VMs[0].State, f.VMs[0].Fault = "unknown", "VM db: arbiter block is blank" },
}

// TestReports compares the reports on good volumes and bad ones with testdata/reports: what differs from that of a good one.
func TestReports(t *testing.T) {
	tried := map[string]bool{}
	print := func(f Findings) []string {
		var out bytes.Buffer
		err := Print(&out, f.Report())
		text := strings.TrimSuffix(out.String(), "\n")
		if err != nil {
			text += "\nerror: " + err.Error()
		}
		var lines []string
		for line := range strings.Lines(text + "\n") {
			lines = append(lines, strings.Join(strings.Fields(line), " ")) // columns move
		}
		return lines
	}
	datadriven.RunTest(t, "testdata/reports", func(t *testing.T, d *datadriven.TestData) string {
		f := good()
		if d.Cmd == "good" {
			var out bytes.Buffer
			err := Print(&out, f.Report())
			return out.String() + fmt.Sprintln("error:", err)
		}
		for _, name := range strings.Fields(d.Input) {
			change := changes[name]
			if change == nil {
				d.Fatalf(t, "there is no change %s", name)
			}
			change(&f)
			tried[name] = true
		}
		before := map[string]bool{}
		for _, line := range print(good()) {
			before[line] = true
		}
		text := ""
		for _, line := range print(f) {
			if !before[line] {
				text += line + "\n"
			}
		}
		return text
	})
	for name := range changes {
		if !tried[name] {
			t.Errorf("testdata/reports doesn't try %s", name)
		}
	}
}

// TestLook looks at a volume in memory, and at one of a real target. Nothing changes.
func TestLook(t *testing.T) {
	ctx := context.Background()
	m := volume.NewMemory(1<<17, 512)
	s := m.Session("a")
	if f, err := Look(ctx, s, nil); err != nil || f.Report().OK || !errors.Is(f.HealthErr, volume.ErrNotDuet) {
		t.Errorf("an empty volume: %+v, %v", f, err)
	}
	if err := volume.Format(ctx, s); err != nil {
		t.Fatal(err)
	}
	look(t, s, nil)
	if testing.Short() {
		return
	}
	tg, err := target.Start(ctx, target.Config{Dir: t.TempDir(), Size: 64 << 20})
	if errors.Is(err, target.ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer tg.Stop()
	session, err := iscsi.Dial(ctx, iscsi.Config{Portal: tg.Portal(), Target: tg.IQN(), Initiator: nexus.Initiator("a"), ISID: nexus.ISID(nexus.Daemon)})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	if err := volume.Format(ctx, session); err != nil {
		t.Fatal(err)
	}
	if err := session.Join(ctx); err != nil {
		t.Fatal(err)
	}
	f := look(t, session, session)
	x := f.Features
	if x.CompareAndWrite != iscsi.Yes || x.Reservations != iscsi.Yes || x.SyncCache != iscsi.Yes || x.Queue < 1 || len(f.Registered) != 1 {
		t.Errorf("istgt is %+v, registered %+v", x, f.Registered)
	}
	var out bytes.Buffer
	if err := Print(&out, f.Report()); err != nil {
		t.Error(err)
	}
	t.Logf("istgt:\n%s", out.String())
}

// look defines a VM on a volume and looks at that.
func look(t *testing.T, b volume.Blocks, s *iscsi.Session) Findings {
	t.Helper()
	ctx := context.Background()
	v, err := volume.Open(ctx, b)
	if err != nil {
		t.Fatal(err)
	}
	def, err := define.Create(ctx, v, volume.Definition{
		Name: "db", Slot: volume.AutoSlot, MemoryMiB: 64, Disks: []volume.DiskDef{{Name: "root", SizeBytes: 1 << 20}},
	})
	if err != nil {
		t.Fatal(err)
	}
	f, err := Look(ctx, b, s)
	if err != nil || len(f.VMs) != 1 || f.VMs[0].State != "stopped" || f.VMs[0].Wait == "" || f.VMs[0].Fault != "" || !f.Report().OK {
		t.Errorf("a new VM: %+v, %v", f.VMs, err)
	}
	good := make([]byte, 512)
	if err := b.Read(ctx, v.ArbiterLBA(def.Slot), good); err != nil {
		t.Fatal(err)
	}
	for _, p := range [][]byte{make([]byte, 512), good} {
		if err := b.Write(ctx, v.ArbiterLBA(def.Slot), p); err != nil {
			t.Fatal(err)
		}
		if f, err = Look(ctx, b, s); err != nil {
			t.Fatal(err)
		}
		if ok := bytes.Equal(p, good); f.Report().OK != ok || (f.VMs[0].Fault == "") != ok {
			t.Errorf("the VM's arbiter block is good (%t): %+v", ok, f.VMs)
		}
	}
	return f
}
