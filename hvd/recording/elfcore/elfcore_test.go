package elfcore

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestWrite reads a core back with the standard library's reader.
func TestWrite(t *testing.T) {
	low, high := make([]byte, 4*pageSize), make([]byte, 2*pageSize)
	low[pageSize], high[1] = 0xaa, 0xbb
	path := filepath.Join(t.TempDir(), "core")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = Write(f, Core{
		Registers:  Registers{RIP: 0x1234, RSP: 0x5678, GS: 9},
		Memory:     []Region{{0, low}, {4 << 30, high}},
		Mappings:   []Mapping{{0xffff888000000000, 0, 4 * pageSize}, {0xffffffff81000000, 4 << 30, pageSize}},
		VMCoreInfo: []byte("OSRELEASE=6.1\n"),
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Type != elf.ET_CORE || c.Machine != elf.EM_X86_64 || len(c.Progs) != 5 {
		t.Fatalf("%v, %d segments", c.FileHeader, len(c.Progs))
	}
	at := func(virtual uint64) byte {
		for _, p := range c.Progs {
			if p.Type == elf.PT_LOAD && virtual >= p.Vaddr && virtual-p.Vaddr < p.Memsz {
				var b [1]byte
				if _, err := p.ReadAt(b[:], int64(virtual-p.Vaddr)); err != nil {
					t.Fatal(err)
				}
				return b[0]
			}
		}
		t.Fatalf("nothing at %#x", virtual)
		return 0
	}
	for v, want := range map[uint64]byte{
		0xffff888000001000: 0xaa, 0xffffffff81000001: 0xbb, 0x1000: 0xaa, 4<<30 + 1: 0xbb, 4<<30 + pageSize: 0,
	} {
		if got := at(v); got != want {
			t.Errorf("at %#x: %#x, want %#x", v, got, want)
		}
	}
	notes := make([]byte, c.Progs[0].Filesz)
	if _, err := c.Progs[0].ReadAt(notes, 0); err != nil {
		t.Fatal(err)
	}
	status := notes[20:] // name CORE, padded to 8
	if rip := binary.LittleEndian.Uint64(status[statusRegs+16*8:]); rip != 0x1234 {
		t.Errorf("RIP %#x", rip)
	}
	if !bytes.Contains(notes, []byte("OSRELEASE=6.1\n")) {
		t.Error("no VMCOREINFO")
	}
}

// TestWalk walks tables with a large page, a small one, a hole and one that
// contains itself.
func TestWalk(t *testing.T) {
	mem := make([]byte, 16*pageSize)
	put := func(table, i int, v uint64) { binary.LittleEndian.PutUint64(mem[table*pageSize+8*i:], v) }
	put(1, 0, 2<<12|1)
	put(2, 0, 3<<12|1)
	put(3, 0, 4<<12|1)
	put(4, 5, 7<<12|1)
	put(4, 6, 8<<12|1)
	put(4, 9, 1<<40|1)   // no such memory
	put(1, 511, 5<<12|1) // the upper half
	put(5, 510, 6<<12|1)
	put(6, 1, 0|0x81) // 2 MiB, of which 64 KiB exist
	put(1, 300, 1<<12|1)
	size := uint64(len(mem))
	got := Walk(1<<12, 4, func(p, n uint64) bool { return p < size && n <= size-p }, func(p uint64) (uint64, bool) {
		if p+8 > size {
			return 0, false
		}
		return binary.LittleEndian.Uint64(mem[p:]), true
	})
	for _, want := range []Mapping{
		{0x5000, 0x7000, 0x2000},
		{0xffffffff80200000, 0, 64 << 10},
	} {
		if !slices.Contains(got, want) {
			t.Errorf("%+v is missing among %d", want, len(got))
		}
	}
	if got[0].Virtual>>63 == 0 {
		t.Errorf("the first mapping is at %#x", got[0].Virtual)
	}
}

func TestFindVMCoreInfo(t *testing.T) {
	n := note(nil, vmcoreinfoAs, 0, append([]byte("OSRELEASE=6.1\nKERNELOFFSET=0\n"), 0, 0, 0))
	mem := append(make([]byte, 5000), n...)
	mem = append(mem, make([]byte, 100)...)
	if got := FindVMCoreInfo(mem); string(got) != "OSRELEASE=6.1\nKERNELOFFSET=0\n" {
		t.Errorf("%q", got)
	}
	if got := FindVMCoreInfo(mem[:5010]); got != nil {
		t.Errorf("%q", got)
	}
}

func FuzzWalk(f *testing.F) {
	f.Add([]byte{1, 16, 0, 0, 0, 0, 0, 0}, uint64(0))
	f.Fuzz(func(t *testing.T, table []byte, cr3 uint64) {
		mem := make([]byte, 2*pageSize)
		copy(mem, table)
		n := 0
		Walk(cr3, 4, func(p, s uint64) bool { return p < 2*pageSize && s <= 2*pageSize-p }, func(p uint64) (uint64, bool) {
			n++
			if p+8 > uint64(len(mem)) || n > 1<<20 {
				return 0, false
			}
			return binary.LittleEndian.Uint64(mem[p:]), true
		})
	})
}
