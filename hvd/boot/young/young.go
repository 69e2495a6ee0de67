// Package young keeps a Linux guest from looking at the accessed bits of its
// page tables, the one thing that two executions of it can read differently.
//
// # Place
//
// hvd/boot asks for a Cure of the kernel that it loads and writes it into guest
// memory before the first instruction. It is pure; of ours it imports
// hvd/boot/kallsyms.
//
// # Why
//
// A processor sets a page-table entry's accessed bit when it fills its TLB from
// that entry, and it may do so by speculation. When the guest clears such a bit
// without a flush, as Linux does when it looks for pages to reclaim, whether the
// bit is set again depends on whether the entry was still in the TLB: on what
// the host did meanwhile. A primary and a secondary then reclaim other pages.
//
// # What is changed
//
//	ptep_test_and_clear_young, pmdp_…, pudp_…    never clear, and answer "old":
//	ptep_clear_flush_young, pmdp_…               xor eax, eax; ret
//	unmap_page_range and the zap_ functions      a page that goes away isn't
//	                                             marked as used: the calls of
//	                                             folio_mark_accessed and
//	                                             mark_page_accessed become no-ops
//	copy_page_range and the copy_ functions      the child's entries of a fork are
//	                                             no older than the parent's: "and
//	                                             reg, ~accessed" becomes ~0
//
// The first are put behind "endbr64" and "call __fentry__", which the kernel
// patches itself. Reclaim then orders pages by how they came and by reads and
// writes, not by use through mappings. With the last no entry is old but for
// madvise(MADV_FREE), swapoff, DAMON and, before 6.1, migration: what is set already
// can't be set by speculation. An old entry that becomes young while the kernel has
// a copy of it, in a register or on its stack, would else make two executions differ
// there, as try_to_unmap does when it swaps a page out. smaps, DAMON and khugepaged
// read the bit inline.
//
// A kernel that the guest starts by kexec isn't changed.
package young

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/duet-ft/duet/hvd/boot/kallsyms"
)

// ErrUnknown says that the kernel isn't built as expected. It is left as it is.
var ErrUnknown = errors.New("accessed bits can't be switched off in this kernel")

// Patch replaces bytes of the kernel. Old and New are equally long.
type Patch struct {
	Addr     uint64 // virtual
	Function string // where that is
	Old, New []byte
}

// Cure is what to change in a kernel.
type Cure struct {
	Patches   []Patch
	Functions int // that answer "old"
	Calls     int // that mark no page any more
	Forks     int // places where a fork makes entries old
}

// testers are the functions that test and clear a bit. The kernel must have
// those that are true; the others are there with huge pages only.
var testers = map[string]bool{
	"ptep_test_and_clear_young": true,
	"ptep_clear_flush_young":    true,
	"pmdp_test_and_clear_young": false,
	"pmdp_clear_flush_young":    false,
	"pudp_test_and_clear_young": false,
}

var (
	answerOld = []byte{0x31, 0xc0, 0xc3}             // xor eax, eax; ret
	nop5      = []byte{0x0f, 0x1f, 0x44, 0x00, 0x00} // nop dword [rax+rax]
	leave     = []byte{0xc3, 0xcc, 0xcc, 0xcc, 0xcc} // ret; int3
	endbr64   = []byte{0xf3, 0x0f, 0x1e, 0xfa}
)

// forks tells the functions that copy page tables for a fork; copy_one_pte is
// that of kernels before 5.8.
func forks(name string) bool {
	switch strings.TrimLeft(name, "_") {
	case "copy_page_range", "copy_pte_range", "copy_present_pte", "copy_present_ptes", "copy_one_pte", "copy_huge_pmd":
		return true
	}
	return false
}

const fentry = "__fentry__"

// marks tells the functions that mark a page as used.
func marks(name string) bool { return name == "folio_mark_accessed" || name == "mark_page_accessed" }

// unmaps tells the functions that take pages out of an address space: all of it
// in one since 4.19, cut up differently by each compiler. Since 7.1,
// unmap_page_range is __zap_vma_range.
func unmaps(name string) bool {
	return name == "unmap_page_range" || strings.HasPrefix(strings.TrimLeft(name, "_"), "zap_")
}

// Find works out the cure of a kernel, given as it is mapped. ErrUnknown comes
// with what is missing in one line. All of the cure is possible or none.
func Find(segments []kallsyms.Segment) (*Cure, error) {
	table, err := kallsyms.Find(segments)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	k := kernel{segments: segments, marks: map[uint64]bool{}}
	var test, unmap, fork []kallsyms.Symbol
	seen := map[string]bool{}
	for _, s := range table.Functions(func(name string) bool {
		_, tests := testers[name]
		return tests || marks(name) || unmaps(name) || forks(name) || name == fentry
	}) {
		_, tests := testers[s.Name]
		switch {
		case tests && !seen[s.Name]:
			test = append(test, s)
		case tests:
			return nil, fmt.Errorf("%w: it has two functions %s", ErrUnknown, s.Name)
		case s.Name == fentry:
			k.fentry = s.Addr
		case marks(s.Name):
			k.marks[s.Addr] = true
		case unmaps(s.Base()):
			unmap = append(unmap, s)
		case forks(s.Base()):
			fork = append(fork, s)
		}
		seen[s.Name] = true
	}
	if name := missing(seen); name != "" {
		return nil, fmt.Errorf("%w: its symbol table doesn't name %s", ErrUnknown, name)
	}
	return k.cure(test, unmap, fork)
}

// missing names what a kernel can't be cured without.
func missing(seen map[string]bool) string {
	var names []string
	for name, must := range testers {
		if must && !seen[name] {
			names = append(names, name)
		}
	}
	if !seen["folio_mark_accessed"] && !seen["mark_page_accessed"] {
		names = append(names, "folio_mark_accessed")
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// kernel is what the search looks into.
type kernel struct {
	segments []kallsyms.Segment
	marks    map[uint64]bool // addresses of the functions that mark a page
	fentry   uint64          // address of __fentry__, 0 if there is none
}

func (k *kernel) cure(test, unmap, fork []kallsyms.Symbol) (*Cure, error) {
	c := &Cure{}
	for _, s := range test {
		code := k.code(s)
		at := k.prologue(s, code)
		if at < 0 {
			return nil, fmt.Errorf("%w: %s begins in an unknown way (% x)", ErrUnknown, s.Name, code[:min(16, len(code))])
		}
		c.add(s, code, at, answerOld)
		c.Functions++
	}
	for _, s := range fork {
		k.young(c, s)
	}
	for _, s := range unmap {
		code := k.code(s)
		for at := 0; at+len(nop5) <= len(code); at++ {
			if op := code[at]; op != 0xe8 && op != 0xe9 || !k.marks[target(s.Addr, code, at)] {
				continue
			}
			instead := nop5
			if code[at] == 0xe9 { // a call as the function's last act
				instead = leave
			}
			c.add(s, code, at, instead)
			c.Calls++
			at += len(nop5) - 1
		}
	}
	switch {
	case c.Calls == 0:
		return nil, fmt.Errorf("%w: no call of folio_mark_accessed or mark_page_accessed in unmap_page_range", ErrUnknown)
	case c.Forks == 0:
		return nil, fmt.Errorf("%w: no place in copy_page_range where a fork makes entries old", ErrUnknown)
	case c.Forks > maxCalls:
		return nil, fmt.Errorf("%w: %d places where a fork makes entries old, and a few are expected", ErrUnknown, c.Forks)
	case c.Calls > maxCalls:
		return nil, fmt.Errorf("%w: %d calls of folio_mark_accessed where two or three are expected", ErrUnknown, c.Calls)
	}
	return c, nil
}

// maxCalls limits the calls that are taken for those of unmapping, and the places
// that are taken for those of forking.
const maxCalls = 16

// makesOld are the masks with which a fork makes an entry old, behind REX.W and
// an AND with an immediate (AMD64 APM volume 3, AND): of 8 bits, sign-extended, and
// of 32 bits, which unsets the bit of userfaultfd, too.
var (
	makesOld     = byte(0xdf)
	makesOldWide = []byte{0xdf, 0xfb, 0xff, 0xff}
)

// young makes a fork leave entries as young as they are.
func (k *kernel) young(c *Cure, f kallsyms.Symbol) {
	code := k.code(f)
	for at := 0; at+4 <= len(code); at++ {
		op := code[at:]
		mask := 0
		switch register := op[2]&0xf8 == 0xe0; {
		case op[0]&^1 != 0x48: // REX.W
		case op[1] == 0x83 && register && op[3] == makesOld:
			mask = 3
		case op[1] == 0x81 && register && bytes.HasPrefix(op[3:], makesOldWide):
			mask = 3
		case op[0] == 0x48 && op[1] == 0x25 && bytes.HasPrefix(op[2:], makesOldWide):
			mask = 2
		}
		if mask > 0 {
			c.add(f, code, at+mask, []byte{0xff})
			c.Forks++
			at += mask
		}
	}
}

func (c *Cure) add(s kallsyms.Symbol, code []byte, at int, instead []byte) {
	c.Patches = append(c.Patches, Patch{
		Addr: s.Addr + uint64(at), Function: s.Name, Old: code[at : at+len(instead)], New: instead,
	})
}

// code returns a function's bytes; nil when it isn't all in one segment.
func (k *kernel) code(f kallsyms.Symbol) []byte {
	for _, s := range k.segments {
		n := uint64(len(s.Data))
		if f.Addr >= s.Addr && f.Addr-s.Addr < n && f.End-s.Addr <= n && f.End >= f.Addr {
			return s.Data[f.Addr-s.Addr : f.End-s.Addr]
		}
	}
	return nil
}

// prologue returns where a function's own code begins: behind what the kernel
// patches at boot. -1 says that it begins with something else that may be
// patched (a call, a jump or a no-op), or is too short.
func (k *kernel) prologue(f kallsyms.Symbol, code []byte) int {
	at := 0
	if bytes.HasPrefix(code, endbr64) {
		at += len(endbr64)
	}
	switch rest := code[at:]; {
	case bytes.HasPrefix(rest, nop5):
		at += len(nop5)
	case len(rest) >= len(nop5) && rest[0] == 0xe8 && k.fentry != 0 && target(f.Addr, code, at) == k.fentry:
		at += len(nop5)
	}
	rest := code[at:]
	if len(rest) < len(answerOld) {
		return -1
	}
	switch rest[0] {
	case 0xe8, 0xe9, 0xeb, 0xff, 0x90, 0xcc, 0x0f, 0xf0, 0xf3:
		return -1
	}
	return at
}

// target is where the call or jump at an offset of a function's code leads.
func target(addr uint64, code []byte, at int) uint64 {
	rel := int32(binary.LittleEndian.Uint32(code[at+1:]))
	return addr + uint64(at) + 5 + uint64(int64(rel))
}
