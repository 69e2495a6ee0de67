package volume

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/iscsi"
	"github.com/duet-ft/duet/image/target"
)

// TestOverISCSI does on a real target what two hosts do with a new volume.
func TestOverISCSI(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: no real target")
	}
	tg, err := target.Start(t.Context(), target.Config{Dir: t.TempDir(), Size: 256 << 20})
	if errors.Is(err, target.ErrMissing) {
		t.Skip(err)
	}
	must(t, err)
	t.Cleanup(tg.Stop)
	ctx := t.Context()
	var hosts [2]*iscsi.Session
	for i, name := range []string{"a", "b"} {
		s, err := iscsi.Dial(ctx, iscsi.Config{Portal: tg.Portal(), Target: tg.IQN(), Initiator: "iqn.2024-01.org.duet-ft:" + name})
		must(t, err)
		t.Cleanup(func() { s.Close() })
		hosts[i] = s
	}
	// Both format, and one does. While it does, the other may see it half done.
	var wg sync.WaitGroup
	var errs [2]error
	for i, s := range hosts {
		wg.Go(func() { errs[i] = Format(ctx, s) })
	}
	wg.Wait()
	if errs[0] != nil && errs[1] != nil || errs[0] == nil && errs[1] == nil {
		t.Fatalf("two formats: %v; %v", errs[0], errs[1])
	}
	t.Log(errs)
	a, b := open(t, hosts[0]), open(t, hosts[1])
	// An update may take longer than tests with faults wait for a dead host.
	a.steal, b.steal = lockSteal, lockSteal
	if a.ID() != b.ID() {
		t.Error("two volumes")
	}
	// Reservations are in force when definitions change.
	must(t, hosts[0].Join(ctx))
	if _, err := b.create(ctx, vm("web", 10)); !errors.Is(err, iscsi.ErrReservationConflict) {
		t.Errorf("update by a host that hasn't joined: %v", err)
	}
	must(t, hosts[1].Join(ctx))
	for _, v := range []*Volume{a, b} {
		wg.Go(func() {
			for i := range 4 {
				if _, err := v.create(ctx, vm(string([]byte{'v', byte('a' + i)})+v.hostLetter(a), 4)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := names(t, a); got != names(t, b) || len(got) != 8*4-1 {
		t.Errorf("VMs: %q", got)
	}
	copyBig(t, a, b)
}

// copyBig copies an image by one host and reads it by the other.
func copyBig(t *testing.T, a, b *Volume) {
	t.Helper()
	ctx := t.Context()
	def, err := a.create(ctx, vm("big", 128))
	must(t, err)
	image := make([]byte, 128<<20)
	rand.NewChaCha8([32]byte{5}).Read(image[:64<<20])
	start := time.Now()
	var n int64
	must(t, a.Fill(ctx, def, "root", DiskPartial, func(ctx context.Context, d *DiskIO) (err error) {
		n, err = CopyImage(ctx, d, bytes.NewReader(image), int64(len(image)), true, nil)
		return err
	}))
	t.Logf("copied an image of 128 MiB (%d MiB of data) in %v", n>>20, time.Since(start))
	e, err := b.OpenDisk(ctx, "big", "root")
	must(t, err)
	got := make([]byte, len(image))
	must(t, e.Read(ctx, 0, got))
	if !bytes.Equal(got, image) {
		t.Error("the other host reads something else")
	}
	// The next disk on those blocks shows nothing of it.
	must(t, a.Delete(ctx, "big", def.UUID))
	_, err = b.create(ctx, vm("next", 64))
	must(t, err)
	at, err := b.Disk(ctx, "next", "root")
	must(t, err)
	if at.FirstLBA != e.Extent().FirstLBA {
		t.Errorf("the next disk lies at %+v, and not where the last one was, at %+v", at, e.Extent())
	}
	start = time.Now()
	must(t, zeroed(ctx, b, "next", "root"))
	t.Logf("zeroed 64 MiB in %v", time.Since(start))
	if !isZero(read(t, a, "next", "root")) {
		t.Error("a new disk shows old data")
	}
}

func (v *Volume) hostLetter(a *Volume) string {
	if v == a {
		return "a"
	}
	return "b"
}
