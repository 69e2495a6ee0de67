// Package mem is the guest's physical memory: one anonymous mapping, read and
// written with bounds checks, that remembers which pages the VMM itself wrote.
//
// # Place
//
// Device models (hvd/virtio) and the loader (hvd/boot) see memory only through
// this package. hvd/kvm maps the same bytes into the virtual machine. It
// imports nothing of ours.
//
// # Layout
//
// As on a PC, memory that doesn't fit below the hole for devices goes on at
// 4 GiB:
//
//	guest physical                      offset in the mapping
//	0           .. min(size, 3 GiB)     0       .. min(size, 3 GiB)
//	3 GiB       .. 4 GiB                hole: devices, local APIC
//	4 GiB       .. 4 GiB+size-3 GiB     3 GiB   .. size
//
// # Dirty pages
//
// KVM's dirty log sees what the guest writes, not what the VMM writes on its
// behalf (a disk read, a received packet, a used ring). Those pages are marked
// here, and a state transfer ships the union of both. Page n of the bitmap is
// the n-th page of the mapping, not of the guest's address space.
package mem

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"runtime"

	"golang.org/x/sys/unix"
)

// PageSize is the unit of dirty tracking and of state transfer, in bytes.
const PageSize = 4096

const (
	// LowMax is where the hole for devices begins.
	LowMax = 3 << 30
	// HighBase is where memory goes on above the hole.
	HighBase = 4 << 30
)

// ErrRange says that a guest address range isn't memory, or isn't contiguous.
var ErrRange = errors.New("guest address out of range")

// Memory is a guest's physical memory. It isn't safe for concurrent use: the
// loop that drives the VM owns it while the virtual CPU is stopped.
type Memory struct {
	b     []byte
	low   uint64         // bytes below the hole
	dirty []uint64       // pages written by the VMM since the last TakeDirty
	bare  [PageSize]byte // scratch of HashPage
}

// Region is one contiguous piece of guest memory.
type Region struct {
	Guest  uint64 // guest physical address
	Offset uint64 // offset in Bytes
	Size   uint64 // bytes
}

// New maps size bytes of zeroed memory. size must be a positive multiple of
// PageSize.
func New(size uint64) (*Memory, error) {
	if size == 0 || size%PageSize != 0 {
		return nil, fmt.Errorf("guest memory of %d bytes: not a positive multiple of %d", size, PageSize)
	}
	b, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of guest memory: %w", size, err)
	}
	// A kernel that gathers pages into huge ones takes them from the guest for a
	// moment, and KVM logs pages that come back as written (see hvd/kvm's
	// PreFault). A kernel without huge pages doesn't know the advice.
	if err := unix.Madvise(b, unix.MADV_NOHUGEPAGE); err != nil && !errors.Is(err, unix.EINVAL) {
		unix.Munmap(b)
		return nil, fmt.Errorf("advise on %d bytes of guest memory: %w", size, err)
	}
	pages := size / PageSize
	return &Memory{b: b, low: min(size, LowMax), dirty: make([]uint64, (pages+63)/64)}, nil
}

// Populate allocates all of the memory now. A page that was only read is the
// kernel's shared zero page, which goes away under KVM at the first write.
//
// It goes piece by piece, so that a small host does its other work meanwhile.
func (m *Memory) Populate() error {
	for at := 0; at < len(m.b); at += populatePiece {
		piece := m.b[at:min(at+populatePiece, len(m.b))]
		if err := unix.Madvise(piece, unix.MADV_POPULATE_WRITE); err != nil {
			return fmt.Errorf("allocate %d bytes of guest memory: %w", len(m.b), err)
		}
		runtime.Gosched()
	}
	return nil
}

// populatePiece is how much memory is allocated at once, in bytes.
const populatePiece = 4 << 20

// Close unmaps the memory. Nothing may use it afterwards, the virtual CPU
// included.
func (m *Memory) Close() error {
	b := m.b
	m.b = nil
	return unix.Munmap(b)
}

// Size is the number of bytes of memory.
func (m *Memory) Size() uint64 { return uint64(len(m.b)) }

// Pages is the number of pages of memory.
func (m *Memory) Pages() int { return len(m.b) / PageSize }

// Bytes is the whole mapping, for KVM, state transfer and hashing. Writing to
// it doesn't mark pages dirty.
func (m *Memory) Bytes() []byte { return m.b }

// Page returns page n of the mapping; n must be below Pages.
func (m *Memory) Page(n int) []byte { return m.b[n*PageSize : (n+1)*PageSize] }

// IsZero reports whether page n, which must be below Pages, holds zeros only.
func (m *Memory) IsZero(n int) bool { return [PageSize]byte(m.Page(n)) == [PageSize]byte{} }

// Regions lists the contiguous pieces, in order of their guest address.
func (m *Memory) Regions() []Region {
	r := []Region{{Size: m.low}}
	if high := m.Size() - m.low; high > 0 {
		r = append(r, Region{Guest: HighBase, Offset: m.low, Size: high})
	}
	return r
}

// offset translates a guest range into an offset in the mapping.
func (m *Memory) offset(addr, n uint64) (uint64, error) {
	switch {
	case addr < m.low && n <= m.low-addr:
		return addr, nil
	case addr >= HighBase && addr-HighBase < m.Size()-m.low && n <= m.Size()-m.low-(addr-HighBase):
		return addr - HighBase + m.low, nil
	}
	return 0, fmt.Errorf("%w: %d bytes at %#x", ErrRange, n, addr)
}

// View returns the n bytes at addr, for reading only, without a copy.
func (m *Memory) View(addr, n uint64) ([]byte, error) {
	o, err := m.offset(addr, n)
	if err != nil {
		return nil, err
	}
	return m.b[o : o+n : o+n], nil
}

// Read fills p from addr.
func (m *Memory) Read(addr uint64, p []byte) error {
	v, err := m.View(addr, uint64(len(p)))
	if err != nil {
		return err
	}
	copy(p, v)
	return nil
}

// Write stores p at addr and marks the pages that it touches.
func (m *Memory) Write(addr uint64, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	o, err := m.offset(addr, uint64(len(p)))
	if err != nil {
		return err
	}
	copy(m.b[o:], p)
	for page := o / PageSize; page <= (o+uint64(len(p))-1)/PageSize; page++ {
		m.dirty[page/64] |= 1 << (page % 64)
	}
	return nil
}

// Uint16 reads a little-endian value at addr.
func (m *Memory) Uint16(addr uint64) (uint16, error) {
	v, err := m.View(addr, 2)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint16(v), nil
}

// Uint32 reads a little-endian value at addr.
func (m *Memory) Uint32(addr uint64) (uint32, error) {
	v, err := m.View(addr, 4)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(v), nil
}

// Uint64 reads a little-endian value at addr.
func (m *Memory) Uint64(addr uint64) (uint64, error) {
	v, err := m.View(addr, 8)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(v), nil
}

// PutUint16 stores a little-endian value at addr.
func (m *Memory) PutUint16(addr uint64, v uint16) error {
	return m.Write(addr, binary.LittleEndian.AppendUint16(nil, v))
}

// PutUint32 stores a little-endian value at addr.
func (m *Memory) PutUint32(addr uint64, v uint32) error {
	return m.Write(addr, binary.LittleEndian.AppendUint32(nil, v))
}

// PutUint64 stores a little-endian value at addr.
func (m *Memory) PutUint64(addr, v uint64) error {
	return m.Write(addr, binary.LittleEndian.AppendUint64(nil, v))
}

// TakeDirty merges the pages that the VMM wrote since the last call into set,
// one bit a page of the mapping, and forgets them. set holds at least
// (Pages()+63)/64 words.
func (m *Memory) TakeDirty(set []uint64) {
	for i, w := range m.dirty {
		set[i] |= w
		m.dirty[i] = 0
	}
}

// PageSet lists the pages in a bitmap in rising order.
func PageSet(set []uint64) []int {
	n := 0
	for _, w := range set {
		n += bits.OnesCount64(w)
	}
	pages := make([]int, 0, n)
	for i, w := range set {
		for ; w != 0; w &= w - 1 {
			pages = append(pages, i*64+bits.TrailingZeros64(w))
		}
	}
	return pages
}
