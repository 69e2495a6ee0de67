package pairlab

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/hostcfg"
	"github.com/duet-ft/duet/hvd/hostkey"
	"github.com/duet-ft/duet/hvd/volume"
	"github.com/duet-ft/duet/image/lab"
	"github.com/duet-ft/duet/image/target"
)

// withVolume makes a pair without hosts: a volume with a small guest's disk, and its target.
func withVolume(t *testing.T) *Pair {
	t.Helper()
	dir := t.TempDir()
	image := filepath.Join(dir, "guest.img")
	out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-d", t.TempDir(), image, "16M").CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("mke2fs is missing: install the package e2fsprogs")
	}
	if err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	p := &Pair{cfg: Config{Dir: dir}, volume: filepath.Join(dir, "volume.img"), keys: makeKeys()}
	if err := makeVolume(t.Context(), p.volume, image, ""); err != nil {
		t.Fatal(err)
	}
	p.Target, err = target.Start(t.Context(), target.Config{
		Dir: filepath.Join(dir, "target"), File: p.volume, User: chapUser, Secret: p.keys.secret,
	})
	if errors.Is(err, target.ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Target.Stop)
	return p
}

// definition is the guest's definition as it is on the volume.
func definition(t *testing.T, p *Pair) (d volume.Definition) {
	t.Helper()
	err := p.OnVolume(t.Context(), func(v *volume.Volume) (err error) {
		d, err = v.Definition(t.Context(), Guest)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestVolume(t *testing.T) {
	p := withVolume(t)
	d := definition(t, p)
	if d.MAC != lab.MAC(GuestNumber) || d.MemoryMiB != GuestMemoryMiB || d.Output != volume.OutputVerified {
		t.Errorf("the guest's definition: %+v", d)
	}
	if err := p.SetOutput(t.Context(), volume.OutputReceived); err != nil {
		t.Fatal(err)
	}
	if d := definition(t, p); d.Output != volume.OutputReceived {
		t.Errorf("output is %q", d.Output)
	}
	if err := p.Fsck(t.Context()); err != nil {
		t.Errorf("a fresh file system: %v", err)
	}
}

func TestFsckFindsDamage(t *testing.T) {
	p := withVolume(t)
	if err := p.Fsck(t.Context()); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(p.volume, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	blocks, err := volume.NewFile(f, blockSize)
	if err != nil {
		t.Fatal(err)
	}
	v, err := volume.Open(t.Context(), blocks)
	if err != nil {
		t.Fatal(err)
	}
	e, err := v.Disk(t.Context(), Guest, guestDisk)
	if err != nil {
		t.Fatal(err)
	}
	// The free blocks and inodes of the superblock (ext4's layout: offsets 0x0c and 0x10 of it).
	if _, err := f.WriteAt([]byte{1, 2, 3, 4, 5, 6, 7, 8}, int64(e.FirstLBA)*blockSize+1024+0x0c); err != nil {
		t.Fatal(err)
	}
	err = p.Fsck(t.Context())
	if err == nil || !strings.Contains(err.Error(), "isn't clean") {
		t.Errorf("damage wasn't found: %v", err)
	}
	if _, err := os.Stat(filepath.Join(p.cfg.Dir, "guest-partition.img")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the copy stays: %v", err)
	}
}

func TestPerm(t *testing.T) {
	p := withVolume(t)
	for _, name := range Names {
		files, err := p.perm(name)
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := hostcfg.Parse(files["duet/host.json"])
		if err != nil {
			t.Fatal(err)
		}
		key, err := hostkey.Parse(files["duet/host.key"])
		if err != nil {
			t.Fatal(err)
		}
		peer, err := p.perm(p.Peer(name))
		if err != nil {
			t.Fatal(err)
		}
		other, err := hostcfg.Parse(peer["duet/host.json"])
		if err != nil {
			t.Fatal(err)
		}
		pinned, err := other.Peer.PublicKey()
		if err != nil || !pinned.Equal(key.Public()) || other.Peer.Name != cfg.Name {
			t.Errorf("%s pins %s's key as %x (%v)", other.Name, name, pinned, err)
		}
		if cfg.Token != p.Token() || !strings.HasPrefix(cfg.Volume.Portal, lab.TargetIP+":") {
			t.Errorf("host.json of %s: %+v", name, cfg)
		}
	}
}

func TestWaitSaysWhatFor(t *testing.T) {
	p := &Pair{}
	err := p.wait(t.Context(), 20*time.Millisecond, "the moon", func(context.Context) (bool, string) {
		return false, "still behind clouds"
	})
	if err == nil || !strings.HasPrefix(err.Error(), "waited 0s for the moon: still behind clouds") {
		t.Errorf("got %v", err)
	}
	looks := 0
	if err := p.wait(t.Context(), time.Minute, "the third look", func(context.Context) (bool, string) {
		looks++
		return looks == 3, ""
	}); err != nil {
		t.Error(err)
	}
}
