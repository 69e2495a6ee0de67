package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/duet-ft/duet/ftlink/arbiter"
	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/daemon/define"
	"github.com/duet-ft/duet/hvd/volume"
)

// secrets leaves data of a disk that is no more where the next disks come to lie.
func secrets(t *testing.T, v *volume.Volume) {
	t.Helper()
	ctx := deadline(t)
	def := definition("former", 64)
	def.Disks[0].SizeBytes = 16 << 20
	def, err := define.Create(ctx, v, def)
	if err == nil {
		err = v.Fill(ctx, def, def.Disks[0].Name, volume.DiskPartial, func(ctx context.Context, d *volume.DiskIO) error {
			_, err := volume.CopyStream(ctx, d, bytes.NewReader(bytes.Repeat([]byte("secret! "), 2<<20)), nil)
			return err
		})
	}
	if err == nil {
		err = v.Delete(ctx, "former", def.UUID)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// ready waits until nothing is done to a disk any more, and returns it.
func (h *host) ready(t *testing.T, c *api.Client, vm, disk string) (found api.Disk) {
	t.Helper()
	h.eventually(t, "disk "+disk+" of VM "+vm+" is idle", func() bool {
		list, err := c.Disks(deadline(t))
		for _, d := range list {
			if d.VM == vm && d.Name == disk && d.Doing == "" && d.State != volume.DiskNew {
				found = d
				return err == nil
			}
		}
		return false
	})
	return found
}

// export is a disk's content.
func export(t *testing.T, c *api.Client, vm, disk string) []byte {
	t.Helper()
	r, _, err := c.ExportDisk(deadline(t), vm, disk)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// setBlock writes a VM's arbiter block, as the VM's process on a host does.
func setBlock(t *testing.T, v *volume.Volume, name string, change func(b *pair.Block)) {
	t.Helper()
	ctx := deadline(t)
	def, err := v.Definition(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := define.Block(ctx, v, def)
	if err != nil {
		t.Fatal(err)
	}
	b.Epoch, b.Nonce.N = b.Epoch+1, b.Nonce.N+1
	change(&b)
	if err := v.Blocks().Write(ctx, v.ArbiterLBA(def.Slot), arbiter.Encode(b, 512)); err != nil {
		t.Fatal(err)
	}
}

// TestDisks leads disks through all that can be done to them.
func TestDisks(t *testing.T) {
	h := newHost(t, goodConfig)
	v := h.format(t)
	secrets(t, v)
	h.join(t)
	h.start(t)
	c, ctx := h.client(t, "s3cret"), deadline(t)
	h.eventually(t, "the volume is there", func() bool { s, err := c.Host(ctx); return err == nil && s.Volume == "ok" })
	if _, err := c.Create(ctx, definition("db", 64)); err != nil {
		t.Fatal(err)
	}
	root := h.ready(t, c, "db", "root")
	zero := make([]byte, root.SizeBytes)
	if root.State != "ready" || !bytes.Equal(export(t, c, "db", "root"), zero) {
		t.Errorf("a new disk is %+v, and not of zeros", root)
	}
	if d, err := c.AddDisk(ctx, "db", "data", 2<<20); err != nil || d.SizeBytes != 2<<20 {
		t.Errorf("add: %+v, %v", d, err)
	}
	h.ready(t, c, "db", "data")
	image := bytes.Repeat([]byte("image"), 200<<10)
	if err := c.ImportDisk(ctx, "db", "data", bytes.NewReader(image)); err != nil {
		t.Fatal(err)
	}
	if d, err := c.GrowDisk(ctx, "db", "data", 4<<20); err != nil || d.SizeBytes != 4<<20 || d.State != "ready" {
		t.Errorf("grow: %+v, %v", d, err)
	}
	want := append(bytes.Clone(image), make([]byte, 4<<20-len(image))...)
	if !bytes.Equal(export(t, c, "db", "data"), want) {
		t.Error("the disk that has grown doesn't hold the image and zeros")
	}
	if _, err := c.Create(ctx, definition("web", 64)); err != nil {
		t.Fatal(err)
	}
	for _, to := range []api.DiskName{{VM: "web", Disk: "copy"}, {VM: "db", Disk: "second"}} {
		if _, err := c.CopyDisk(ctx, "db", "data", to); err != nil {
			t.Fatal(err)
		}
		if d := h.ready(t, c, to.VM, to.Disk); d.State != "ready" || !bytes.Equal(export(t, c, to.VM, to.Disk), want) {
			t.Errorf("the copy %+v isn't one", d)
		}
	}
	if err := c.DeleteDisk(ctx, "db", "data"); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(export(t, c, "db", "second"), want) {
		t.Error("the deletion of another disk changed a disk")
	}
	h.eventually(t, "the VMs run", func() bool { vm, err := c.VM(ctx, "db"); return err == nil && vm.Role == "primary" })
	refusals(t, h, c, v)
}

// refusals asks for what can't be done, and nothing changes.
func refusals(t *testing.T, h *host, c *api.Client, v *volume.Volume) {
	t.Helper()
	ctx := deadline(t)
	before, err := v.Definitions(ctx)
	if err != nil {
		t.Fatal(err)
	}
	two := func(_ api.Disk, err error) error { return err }
	try := func(line string, asks ...error) {
		t.Helper()
		for i, err := range asks {
			if err == nil || !strings.Contains(err.Error(), line) || strings.Contains(err.Error(), "\n") {
				t.Errorf("request %d: %v, want %q in one line", i, err, line)
			}
		}
	}
	h.ready(t, c, "web", "root")
	small := api.DiskName{VM: "web", Disk: "root"}
	try("grow it first", two(c.CopyDisk(ctx, "db", "second", small)))
	try("onto itself", two(c.CopyDisk(ctx, "db", "second", api.DiskName{VM: "db", Disk: "second"})))
	try("is a qcow2 file", c.ImportDisk(ctx, "db", "second", strings.NewReader("QFI\xfb and so on")))
	try("is empty", c.ImportDisk(ctx, "db", "second", strings.NewReader("")))
	try("can't be made smaller", two(c.GrowDisk(ctx, "db", "second", 1<<20)))
	try("volume is full", two(c.GrowDisk(ctx, "db", "root", 1<<40)), two(c.AddDisk(ctx, "db", "huge", 1<<40)))
	try("not found", two(c.GrowDisk(ctx, "db", "other", 8<<20)), c.DeleteDisk(ctx, "nope", "root"), c.ImportDisk(ctx, "db", "other", strings.NewReader("x")))
	try("is taken", two(c.AddDisk(ctx, "db", "second", 1<<20)))
	if err := c.DeleteDisk(ctx, "web", "copy"); err != nil {
		t.Error(err)
	}
	try("is the only one", c.DeleteDisk(ctx, "web", "root"))
	setBlock(t, v, "db", func(b *pair.Block) { b.Kind, b.Owner = pair.Solo, 7 })
	try(
		"VM db isn't stopped: stop it first", c.DeleteDisk(ctx, "db", "second"), two(c.GrowDisk(ctx, "db", "second", 8<<20)),
		c.ImportDisk(ctx, "db", "second", strings.NewReader("x")), two(c.CopyDisk(ctx, "db", "second", api.DiskName{VM: "db", Disk: "third"})),
		two(c.AddDisk(ctx, "db", "third", 1<<20)), c.Delete(ctx, "db"),
	)
	setBlock(t, v, "db", func(b *pair.Block) { b.Owner = define.Keeper("another").ID() })
	try("its disks are being changed by another host", c.DeleteDisk(ctx, "db", "second"), c.Delete(ctx, "db"), c.Start(ctx, "db"), c.ForceStart(ctx, "db"))
	setBlock(t, v, "db", func(b *pair.Block) { b.Kind, b.Owner = pair.Free, 0 })
	after, err := v.Definitions(ctx)
	if err != nil || len(after) != len(before) || len(after[0].Disks) != len(before[0].Disks) {
		t.Errorf("definitions %+v became %+v (%v)", before, after, err)
	}
}

// TestImportBrokenOff: the VM can't be started until its disk was filled again.
func TestImportBrokenOff(t *testing.T) {
	h := newHost(t, goodConfig)
	v := h.format(t)
	h.join(t)
	h.start(t)
	c, ctx := h.client(t, "s3cret"), deadline(t)
	h.eventually(t, "the volume is there", func() bool { s, err := c.Host(ctx); return err == nil && s.Volume == "ok" })
	if _, err := c.Create(ctx, definition("db", 64)); err != nil {
		t.Fatal(err)
	}
	h.ready(t, c, "db", "root")
	running := func() bool { vm, err := c.VM(ctx, "db"); return err == nil && vm.Role == "primary" }
	h.eventually(t, "the VM's process runs", running)
	image := bytes.Repeat([]byte("x"), 600<<10)
	err := c.ImportDisk(ctx, "db", "root", io.MultiReader(bytes.NewReader(image), iotest.ErrReader(errors.New("file is gone"))))
	if err == nil {
		t.Error("an image that broke off: no error")
	}
	if d := h.ready(t, c, "db", "root"); d.State != volume.DiskPartial || d.Error == "" {
		t.Errorf("the disk is %+v", d)
	}
	h.eventually(t, "the VM's process is gone", func() bool {
		vm, err := c.VM(ctx, "db")
		return err == nil && strings.Contains(vm.Error, "an import or copy onto it hasn't ended")
	})
	if err := c.Start(ctx, "db"); err == nil || !strings.Contains(err.Error(), "hasn't ended") {
		t.Errorf("start: %v", err)
	}
	def, err := v.Definition(ctx, "db")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := define.Block(ctx, v, def); err != nil || b.Kind != pair.Free {
		t.Errorf("the VM is still held: %v, %v", b, err)
	}
	if err := c.ImportDisk(ctx, "db", "root", bytes.NewReader(image)); err != nil {
		t.Fatal(err)
	}
	h.eventually(t, "the VM's process runs again", running)
	if got := export(t, c, "db", "root"); !bytes.HasPrefix(got, image) {
		t.Error("the disk doesn't hold the image")
	}
}

// TestFrozenWhileZeroing freezes a host in the middle of zeroing a disk. The other one takes it for dead, shuts it out, zeroes
// the disk and gets an image onto it; what the first one still writes when it wakes up is refused. Then it works again.
func TestFrozenWhileZeroing(t *testing.T) {
	a := newHost(t, goodConfig)
	v := a.format(t)
	secrets(t, v)
	b := newHost(t, strings.NewReplacer(`"name": "a"`, `"name": "b"`, `"name": "b"`, `"name": "a"`).Replace(goodConfig))
	b.mem = a.mem
	b.opt.StaleAfter = 100 * time.Millisecond
	var frozen atomic.Bool
	thaw, late := make(chan struct{}), make(chan error, 1)
	var dataFrom atomic.Uint64
	dataFrom.Store(1 << 60)
	a.fault = func(op volume.Op, lba uint64, _ int) volume.Fault {
		if op == volume.OpWrite && lba >= dataFrom.Load() && frozen.CompareAndSwap(false, true) {
			<-thaw // the host stands still in the middle of its write
			late <- nil
		} else if frozen.Load() {
			<-thaw
		}
		return volume.Fault{}
	}
	def, err := define.Create(deadline(t), v, definition("db", 64))
	if err != nil {
		t.Fatal(err)
	}
	e, err := v.Disk(deadline(t), "db", "root")
	if err != nil {
		t.Fatal(err)
	}
	dataFrom.Store(e.FirstLBA)
	a.start(t)
	a.eventually(t, "host a is frozen", frozen.Load)
	b.start(t)
	c, ctx := b.client(t, "s3cret"), deadline(t)
	const freed = "VM db: its disks were being changed when the host that did so died"
	b.eventually(t, "host b takes over", func() bool { return b.count(freed) == 1 })
	b.ready(t, c, "db", "root")
	image := bytes.Repeat([]byte("image!!!"), int(def.Disks[0].SizeBytes/8))
	if err := c.ImportDisk(ctx, "db", "root", bytes.NewReader(image)); err != nil {
		t.Fatal(err)
	}
	close(thaw)
	<-late
	ca := a.client(t, "s3cret")
	a.eventually(t, "host a goes on", func() bool { _, err := ca.Disks(ctx); return err == nil })
	a.ready(t, ca, "db", "root")
	if !bytes.Equal(export(t, c, "db", "root"), image) {
		t.Error("a host that was taken for dead has written to the disk")
	}
	// It was shut out, notices at its next change, and lets itself in again.
	if _, err := ca.AddDisk(ctx, "db", "data", 1<<20); err != nil {
		t.Errorf("host a can't change anything any more: %v", err)
	}
}
