package vmproc

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/hostkey"
	"github.com/duet-ft/duet/hvd/iscsi"
	"github.com/duet-ft/duet/hvd/nexus"
	"github.com/duet-ft/duet/hvd/volume"
)

// TestDisksChanged changes a VM's disks after its process has opened them, on a real target. The process wins the VM, and
// doesn't boot it.
func TestDisksChanged(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: no real target")
	}
	_, host := onTarget(t, map[string][]byte{"db": make([]byte, 2<<20)})
	p := &Process{
		opt: Options{Name: "db", RunDir: t.TempDir()}, host: host, key: hostkey.New(), begun: time.Now(),
		inputs: make(chan pair.Input, 1024), later: make(chan func(context.Context), 16),
	}
	defer p.close()
	ctx := t.Context()
	if err := p.openVolume(ctx); err != nil {
		t.Fatal(err)
	}
	s, err := iscsi.Dial(ctx, iscsi.Config{
		Portal: host.Volume.Portal, Target: host.Volume.Target, Initiator: nexus.Initiator("b"), ISID: nexus.ISID(nexus.Daemon),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Join(ctx); err != nil {
		t.Fatal(err)
	}
	v, err := volume.Open(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	def, err := v.Definition(ctx, "db")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.sameDisks(ctx); err != nil {
		t.Errorf("unchanged disks: %v", err)
	}
	where := layout(p.disks)
	zero := func(ctx context.Context, d *volume.DiskIO) error { return volume.Zero(ctx, d, nil) }
	broken := errors.New("broken off")
	for _, c := range []struct {
		name, line string
		change     func() error
	}{
		{"grown", "its disks were changed a moment ago", func() error { return v.GrowDisk(ctx, def, "root", 3<<20, zero) }},
		{"a disk more", "disk data of VM db isn't ready", func() error { return v.AddDisk(ctx, def, volume.DiskDef{Name: "data", SizeBytes: 1 << 20}) }},
		{"zeroed", "its disks were changed a moment ago", func() error { return v.Fill(ctx, def, "data", volume.DiskNew, zero) }},
		{"half imported", "disk root of VM db isn't ready", func() error {
			err := v.Fill(ctx, def, "root", volume.DiskPartial, func(context.Context, *volume.DiskIO) error { return broken })
			if errors.Is(err, broken) {
				return nil
			}
			return err
		}},
		{"deleted", "it was deleted", func() error { return v.Delete(ctx, "db", def.UUID) }},
	} {
		if err := c.change(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		_, err := p.load(ctx)
		if err == nil || !strings.HasPrefix(err.Error(), c.line) || strings.Contains(err.Error(), "\n") || bootFault(err) != pair.Unbootable {
			t.Errorf("%s: %v, want %q", c.name, err, c.line)
		}
	}
	if got := layout(p.disks); got != where || where == "" {
		t.Errorf("the disks of this process lie at %q, and lay at %q", got, where)
	}
}
