package vmproc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/daemon/define"
	"github.com/duet-ft/duet/hvd/hostcfg"
	"github.com/duet-ft/duet/hvd/hostkey"
	"github.com/duet-ft/duet/hvd/volume"
	"github.com/duet-ft/duet/image/target"
)

// diskBytes is the size of the guests' file systems below.
const diskBytes = 4 << 20

// extDisk makes a file system that holds files, by name.
func extDisk(t *testing.T, files map[string]string) []byte {
	t.Helper()
	root, img := t.TempDir(), filepath.Join(t.TempDir(), "disk.img")
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-d", root, img, fmt.Sprint(diskBytes>>10)).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("mke2fs is missing: install the package e2fsprogs")
	}
	if err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	b, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// onTarget puts disks on a volume, a VM each, and serves it by a real target.
func onTarget(t *testing.T, disks map[string][]byte) (file string, cfg *hostcfg.Config) {
	t.Helper()
	ctx := t.Context()
	file = filepath.Join(t.TempDir(), "volume")
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(128 << 20); err != nil {
		t.Fatal(err)
	}
	blocks, err := volume.NewFile(f, 512)
	if err != nil {
		t.Fatal(err)
	}
	if err := volume.Format(ctx, blocks); err != nil {
		t.Fatal(err)
	}
	v, err := volume.Open(ctx, blocks)
	if err != nil {
		t.Fatal(err)
	}
	for name, disk := range disks {
		def := volume.Definition{Name: name, Slot: volume.AutoSlot, MemoryMiB: 64, Disks: []volume.DiskDef{{Name: "root", SizeBytes: uint64(len(disk))}}}
		if def, err = define.Create(ctx, v, def); err != nil {
			t.Fatal(err)
		}
		err := v.Fill(ctx, def, "root", volume.DiskPartial, func(ctx context.Context, d *volume.DiskIO) error {
			_, err := volume.CopyStream(ctx, d, bytes.NewReader(disk), nil)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	tg, err := target.Start(ctx, target.Config{Dir: t.TempDir(), File: file})
	if errors.Is(err, target.ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tg.Stop)
	return file, &hostcfg.Config{Name: "a", Volume: &hostcfg.Volume{Portal: tg.Portal(), Target: tg.IQN()}}
}

// TestUnbootable starts VMs whose disks have nothing to boot, on a volume of a
// real target. Each says why, in one line; each is off then and not tried again;
// and its disk is as it was.
func TestUnbootable(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: no real target")
	}
	system := extDisk(t, map[string]string{"etc/fstab": "", "usr/bin/true": "", "boot/readme": "no kernel here"})
	text := extDisk(t, map[string]string{"boot/vmlinuz-1": strings.Repeat("text ", 1000)})
	damaged := bytes.Clone(text)
	copy(damaged[1024+32:], "\xff\xff\xff\xff\xff\xff\xff\xff") // blocks and clusters in a group
	noise := bytes.Clone(text)
	rand.NewChaCha8([32]byte{3}).Read(noise[4096:]) // all but the superblock
	disks := map[string][]byte{
		"blank": make([]byte, diskBytes), "nokernel": system, "text": text, "truncated": text[:diskBytes/2], "damaged": damaged, "noise": noise,
	}
	lines := map[string]string{
		"blank":     "the VM can't start: disk root: no ext4 file system found on the disk: it has neither a partition table nor ext4",
		"nokernel":  "the VM can't start: disk root: no Linux kernel found on the disk: looked for vmlinuz in /boot and / of the ext4 file system on the whole disk; install a kernel package",
		"text":      "the VM can't start: disk root: the whole disk: /boot/vmlinuz-1: ",
		"truncated": "the VM can't start: disk root: the whole disk: damaged ext4 file system: run e2fsck on it",
		"damaged":   "the VM can't start: disk root: the whole disk: damaged ext4 file system: run e2fsck on it",
		"noise":     "the VM can't start: disk root: the whole disk: /boot: damaged ext4 file system: run e2fsck on it",
	}
	file, host := onTarget(t, disks)
	for name := range disks {
		t.Run(name, func(t *testing.T) {
			before := extent(t, file, name)
			p := &Process{
				opt: Options{Name: name, RunDir: t.TempDir()}, host: host, key: hostkey.New(), begun: time.Now(),
				inputs: make(chan pair.Input, 1024), later: make(chan func(context.Context), 16),
			}
			defer p.close()
			for _, open := range []func() error{
				func() error { return p.openVolume(t.Context()) },
				p.openPair,
			} {
				if err := open(); err != nil {
					t.Fatal(err)
				}
			}
			p.command(pair.Start)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			go untilOff(ctx, cancel, p)
			if err := p.loop(ctx); err != nil {
				t.Fatal(err)
			}
			s := p.status()
			if !strings.HasPrefix(s.Error, lines[name]) || strings.Contains(s.Error, "\n") || s.Live || s.Role != pair.Standby.String() {
				t.Errorf("role %s, %q; want %q", s.Role, s.Error, lines[name])
			}
			starts := 0
			for _, e := range p.history() {
				if e.Role == pair.Starting.String() {
					starts++
				}
			}
			if starts != 1 {
				t.Errorf("%d starts: %+v", starts, p.history())
			}
			if !bytes.Equal(extent(t, file, name), before) {
				t.Error("the disk was changed")
			}
		})
	}
}

// untilOff cancels the loop's context once the VM was started and is off. It asks
// the loop, which owns the protocol.
func untilOff(ctx context.Context, cancel func(), p *Process) {
	tick := time.NewTicker(tick)
	defer tick.Stop()
	for range tick.C {
		if ctx.Err() != nil {
			return
		}
		p.later <- func(context.Context) {
			if b := p.pair.Block(); b.Kind == pair.Free && b.Epoch > 2 && p.pair.Role() == pair.Standby {
				cancel()
			}
		}
	}
}

// extent is what is on a VM's disk.
func extent(t *testing.T, file, name string) []byte {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	blocks, err := volume.NewFile(f, 512)
	if err != nil {
		t.Fatal(err)
	}
	v, err := volume.Open(t.Context(), blocks)
	if err != nil {
		t.Fatal(err)
	}
	d, err := v.OpenDisk(t.Context(), name, "root")
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, d.Sectors()*volume.SectorSize)
	if err := d.Read(t.Context(), 0, b); err != nil {
		t.Fatal(err)
	}
	return b
}

// A volume that can't be read is another matter: the VM is started once it can.
func TestBootFault(t *testing.T) {
	mem := volume.NewMemory(1<<17, 512)
	session := mem.Session("a")
	d, err := volume.NewDiskIO(session, volume.Extent{FirstLBA: 0, Blocks: 1 << 13})
	if err != nil {
		t.Fatal(err)
	}
	p := &Process{disks: []*volume.DiskIO{d}, def: volume.Definition{Disks: []volume.DiskDef{{Name: "root"}}}}
	if _, err := p.findKernel(t.Context()); bootFault(err) != pair.Unbootable {
		t.Errorf("a blank disk: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.findKernel(ctx); err == nil || bootFault(err) != pair.Crashed {
		t.Errorf("a volume that can't be read: %v", err)
	}
	if _, err := (&Process{}).findKernel(t.Context()); bootFault(err) != pair.Unbootable {
		t.Errorf("no disk: %v", err)
	}
}
