package boot

import (
	"fmt"

	"github.com/duet-ft/duet/hvd/boot/bzimage"
)

// segment is a piece of the kernel: data at a physical address, then zeros up
// to size.
type segment struct {
	addr, size uint64
	virt       uint64 // where the kernel maps it
	data       []byte
}

// maxSegments limits the program headers that are read; a kernel has five.
const maxSegments = 64

// linkBase is where the kernel's text is mapped; some kernels give their entry
// point there instead of its physical address.
const linkBase = 0xffffffff80000000

// segments reads the loadable segments and the physical entry point of a
// 64-bit x86 ELF file (System V ABI, chapters 4 and 5).
func segments(b []byte) (list []segment, entry uint64, err error) {
	damaged := func(format string, args ...any) ([]segment, uint64, error) {
		return nil, 0, fmt.Errorf("%w: %s", bzimage.ErrDamaged, fmt.Sprintf(format, args...))
	}
	if len(b) < 64 || b[4] != 2 || b[5] != 1 || le.Uint16(b[18:]) != 62 {
		return nil, 0, fmt.Errorf("%w: not a 64-bit x86 kernel", bzimage.ErrFormat)
	}
	entry = le.Uint64(b[24:])
	if entry >= linkBase {
		entry -= linkBase
	}
	off, each, n := le.Uint64(b[32:]), uint64(le.Uint16(b[54:])), uint64(le.Uint16(b[56:]))
	size := uint64(len(b))
	if each < 56 || n > maxSegments || off > size || n*each > size-off {
		return damaged("%d ELF program headers at %d", n, off)
	}
	inside := false
	for k := range n {
		p := b[off+k*each:]
		if le.Uint32(p) != 1 { // PT_LOAD
			continue
		}
		from, length := le.Uint64(p[8:]), le.Uint64(p[32:])
		s := segment{addr: le.Uint64(p[24:]), size: le.Uint64(p[40:]), virt: le.Uint64(p[16:])}
		if from > size || length > size-from || length > s.size || s.size > 1<<40 || s.addr > 1<<40 {
			return damaged("ELF segment %d", k)
		}
		s.data = b[from : from+length]
		inside = inside || entry >= s.addr && entry-s.addr < length
		list = append(list, s)
	}
	if !inside {
		return damaged("the entry point %#x is in no ELF segment", entry)
	}
	return list, entry, nil
}
