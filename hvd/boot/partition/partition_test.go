package partition

import (
	"bytes"
	"errors"
	"hash/crc32"
	"slices"
	"testing"
)

const mib = 1 << 20

// gptDisk makes a disk of 16 MiB with partitions 1 and 3, and a backup.
func gptDisk(sector int) []byte {
	b := make([]byte, 16*mib)
	b[450], b[454] = 0xee, 1
	le.PutUint32(b[458:], uint32(len(b)/sector-1))
	b[510], b[511] = 0x55, 0xaa
	entries := make([]byte, 128*128)
	part := func(k, first, last int) {
		e := entries[(k-1)*128:]
		copy(e, "some type's GUID")
		le.PutUint64(e[32:], uint64(first/sector))
		le.PutUint64(e[40:], uint64(last/sector-1))
	}
	part(1, mib, 5*mib)
	part(3, 5*mib, 15*mib)
	last := len(b)/sector - 1
	for at, list := range map[int]int{1: 2, last: last - len(entries)/sector} {
		h := b[at*sector:]
		copy(h, "EFI PART\x00\x00\x01\x00")
		le.PutUint32(h[12:], 92)
		le.PutUint64(h[72:], uint64(list))
		le.PutUint32(h[80:], 128)
		le.PutUint32(h[84:], 128)
		le.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
		copy(b[list*sector:], entries)
	}
	return b
}

// mbrDisk makes a disk with a primary partition and two logical ones.
func mbrDisk() []byte {
	b := make([]byte, 16*mib)
	put := func(at, k int, kind byte, first, count uint32) {
		e := b[at+446+16*k:]
		e[4] = kind
		le.PutUint32(e[8:], first)
		le.PutUint32(e[12:], count)
		b[at+510], b[at+511] = 0x55, 0xaa
	}
	put(0, 0, 0x83, 2048, 4096)
	put(0, 1, 5, 8192, 20000)
	put(8192*512, 0, 0x83, 2048, 2048)
	put(8192*512, 1, 5, 6144, 8000)
	put((8192+6144)*512, 0, 0x83, 63, 4096)
	return b
}

func read(b []byte) ([]Partition, error) { return Read(bytes.NewReader(b), int64(len(b))) }

func TestGPT(t *testing.T) {
	want := []Partition{{1, mib, 4 * mib}, {3, 5 * mib, 10 * mib}}
	for _, sector := range []int{512, 4096} {
		b := gptDisk(sector)
		if got, err := read(b); err != nil || !slices.Equal(got, want) {
			t.Errorf("sectors of %d: %v, %v", sector, got, err)
		}
		b[2*sector+5]++ // the first list of entries
		if got, err := read(b); err != nil || !slices.Equal(got, want) {
			t.Errorf("from the backup: %v, %v", got, err)
		}
		b[len(b)-sector+40]++ // the backup's header
		if got, err := read(b); !errors.Is(err, ErrDamaged) {
			t.Errorf("both damaged: %v, %v", got, err)
		}
	}
}

func TestMBR(t *testing.T) {
	b := mbrDisk()
	want := []Partition{{1, 2048 * 512, 4096 * 512}, {5, 10240 * 512, 2048 * 512}, {6, (8192 + 6144 + 63) * 512, 4096 * 512}}
	if got, err := read(b); err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	loop := bytes.Clone(b)
	le.PutUint32(loop[8192*512+446+16+8:], 0) // the next table is this one
	if _, err := read(loop); !errors.Is(err, ErrDamaged) {
		t.Errorf("a chain that bites its tail: %v", err)
	}
	beyond := bytes.Clone(b)
	le.PutUint32(beyond[446+12:], 1<<20)
	if _, err := read(beyond); !errors.Is(err, ErrDamaged) {
		t.Errorf("beyond the end of the disk: %v", err)
	}
	if _, err := read(make([]byte, mib)); !errors.Is(err, ErrNone) {
		t.Errorf("zeros: %v", err)
	}
	if _, err := read(nil); !errors.Is(err, ErrNone) {
		t.Errorf("an empty disk: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte{}, uint16(0))
	g := gptDisk(512)
	f.Add(g[:2048], uint16(16))
	f.Add(mbrDisk()[:512], uint16(16))
	f.Add(g[len(g)-512:], uint16(1))
	f.Fuzz(func(t *testing.T, b []byte, kib uint16) {
		disk := make([]byte, max(len(b), int(kib)<<10))
		copy(disk, b)
		list, err := read(disk)
		if err != nil {
			return
		}
		for _, p := range list {
			if p.Start < 0 || p.Size < 0 || p.Start+p.Size > int64(len(disk)) {
				t.Fatalf("%+v on a disk of %d bytes", p, len(disk))
			}
		}
	})
}
