package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
)

func newDisk(t *testing.T, blockSize int) (*Memory, *DiskIO) {
	t.Helper()
	m := newMemory(t, blockSize)
	v := open(t, m.Session("a"))
	_, err := v.create(t.Context(), vm("web", 10))
	must(t, err)
	must(t, zeroed(t.Context(), v, "web", "root"))
	d, err := v.OpenDisk(t.Context(), "web", "root")
	must(t, err)
	if d.Sectors() != 10<<20/512 || d.BlockSize() != blockSize {
		t.Fatalf("disk of %d sectors, blocks of %d", d.Sectors(), d.BlockSize())
	}
	return m, d
}

// TestDiskIO compares with a model, unaligned requests included.
func TestDiskIO(t *testing.T) {
	for _, bs := range []int{512, 4096} {
		t.Run(fmt.Sprint(bs), func(t *testing.T) {
			_, d := newDisk(t, bs)
			model := make([]byte, 10<<20)
			r := rand.New(rand.NewPCG(3, uint64(bs)))
			for i := range 2000 {
				n := 1 + r.IntN(40)
				at := r.IntN(10<<20/512 - n + 1)
				if i%2 == 0 {
					p := bytes.Repeat([]byte{byte(i), byte(i >> 8)}, n*256)
					copy(model[at*512:], p)
					must(t, d.Write(t.Context(), uint64(at), p))
					continue
				}
				p := make([]byte, n*512)
				must(t, d.Read(t.Context(), uint64(at), p))
				if !bytes.Equal(p, model[at*512:][:len(p)]) {
					t.Fatalf("sectors %d to %d differ", at, at+n)
				}
			}
		})
	}
}

// TestDiskIONeighbours: concurrent writes of sectors in the same block don't
// undo each other.
func TestDiskIONeighbours(t *testing.T) {
	_, d := newDisk(t, 4096)
	var wg sync.WaitGroup
	for s := range 16 {
		wg.Go(func() {
			for i := range 200 {
				if err := d.Write(t.Context(), uint64(s), bytes.Repeat([]byte{byte(s), byte(i)}, 256)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	p := make([]byte, 16*512)
	must(t, d.Read(t.Context(), 0, p))
	for s := range 16 {
		if p[s*512] != byte(s) || p[s*512+1] != 199 {
			t.Errorf("sector %d holds % x", s, p[s*512:s*512+2])
		}
	}
}

func TestDiskIOBounds(t *testing.T) {
	m, d := newDisk(t, 512)
	p := make([]byte, 1024)
	for _, sector := range []uint64{d.Sectors(), d.Sectors() - 1, ^uint64(0), 1 << 63} {
		if err := d.Write(t.Context(), sector, p); !errors.Is(err, ErrBounds) {
			t.Errorf("write of sector %d: %v", sector, err)
		}
		if err := d.Read(t.Context(), sector, p); !errors.Is(err, ErrBounds) {
			t.Errorf("read of sector %d: %v", sector, err)
		}
	}
	if err := d.Read(t.Context(), 0, p[:100]); err == nil {
		t.Error("read of 100 bytes")
	}
	if err := d.Read(t.Context(), 0, nil); err == nil {
		t.Error("read of nothing")
	}
	for _, e := range []Extent{{0, 0}, {1 << 19, 1}, {5, ^uint64(0)}, {^uint64(0), 5}} {
		if _, err := NewDiskIO(m.Session("a"), e); err == nil {
			t.Errorf("extent %+v", e)
		}
	}
}

func TestCopyImage(t *testing.T) {
	image := make([]byte, 5<<20+300)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(image[1<<20 : 2<<20])
	r.Read(image[3<<20+5000 : 3<<20+6000])
	image[len(image)-1] = 1
	for _, fresh := range []bool{true, false} {
		for _, bs := range []int{512, 4096} {
			m, d := newDisk(t, bs)
			if !fresh { // what an old disk left there
				p := make([]byte, 10<<20)
				r.Read(p)
				must(t, d.Write(t.Context(), 0, p))
			}
			var last int64
			n, err := CopyImage(t.Context(), d, bytes.NewReader(image), int64(len(image)), fresh, func(done, total int64) {
				if done <= last || done > total {
					t.Errorf("progress %d after %d of %d", done, last, total)
				}
				last = done
			})
			must(t, err)
			if fresh && n > 2<<20 {
				t.Errorf("%d bytes were written of an image with 1 MiB of data", n)
			}
			m.Crash(nil) // CopyImage has synced
			got := make([]byte, 10<<20)
			must(t, d.Read(t.Context(), 0, got))
			if !bytes.Equal(got[:len(image)], image) || !isZero(got[len(image):]) {
				t.Errorf("fresh %v, blocks of %d: copy differs", fresh, bs)
			}
			if !fresh { // again: the zeros are there already
				n, err := CopyImage(t.Context(), d, bytes.NewReader(image), int64(len(image)), false, nil)
				must(t, err)
				if n > 2<<20 {
					t.Errorf("second copy wrote %d bytes", n)
				}
			}
		}
	}
	_, d := newDisk(t, 512)
	if _, err := CopyImage(t.Context(), d, bytes.NewReader(image), 11<<20, true, nil); err == nil {
		t.Error("image is larger than the disk")
	}
	if _, err := CopyImage(t.Context(), d, bytes.NewReader(image), 6<<20, true, nil); err == nil {
		t.Error("image ends early")
	}
}

// zeroing is a volume that makes zeros by itself, and counts the blocks.
type zeroing struct {
	Blocks
	zeroed uint64
}

func (z *zeroing) Zero(ctx context.Context, lba, n uint64) error {
	z.zeroed += n
	_, bs := z.Capacity()
	return z.Write(ctx, lba, make([]byte, n*uint64(bs)))
}

// TestZerosOfImage: zeros of an image that lie on old data are made by the volume.
func TestZerosOfImage(t *testing.T) {
	z := &zeroing{Blocks: NewMemory(1<<13, 512).Session("a")}
	d, err := NewDiskIO(z, Extent{FirstLBA: 16, Blocks: 4096})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Write(t.Context(), 0, bytes.Repeat([]byte{7}, 2048*SectorSize)); err != nil {
		t.Fatal(err)
	}
	image := append(bytes.Repeat([]byte{1}, 128<<10), make([]byte, 64<<10)...)
	if _, err := CopyImage(t.Context(), d, bytes.NewReader(image), int64(len(image)), false, nil); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4096*SectorSize)
	if err := d.Read(t.Context(), 0, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got[:len(image)], image) || !isZero(got[len(image):]) {
		t.Error("the disk doesn't hold the image")
	}
	if want := uint64(2048 - 256); z.zeroed != want {
		t.Errorf("the volume made %d blocks of zeros, want %d", z.zeroed, want)
	}
}
