package perm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs"
	"github.com/diskfs/go-diskfs/partition"
	"github.com/diskfs/go-diskfs/partition/gpt"
)

const (
	oldSize = 8 << 20
	newSize = 20<<20 + 512*5 // not a multiple of 4 KiB
)

// disk is a disk of newSize that holds the image of a smaller one, with a table that another program made.
func disk(t *testing.T, partitions int) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	d, err := diskfs.Create(path, oldSize, diskfs.SectorSize512)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	g := &gpt.Table{LogicalSectorSize: 512, PhysicalSectorSize: 512, ProtectiveMBR: true, GUID: "60C24CC1-F3F9-427A-8199-C6414F530000"}
	for i := range uint64(partitions) {
		g.Partitions = append(g.Partitions, &gpt.Partition{
			Index: int(i + 1), Start: 2048 + i*2048, End: 2048 + i*2048 + 2047, Type: gpt.LinuxFilesystem, Name: "p",
			GUID: fmt.Sprintf("60C24CC1-F3F9-427A-8199-C6414F5300%02X", i+1),
		})
	}
	if err := d.Partition(g); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, newSize)
	f, err := d.Backend.Sys()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(b[:oldSize], 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func grow(b []byte) (Plan, error) {
	return Grow(bytes.Clone(b[:TableSize]), bytes.Clone(b[len(b)-BackupSize:]), int64(len(b)))
}

// valid tells which tables a reader of the disk would accept, and where the fourth partition ends by them.
func valid(b []byte) (first, last bool) {
	n := uint64(len(b) / sector)
	return table{b[sector : 2*sector], b[2*sector : TableSize]}.check(1) == nil,
		table{b[len(b)-sector:], b[len(b)-BackupSize : len(b)-sector]}.check(n-1) == nil
}

// tableOf is the partition table of a disk as go-diskfs reads it.
func tableOf(t *testing.T, b []byte) partition.Table {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := diskfs.Open(path, diskfs.WithOpenMode(diskfs.ReadOnly))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	got, err := d.GetPartitionTable()
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestGrow(t *testing.T) {
	b := disk(t, 4)
	p, err := grow(b)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range p.Writes {
		copy(b[w.Offset:], w.Data)
	}
	if first, last := valid(b); !first || !last {
		t.Errorf("tables: %v, %v", first, last)
	}
	if p.Start != (2048+3*2048)*512 || p.Start+p.Size > newSize-BackupSize || p.Start+p.Size < newSize-BackupSize-4096 || p.Size%4096 != 0 {
		t.Errorf("%d bytes at %d", p.Size, p.Start)
	}
	got := tableOf(t, b)
	parts := got.GetPartitions()
	if len(parts) < 4 || parts[3].GetStart() != p.Start || parts[3].GetSize() != p.Size || parts[2].GetSize() != 1<<20 {
		t.Errorf("go-diskfs sees the fourth at %d, %d bytes", parts[3].GetStart(), parts[3].GetSize())
	}
	if again, err := grow(b); err != nil || len(again.Writes) != 0 || again.Size != p.Size {
		t.Errorf("a second time: %+v, %v", again, err)
	}
}

// TestGrowCut cuts the power after each sector: one table must be whole, and the next boot must finish the work.
func TestGrowCut(t *testing.T) {
	old := disk(t, 4)
	p, err := grow(old)
	if err != nil || len(p.Writes) != 2 {
		t.Fatalf("%+v, %v", p, err)
	}
	want := bytes.Clone(old)
	for _, w := range p.Writes {
		copy(want[w.Offset:], w.Data)
	}
	repaired := 0
	for cut := range 2 * BackupSize / sector {
		b := bytes.Clone(old)
		left := cut * sector
		for _, w := range p.Writes {
			n := min(left, len(w.Data))
			copy(b[w.Offset:], w.Data[:n])
			left -= n
		}
		if first, last := valid(b); !first && !last {
			t.Fatalf("no table after %d sectors", cut)
		}
		again, err := grow(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range again.Writes {
			copy(b[w.Offset:], w.Data)
		}
		if again.Repaired {
			repaired++
		}
		if !bytes.Equal(b, want) {
			t.Fatalf("after a cut at %d sectors the next boot doesn't finish the work", cut)
		}
	}
	if repaired == 0 {
		t.Error("no cut made the first table bad")
	}
}

// TestIdentify has go-diskfs read the GUIDs that a disk gets.
func TestIdentify(t *testing.T) {
	b := disk(t, 4)
	before, after, err := Identify(b[:TableSize], 0x00ab12cd)
	if err != nil || before != "60c24cc1-f3f9-427a-8199-c6414f530001" || after != "60c24cc1-f3f9-427a-8199-00ab12cd0001" {
		t.Fatalf("%s, %s, %v", before, after, err)
	}
	if binary.LittleEndian.Uint32(b[signatureAt:]) != 0x00ab12cd {
		t.Errorf("the disk's signature is %x", b[signatureAt:][:4])
	}
	clear(b[len(b)-BackupSize:])
	p, err := grow(b)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range p.Writes {
		copy(b[w.Offset:], w.Data)
	}
	got := tableOf(t, b)
	for i, q := range got.(*gpt.Table).Partitions[:4] {
		if want := fmt.Sprintf("60C24CC1-F3F9-427A-8199-00AB12CD%04X", i+1); q.GUID != want {
			t.Errorf("partition %d has %s, want %s", i+1, q.GUID, want)
		}
	}
	if at, size, err := Partition(b[:TableSize], 3); at != (2048+2*2048)*512 || size != 1<<20 || err != nil {
		t.Errorf("partition 3: %d bytes at %d, %v", size, at, err)
	}
	other := disk(t, 4)
	other[1024+16]++
	if _, _, err := Identify(other[:TableSize], 1); err == nil {
		t.Error("a table whose checksum is wrong gets an identity")
	}
	three := disk(t, 3)
	if _, _, err := Identify(three[:TableSize], 1); err == nil || !strings.Contains(err.Error(), "as gokrazy's packer") {
		t.Errorf("three partitions: %v", err)
	}
	for _, n := range []int{0, 5, 129} {
		if _, _, err := Partition(b[:TableSize], n); err == nil {
			t.Errorf("there is a partition %d", n)
		}
	}
}

func TestGrowRefuses(t *testing.T) {
	behind := disk(t, 5)
	if p, err := grow(behind); err != nil || p.Size != 1<<20 {
		t.Errorf("with a partition behind it: %+v, %v", p, err)
	}
	for name, c := range map[string]struct {
		change func([]byte) []byte
		want   string
	}{
		"no table":          {func(b []byte) []byte { clear(b[:TableSize]); return b }, "no partition table"},
		"three partitions":  {func([]byte) []byte { return disk(t, 3) }, "no fourth partition"},
		"of a larger disk":  {func(b []byte) []byte { return b[:4<<20] }, "beyond the disk's end"},
		"changed entries":   {func(b []byte) []byte { b[1024+40]++; return b }, "checksum"},
		"changed header":    {func(b []byte) []byte { b[512+60]++; return b }, "checksum"},
		"hardly any disk":   {func(b []byte) []byte { return b[:TableSize] }, "too small"},
		"another GPT shape": {func(b []byte) []byte { b[512+84] = 64; return b }, "shape"},
	} {
		b := c.change(disk(t, 4))
		if p, err := grow(b); err == nil || !strings.Contains(err.Error(), c.want) || len(p.Writes) != 0 {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

// FuzzGrow feeds tables of any bytes: no panic, and no write outside of the disk's two ends.
func FuzzGrow(f *testing.F) {
	f.Add(make([]byte, TableSize), make([]byte, BackupSize), int64(1<<20))
	seed := table{header: make([]byte, sector), entries: make([]byte, entriesSize)}
	copy(seed.header, "EFI PART\x00\x00\x01\x00\x5c")
	seed.header[80], seed.header[84] = entryCount, entrySize
	seed.entries[permEntry*entrySize], seed.entries[permEntry*entrySize+33], seed.entries[permEntry*entrySize+41] = 1, 1, 2
	f.Add(append(make([]byte, sector), seed.encode(1, 2047, 2048)...), make([]byte, BackupSize), int64(1<<20))
	f.Fuzz(func(t *testing.T, start, end []byte, size int64) {
		for n := range 6 {
			if at, length, err := Partition(start, n); err == nil && (at <= 0 || length <= 0) {
				t.Errorf("partition %d: %d bytes at %d", n, length, at)
			}
		}
		p, err := Grow(start, end, size)
		_, _, _ = Identify(start, 1)
		if err != nil {
			return
		}
		if p.Start <= 0 || p.Size <= 0 || p.Start+p.Size > size-BackupSize {
			t.Errorf("%d bytes at %d of %d", p.Size, p.Start, size)
		}
		for _, w := range p.Writes {
			if w.Offset != sector && w.Offset+int64(len(w.Data)) != size/sector*sector || w.Offset < sector {
				t.Errorf("%d bytes at %d of %d", len(w.Data), w.Offset, size)
			}
		}
	})
}
