package young

import (
	"bytes"
	"debug/elf"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/duet-ft/duet/hvd/boot/bzimage"
	"github.com/duet-ft/duet/hvd/boot/kallsyms"
)

// mapped reads a kernel, packed or not, as it is mapped.
func mapped(t testing.TB, path string) []kallsyms.Segment {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if b, err = bzimage.Unpack(b); err != nil {
		t.Fatal(err)
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	var list []kallsyms.Segment
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD {
			list = append(list, kallsyms.Segment{Addr: p.Vaddr, Data: b[p.Off : p.Off+p.Filesz]})
		}
	}
	return list
}

// duetKernel is the hosts' own kernel: a Linux 6.12 that is at hand.
const duetKernel = "../../../image/kernel/vmlinuz"

func TestDuetKernel(t *testing.T) {
	segments := mapped(t, duetKernel)
	c, err := Find(segments)
	if err != nil {
		t.Fatal(err)
	}
	check(t, c)
	if c.Functions != len(testers) {
		t.Errorf("%d functions of %d", c.Functions, len(testers))
	}
	// A kernel that is changed already isn't changed again: the calls are gone.
	for _, p := range c.Patches {
		copy(p.Old, p.New) // a part of the segment
	}
	if _, err := Find(segments); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "no call") {
		t.Errorf("a second time: %v", err)
	}
}

// TestKernels reads kernels that somebody collected.
func TestKernels(t *testing.T) {
	dir := os.Getenv("DUET_TEST_KERNELS")
	if dir == "" {
		t.Skip("DUET_TEST_KERNELS names no directory of Linux kernels")
	}
	paths, err := filepath.Glob(filepath.Join(dir, "vmlinu*"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s holds no vmlinuz-*: %v", dir, err)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			c, err := Find(mapped(t, path))
			if err != nil {
				t.Fatal(err)
			}
			check(t, c)
			t.Logf("%d functions, %d calls, %d places of forks", c.Functions, c.Calls, c.Forks)
		})
	}
}

// check tells whether a cure is one of the known kind.
func check(t *testing.T, c *Cure) {
	t.Helper()
	if len(c.Patches) != c.Functions+c.Calls+c.Forks || c.Calls < 1 || c.Forks < 2 {
		t.Fatalf("%d patches, %d functions, %d calls, %d places of forks", len(c.Patches), c.Functions, c.Calls, c.Forks)
	}
	for _, p := range c.Patches {
		_, tests := testers[p.Function]
		switch {
		case len(p.Old) != len(p.New) || bytes.Equal(p.Old, p.New):
		case tests && bytes.Equal(p.New, answerOld) && p.Old[0] == 0x48: // a load, all of them
			continue
		case forks(p.Function) && bytes.Equal(p.New, []byte{0xff}) && p.Old[0] == makesOld:
			continue
		case !tests && bytes.Equal(p.New, nop5) && p.Old[0] == 0xe8:
			continue
		}
		t.Errorf("%+v", p)
	}
}

// program is a made-up kernel of one segment.
type program struct {
	k    kernel
	data []byte
}

const (
	base  = 0xffffffff81000000
	enter = 0x800 // __fentry__
	mark  = 0x900 // folio_mark_accessed
)

func newProgram() *program {
	p := &program{data: bytes.Repeat([]byte{0xcc}, 0x1000)}
	p.k = kernel{
		segments: []kallsyms.Segment{{Addr: base, Data: p.data}},
		marks:    map[uint64]bool{base + mark: true}, fentry: base + enter,
	}
	return p
}

// function puts code at an offset; call and jump in it lead to target.
func (p *program) function(at int, name string, code ...byte) kallsyms.Symbol {
	copy(p.data[at:], code)
	return kallsyms.Symbol{Name: name, Type: 't', Addr: base + uint64(at), End: base + uint64(at+len(code))}
}

// to is a call (e8) or jump (e9) from an offset to another.
func to(op byte, from, target int) []byte {
	rel := uint32(target - from - 5)
	return []byte{op, byte(rel), byte(rel >> 8), byte(rel >> 16), byte(rel >> 24)}
}

func TestPrologue(t *testing.T) {
	load := []byte{0x48, 0x8b, 0x05, 1, 2, 3, 4}
	for _, c := range []struct {
		name string
		code []byte
		want int
	}{
		{"none", load, 0},
		{"endbr64", slices.Concat(endbr64, load), 4},
		{"call __fentry__", slices.Concat(to(0xe8, 0x10, enter), load), 5},
		{"both", slices.Concat(endbr64, to(0xe8, 0x14, enter), load), 9},
		{"no-op for __fentry__", slices.Concat(endbr64, nop5, load), 9},
		{"another call", slices.Concat(to(0xe8, 0x10, mark), load), -1},
		{"a call behind", slices.Concat(endbr64, to(0xe8, 0x14, enter), to(0xe8, 0x19, mark)), -1},
		{"a no-op behind", slices.Concat(endbr64, nop5, nop5, load), -1},
		{"too short", slices.Concat(endbr64, load[:2]), -1},
		{"empty", nil, -1},
	} {
		p := newProgram()
		f := p.function(0x10, "ptep_test_and_clear_young", c.code...)
		if got := p.k.prologue(f, p.k.code(f)); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

func TestCalls(t *testing.T) {
	p := newProgram()
	young := p.function(0x10, "ptep_test_and_clear_young", 0x48, 0x8b, 0x05, 0, 0, 0, 0, 0xc3)
	unmap := p.function(0x100, "unmap_page_range", slices.Concat(
		endbr64, to(0xe8, 0x104, enter), to(0xe8, 0x109, mark), []byte{0xe8, 0xe8}, to(0xe8, 0x110, mark), to(0xe8, 0x115, 0x700))...)
	tail := p.function(0x200, "zap_pte_range.cold", to(0xe9, 0x200, mark)...)
	fork := p.function(0x300, "copy_page_range", slices.Concat(
		[]byte{0x48, 0x83, 0xe0, 0xdf, 0x83, 0xe0, 0xdf, 0x48, 0x83, 0xe0, 0xbf}, []byte{0x49, 0x81, 0xe7}, makesOldWide,
		[]byte{0x48, 0x25}, makesOldWide, []byte{0x48, 0x81, 0xe0, 0xdf, 0xff}, []byte{0x48, 0x25, 0xdf})...)
	c, err := p.k.cure([]kallsyms.Symbol{young}, []kallsyms.Symbol{unmap, tail}, []kallsyms.Symbol{fork})
	if err != nil {
		t.Fatal(err)
	}
	var at []uint64
	for _, p := range c.Patches {
		at = append(at, p.Addr-base)
	}
	if want := []uint64{0x10, 0x303, 0x30e, 0x314, 0x109, 0x110, 0x200}; !slices.Equal(at, want) || !bytes.Equal(c.Patches[6].New, leave) {
		t.Errorf("%#x, want %#x; %+v", at, want, c)
	}
	if _, err := p.k.cure([]kallsyms.Symbol{young}, []kallsyms.Symbol{unmap}, nil); !errors.Is(err, ErrUnknown) {
		t.Errorf("no fork: %v", err)
	}
	if _, err := p.k.cure([]kallsyms.Symbol{young}, nil, []kallsyms.Symbol{fork}); !errors.Is(err, ErrUnknown) {
		t.Errorf("no unmap: %v", err)
	}
	outside := kallsyms.Symbol{Name: "ptep_clear_flush_young", Addr: base + 0xffe, End: base + 0x1010}
	if _, err := p.k.cure([]kallsyms.Symbol{outside}, []kallsyms.Symbol{unmap}, []kallsyms.Symbol{fork}); !errors.Is(err, ErrUnknown) {
		t.Errorf("a function outside: %v", err)
	}
}

func TestMissing(t *testing.T) {
	seen := map[string]bool{"ptep_clear_flush_young": true, "mark_page_accessed": true}
	if got := missing(seen); got != "ptep_test_and_clear_young" {
		t.Errorf("%q", got)
	}
	if got := missing(nil); got != "folio_mark_accessed, ptep_clear_flush_young, ptep_test_and_clear_young" {
		t.Errorf("%q", got)
	}
	if _, err := Find(nil); !errors.Is(err, ErrUnknown) || !errors.Is(err, kallsyms.ErrNone) {
		t.Errorf("no kernel: %v", err)
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]bool{
		"unmap_page_range": true, "zap_pte_range": true, "__zap_vma_range": true, "zap_huge_pmd": true,
		"unmap_page": false, "filemap_read": false, "xen_zap_pfn_range": false, "zap": false,
	} {
		if unmaps(name) != want {
			t.Errorf("%s: %t", name, !want)
		}
	}
}

// FuzzCure reads any bytes as code.
func FuzzCure(f *testing.F) {
	f.Add([]byte{0x48, 0x8b, 0x05, 0, 0, 0, 0, 0xc3}, to(0xe8, 0x100, mark), uint16(5))
	f.Add(slices.Concat(endbr64, nop5), to(0xe9, 0x100, mark), uint16(0xffff))
	f.Add([]byte{0x48, 0x8b, 0x05, 0, 0, 0, 0, 0xc3}, append(to(0xe8, 0x100, mark), 0x48, 0x83, 0xe0, 0xdf, 0x48, 0x25, 0xdf, 0xfb, 0xff, 0xff), uint16(15))
	f.Fuzz(func(t *testing.T, test, unmap []byte, length uint16) {
		p := newProgram()
		a := p.function(0x10, "ptep_test_and_clear_young", test[:min(len(test), 0xf0)]...)
		b := p.function(0x100, "unmap_page_range", unmap[:min(len(unmap), 0x600)]...)
		b.End = b.Addr + uint64(length)
		c, err := p.k.cure([]kallsyms.Symbol{a}, []kallsyms.Symbol{b}, []kallsyms.Symbol{b})
		if err != nil {
			return
		}
		for _, p := range c.Patches {
			if len(p.Old) != len(p.New) || p.Addr < base || p.Addr+uint64(len(p.New)) > base+0x1000 {
				t.Fatalf("%+v", p)
			}
		}
	})
}
