package elfcore

import (
	"cmp"
	"slices"
)

const (
	present  = 1 << 0
	huge     = 1 << 7
	addrMask = 0x000f_ffff_ffff_f000
	// maxTables bounds the page tables that are read: those of a terabyte. A
	// guest can make tables that contain themselves.
	maxTables = 1 << 19
	// maxRuns bounds the mappings found before they are sorted out.
	maxRuns = 1 << 20
)

// Walk lists the mappings of 64-bit page tables (AMD64 APM volume 2, 5.3) to
// physical memory that exists, the largest of the upper half first: a kernel's.
// levels is 4 or 5. entry reads 8 bytes of physical memory.
func Walk(cr3 uint64, levels int, exists func(physical, size uint64) bool, entry func(physical uint64) (uint64, bool)) []Mapping {
	w := walker{exists: exists, entry: entry}
	w.table(cr3&addrMask, levels, 0)
	slices.SortStableFunc(w.runs, func(a, b Mapping) int {
		upperA, upperB := a.Virtual>>63, b.Virtual>>63
		return cmp.Or(cmp.Compare(upperB, upperA), cmp.Compare(b.Size, a.Size))
	})
	return w.runs
}

type walker struct {
	exists func(physical, size uint64) bool
	entry  func(physical uint64) (uint64, bool)
	tables int
	runs   []Mapping
}

func (w *walker) table(at uint64, level int, virtual uint64) {
	if w.tables++; w.tables > maxTables {
		return
	}
	shift := 12 + 9*(level-1)
	for i := range uint64(512) {
		e, ok := w.entry(at + 8*i)
		if !ok {
			return
		}
		if e&present == 0 {
			continue
		}
		v := virtual | i<<shift
		if top := shift + 9; level >= 4 && i >= 256 && (v>>(top-1))&1 == 1 && virtual == 0 {
			v |= ^uint64(0) << top
		}
		size := uint64(1) << shift
		switch {
		case level == 1:
			w.add(v, e&addrMask, size)
		case level <= 3 && e&huge != 0:
			w.add(v, e&addrMask&^(size-1), size)
		default:
			w.table(e&addrMask, level-1, v)
		}
	}
}

func (w *walker) add(virtual, physical, size uint64) {
	if !w.exists(physical, size) {
		// The end of memory may lie inside a large page.
		for size > pageSize && !w.exists(physical, size) {
			size /= 2
		}
		if !w.exists(physical, size) {
			return
		}
	}
	if n := len(w.runs); n > 0 {
		last := &w.runs[n-1]
		if last.Virtual+last.Size == virtual && last.Physical+last.Size == physical && w.exists(last.Physical, last.Size+size) {
			last.Size += size
			return
		}
	}
	if len(w.runs) < maxRuns {
		w.runs = append(w.runs, Mapping{virtual, physical, size})
	}
}
