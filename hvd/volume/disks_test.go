package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"
)

// create is Create with zeros in the arbiter block.
func (v *Volume) create(ctx context.Context, d Definition) (Definition, error) {
	return v.Create(ctx, d, func(Definition) ([]byte, error) {
		_, bs := v.b.Capacity()
		return make([]byte, bs), nil
	})
}

// zeroed makes a disk ready.
func zeroed(ctx context.Context, v *Volume, vm, disk string) error {
	def, err := v.Definition(ctx, vm)
	if err != nil {
		return err
	}
	return v.Fill(ctx, def, disk, DiskNew, func(ctx context.Context, d *DiskIO) error { return Zero(ctx, d, nil) })
}

// read returns what a disk that is ready holds.
func read(t *testing.T, v *Volume, vm, disk string) []byte {
	t.Helper()
	d, err := v.OpenDisk(t.Context(), vm, disk)
	must(t, err)
	p := make([]byte, d.Sectors()*SectorSize)
	must(t, d.Read(t.Context(), 0, p))
	return p
}

// secrets fills the first 12 MiB for disks with what no guest may see.
func secrets(t *testing.T, m *Memory) {
	t.Helper()
	v := open(t, m.Session("former"))
	def, err := v.create(t.Context(), vm("former", 12))
	must(t, err)
	must(t, v.Fill(t.Context(), def, "root", DiskPartial, func(ctx context.Context, d *DiskIO) error {
		p := bytes.Repeat([]byte("secret! "), 1<<17)
		for at := uint64(0); at < d.Sectors(); at += uint64(len(p) / SectorSize) {
			if err := d.Write(ctx, at, p); err != nil {
				return err
			}
		}
		return nil
	}))
	must(t, v.Delete(t.Context(), "former", def.UUID))
}

// byTarget is a volume whose target zeroes blocks by itself.
type byTarget struct {
	*MemorySession
	zeroed uint64
}

func (b *byTarget) Zero(ctx context.Context, lba, blocks uint64) error {
	b.zeroed += blocks
	return b.Write(ctx, lba, make([]byte, blocks*uint64(b.m.blockSize)))
}

// TestNewDisksAreZeros: a new disk can't be opened before it was filled, and then
// shows nothing of the disks before it, whoever zeroed it.
func TestNewDisksAreZeros(t *testing.T) {
	ctx := t.Context()
	base := newMemory(t, 512)
	secrets(t, base)
	for _, byTheTarget := range []bool{false, true} {
		m := base.clone()
		target := &byTarget{MemorySession: m.Session("a")}
		b := Blocks(target)
		if !byTheTarget {
			b = target.MemorySession
		}
		v := open(t, b)
		_, err := v.create(ctx, vm("web", 10))
		must(t, err)
		if _, err := v.OpenDisk(ctx, "web", "root"); !errors.Is(err, ErrNotReady) || strings.Contains(err.Error(), "\n") {
			t.Errorf("a new disk: %v", err)
		}
		def, err := v.Definition(ctx, "web")
		must(t, err)
		if err := def.Ready(); !errors.Is(err, ErrNotReady) {
			t.Errorf("a VM with a new disk: %v", err)
		}
		must(t, zeroed(ctx, v, "web", "root"))
		if !isZero(read(t, v, "web", "root")) {
			t.Error("a new disk shows old data")
		}
		if (target.zeroed > 0) != byTheTarget {
			t.Errorf("the target zeroed %d blocks", target.zeroed)
		}
	}
}

// cuts runs do with a power cut at each write, up to the run that has fewer.
// after sees what is left.
func cuts(t *testing.T, base *Memory, do func(v *Volume) error, after func(n int, done bool, v *Volume)) {
	t.Helper()
	for n, done := 1, false; !done; n++ {
		m := base.clone()
		s := m.Session("a")
		v := open(t, s)
		crashAt(s, n, n%2 == 0)
		err := do(v)
		if done = err == nil; !done && !errors.Is(err, errPowerCut) {
			t.Fatal(err)
		}
		m.Crash(func(lba uint64) bool { return lba%3 != 0 })
		w := open(t, m.Session("b"))
		w.steal = 5 * time.Millisecond
		after(n, done, w)
	}
}

// TestZeroingCut: a disk half zeroed after a power cut is new, and can be zeroed
// again.
func TestZeroingCut(t *testing.T) {
	ctx := t.Context()
	base := newMemory(t, 512)
	secrets(t, base)
	_, err := open(t, base.Session("x")).create(ctx, vm("web", 3))
	must(t, err)
	ready := 0
	cuts(t, base, func(v *Volume) error { return zeroed(ctx, v, "web", "root") }, func(n int, done bool, v *Volume) {
		def, err := v.Definition(ctx, "web")
		must(t, err)
		if def.Ready() != nil {
			if def.Disks[0].State != DiskNew || done {
				t.Fatalf("cut at write %d: %+v", n, def.Disks)
			}
			must(t, zeroed(ctx, v, "web", "root"))
		} else {
			ready++
		}
		if !isZero(read(t, v, "web", "root")) {
			t.Fatalf("cut at write %d: a disk that is ready shows old data", n)
		}
	})
	if ready == 0 {
		t.Error("it never got ready")
	}
}

// TestGrowthCut: a power cut leaves the old size or the new one, with what was
// there before and zeros behind it.
func TestGrowthCut(t *testing.T) {
	ctx := t.Context()
	base := newMemory(t, 512)
	secrets(t, base)
	v := open(t, base.Session("x"))
	def, err := v.create(ctx, vm("web", 2))
	must(t, err)
	content := bytes.Repeat([]byte("web"), 1<<19)
	must(t, v.Fill(ctx, def, "root", DiskPartial, func(ctx context.Context, d *DiskIO) error {
		_, err := CopyStream(ctx, d, bytes.NewReader(content), nil)
		return err
	}))
	grow := func(v *Volume) error {
		return v.GrowDisk(ctx, def, "root", 5<<20, func(ctx context.Context, d *DiskIO) error { return Zero(ctx, d, nil) })
	}
	sizes := map[int]int{}
	cuts(t, base, grow, func(n int, done bool, v *Volume) {
		for again := range 2 {
			got := read(t, v, "web", "root")
			sizes[len(got)]++
			if !bytes.HasPrefix(got, content) || !isZero(got[len(content):]) {
				t.Fatalf("cut at write %d: the disk of %d bytes holds something else", n, len(got))
			}
			if again == 0 {
				must(t, grow(v))
			} else if len(got) != 5<<20 {
				t.Fatalf("cut at write %d, then grown: %d bytes", n, len(got))
			}
		}
	})
	if sizes[2<<20] == 0 || sizes[5<<20] == 0 {
		t.Errorf("sizes seen: %v", sizes)
	}
}

func TestGrowthRefused(t *testing.T) {
	ctx := t.Context()
	v := open(t, newMemory(t, 512).Session("a"))
	def, err := v.create(ctx, vm("web", 2))
	must(t, err)
	must(t, v.AddDisk(ctx, def, DiskDef{Name: "data", SizeBytes: 3 << 20}))
	none := func(context.Context, *DiskIO) error { return errors.New("it was zeroed") }
	for _, c := range []struct {
		disk, want string
		n          uint64
		err        error
	}{
		{"root", "can grow to 2097152 bytes there", 3 << 20, ErrFull},
		{"data", "", 1 << 40, ErrFull},
		{"data", "disks can't be made smaller", 1 << 20, ErrInvalid},
		{"data", "expected a multiple of 4096", 4<<20 + 1, ErrInvalid},
		{"swap", "", 4 << 20, ErrNotFound},
	} {
		err := v.GrowDisk(ctx, def, c.disk, c.n, none)
		if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s to %d bytes: %v", c.disk, c.n, err)
		}
	}
	must(t, v.GrowDisk(ctx, def, "data", 3<<20, none)) // it has that size
	other := def
	other.UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"
	for _, err := range []error{
		v.GrowDisk(ctx, other, "data", 4<<20, none), v.AddDisk(ctx, other, DiskDef{Name: "x", SizeBytes: 1 << 20}),
		v.RemoveDisk(ctx, other, "data"), v.Delete(ctx, "web", other.UUID), v.setState(ctx, other, "data", ""),
	} {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("a change meant for another VM of that name: %v", err)
		}
	}
}

// TestAddRemove: two hosts change the disks of one VM at once, and no change is
// lost.
func TestAddRemove(t *testing.T) {
	ctx := t.Context()
	m := newMemory(t, 512)
	v := open(t, m.Session("a"))
	def, err := v.create(ctx, vm("web", 2))
	must(t, err)
	var both sync.WaitGroup
	for _, host := range []string{"a", "b"} {
		w := open(t, m.Session(host))
		w.steal = time.Minute
		both.Go(func() {
			for i := range 4 {
				name := fmt.Sprintf("%s%d", host, i)
				if err := w.AddDisk(ctx, def, DiskDef{Name: name, SizeBytes: 1 << 20}); err != nil {
					t.Error(err)
				}
				if err := zeroed(ctx, w, "web", name); err != nil {
					t.Error(err)
				}
				if i == 0 {
					if err := w.RemoveDisk(ctx, def, name); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	both.Wait()
	def, err = v.Definition(ctx, "web")
	must(t, err)
	if len(def.Disks) != 7 || def.Disks[0].Name != "root" || def.find("a0") >= 0 || def.find("b0") >= 0 {
		t.Errorf("disks %+v", def.Disks)
	}
	for _, k := range def.Disks[1:] {
		if err := k.Ready("web"); err != nil {
			t.Error(err)
		}
	}
	if err := v.AddDisk(ctx, def, DiskDef{Name: "a1", SizeBytes: 1 << 20}); !errors.Is(err, ErrExists) {
		t.Errorf("a name that is taken: %v", err)
	}
	if err := v.AddDisk(ctx, def, DiskDef{Name: "A", SizeBytes: 1 << 20}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a name that is none: %v", err)
	}
	single, err := v.create(ctx, vm("single", 1))
	must(t, err)
	if err := v.RemoveDisk(ctx, single, "root"); !errors.Is(err, ErrInvalid) {
		t.Errorf("the only disk: %v", err)
	}
}

// TestImportBrokenOff: a disk whose image broke off, was too large or couldn't be
// written is partial, and stays so until it is filled.
func TestImportBrokenOff(t *testing.T) {
	ctx := t.Context()
	base := newMemory(t, 512)
	def, err := open(t, base.Session("x")).create(ctx, vm("web", 2))
	must(t, err)
	image := bytes.Repeat([]byte("image"), 100<<10)
	fill := func(v *Volume, r io.Reader) error {
		return v.Fill(ctx, def, "root", DiskPartial, func(ctx context.Context, d *DiskIO) error {
			_, err := CopyStream(ctx, d, r, nil)
			return err
		})
	}
	for name, r := range map[string]io.Reader{
		"cut":       io.MultiReader(bytes.NewReader(image), iotest.ErrReader(io.ErrUnexpectedEOF)), // as a request's body
		"gone":      io.MultiReader(bytes.NewReader(image), iotest.ErrReader(errors.New("connection reset"))),
		"too large": bytes.NewReader(make([]byte, 2<<20+1)),
	} {
		v := open(t, base.clone().Session("a"))
		if err := fill(v, r); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := v.OpenDisk(ctx, "web", "root"); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "import") {
			t.Errorf("%s: %v", name, err)
		}
		must(t, fill(v, bytes.NewReader(image)))
		if got := read(t, v, "web", "root"); !bytes.HasPrefix(got, image) || !isZero(got[len(image):]) {
			t.Errorf("%s: after another import, the disk holds something else", name)
		}
	}
	cuts(t, base, func(v *Volume) error { return fill(v, iotest.HalfReader(bytes.NewReader(image))) }, func(n int, _ bool, v *Volume) {
		if _, err := v.OpenDisk(ctx, "web", "root"); err != nil {
			if !errors.Is(err, ErrNotReady) {
				t.Fatal(err)
			}
		} else if !bytes.HasPrefix(read(t, v, "web", "root"), image) {
			t.Fatalf("cut at write %d: a half imported disk is ready", n)
		}
	})
}
