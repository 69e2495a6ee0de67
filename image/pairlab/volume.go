package pairlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/duet-ft/duet/hvd/daemon/define"
	"github.com/duet-ft/duet/hvd/iscsi"
	"github.com/duet-ft/duet/hvd/nexus"
	"github.com/duet-ft/duet/hvd/volume"
	"github.com/duet-ft/duet/image/guest"
	"github.com/duet-ft/duet/image/lab"
)

const (
	// guestDisk is the name of the guest's disk.
	guestDisk = "root"
	// blockSize is the volume's, in bytes.
	blockSize = 512
	// volumeMiB leaves room for the metadata beside the guest's disk.
	volumeMiB = guest.SizeMiB + 64
	// copyPiece is the unit in which zeros are left out.
	copyPiece = 64 << 10
)

// makeVolume makes the volume's file: formatted, with the guest's definition and disk. Only what isn't zero is
// written, so a copy in a cache wouldn't be faster.
func makeVolume(ctx context.Context, path, guestImage, output string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(volumeMiB << 20); err != nil {
		return err
	}
	blocks, err := volume.NewFile(f, blockSize)
	if err != nil {
		return err
	}
	if err := volume.Format(ctx, blocks); err != nil {
		return err
	}
	v, err := volume.Open(ctx, blocks)
	if err != nil {
		return err
	}
	image, err := os.Open(guestImage)
	if err != nil {
		return err
	}
	defer image.Close()
	info, err := image.Stat()
	if err != nil {
		return err
	}
	def, err := define.Create(ctx, v, volume.Definition{
		Name: Guest, Slot: volume.AutoSlot, MemoryMiB: GuestMemoryMiB, MAC: lab.MAC(GuestNumber), Output: output,
		Disks: []volume.DiskDef{{Name: guestDisk, SizeBytes: uint64(info.Size())}},
	})
	if err != nil {
		return err
	}
	err = v.Fill(ctx, def, guestDisk, volume.DiskPartial, func(ctx context.Context, d *volume.DiskIO) error {
		_, err := volume.CopyImage(ctx, d, image, info.Size(), true, nil)
		return err
	})
	if err != nil {
		return err
	}
	return f.Close()
}

// OnVolume runs do on the volume while the hosts use it, as another host of the pair's storage network would.
func (p *Pair) OnVolume(ctx context.Context, do func(v *volume.Volume) error) error {
	s, err := iscsi.Dial(ctx, iscsi.Config{
		Portal: p.Target.Portal(), Target: p.Target.IQN(), Initiator: nexus.Initiator("lab"),
		ISID: nexus.ISID(nexus.Daemon), User: chapUser, Secret: p.keys.secret,
	})
	if err != nil {
		return err
	}
	defer s.Close()
	// The hosts' reservation lets those write only that are registered.
	if err := s.Join(ctx); err != nil {
		return err
	}
	v, err := volume.Open(ctx, s)
	if err == nil {
		err = do(v)
	}
	return errors.Join(err, s.Leave(ctx))
}

// SetOutput changes the VM's level of the output rule; copies that start from now on follow it.
func (p *Pair) SetOutput(ctx context.Context, level string) error {
	return p.OnVolume(ctx, func(v *volume.Volume) error {
		return v.Modify(ctx, Guest, func(d *volume.Definition) { d.Output = level })
	})
}

// Fsck ends the hosts and the target and checks the guest's file system. The volume stays as it is: e2fsck gets a copy
// of the partition. After a guest that didn't shut down, its journal is replayed there first, as a mount would. The
// error says what e2fsck found.
func (p *Pair) Fsck(ctx context.Context) error {
	if err := p.Close(); err != nil {
		return err
	}
	f, err := os.Open(p.volume)
	if err != nil {
		return err
	}
	defer f.Close()
	blocks, err := volume.NewFile(f, blockSize)
	if err != nil {
		return err
	}
	v, err := volume.Open(ctx, blocks)
	if err != nil {
		return err
	}
	e, err := v.Disk(ctx, Guest, guestDisk)
	if err != nil {
		return err
	}
	part := filepath.Join(p.cfg.Dir, "guest-partition.img")
	defer os.Remove(part)
	if err := copyPart(part, f, int64(e.FirstLBA)*blockSize, int64(e.Blocks)*blockSize); err != nil {
		return err
	}
	if out, err := e2fsck(ctx, "-y", "-E", "journal_only", part); err != nil {
		return fmt.Errorf("the journal of the guest's file system can't be replayed: %w: %s", err, out)
	}
	if out, err := e2fsck(ctx, "-fn", part); err != nil {
		return fmt.Errorf("the guest's file system isn't clean: %w: %s", err, out)
	}
	return nil
}

func e2fsck(ctx context.Context, args ...string) (output string, err error) {
	bin := "e2fsck"
	if path, err := exec.LookPath(bin); err == nil {
		bin = path
	} else {
		bin = "/sbin/" + bin // a user's PATH may lack it
	}
	out, err := exec.CommandContext(ctx, bin, args...).CombinedOutput()
	if errors.Is(err, os.ErrNotExist) {
		err = errors.New("e2fsck is missing: install the package e2fsprogs")
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[max(0, len(lines)-10):], "; "), err
}

// copyPart copies n bytes from an offset on into a new file, and leaves holes for zeros.
func copyPart(to string, from io.ReaderAt, offset, n int64) error {
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	buf, zero := make([]byte, copyPiece), make([]byte, copyPiece)
	for at := int64(0); at < n; at += copyPiece {
		b := buf[:min(copyPiece, n-at)]
		if _, err := from.ReadAt(b, offset+at); err != nil {
			return err
		}
		if bytes.Equal(b, zero[:len(b)]) {
			continue
		}
		if _, err := out.WriteAt(b, at); err != nil {
			return err
		}
	}
	return errors.Join(out.Truncate(n), out.Close())
}
