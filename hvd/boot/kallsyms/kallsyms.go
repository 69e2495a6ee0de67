// Package kallsyms finds the symbol table that a Linux kernel carries for its
// own use (/proc/kallsyms) in the image of an unmodified, stripped x86-64 kernel
// that isn't running yet, and looks up functions in it.
//
// # Place
//
// hvd/boot/young uses it to find the functions that it changes. It is pure and
// imports nothing of ours.
//
// # Layout
//
// After the kernel's scripts/kallsyms.c. All tables lie in one segment, each
// aligned to 8 bytes, since 7.1 to 4:
//
//	num_syms       u32 (u64 before 4.20)
//	names          per symbol: its length, 1 byte, or 2 when the first has bit 7
//	               set (7 low bits first); then so many tokens of one byte. What
//	               they expand to is the symbol's type (as nm prints it) and name
//	markers        u32 (u64 before 4.20): offset in names of each 256th symbol
//	token_table    256 strings that end with a zero byte
//	token_index    256 u16: offset of each in token_table
//	offsets        i32 per symbol, in rising order of addresses
//	relative_base  u64
//
// 4.19 to 6.3 have offsets and relative_base before num_syms; 6.2 and 6.3 have a
// table of theirs (seqs_of_names) between markers and token_table.
//
// An offset o at address p is coded in one of three ways:
//
//	absolute per CPU  o >= 0: the address o, of a variable per CPU;
//	                  o < 0: relative_base - 1 - o
//	relative          relative_base + o, unsigned
//	place             p + o; there is no relative_base (since 7.1)
//
// Nothing says where the tables are or how they are coded. The token table is
// found by its tokens for the ten digits, which every kernel has, and proved by
// the index behind it; num_syms by walking all names and comparing the markers;
// the coding by the order of all addresses.
package kallsyms

import (
	"encoding/binary"
	"errors"
	"iter"
	"strings"
)

var le = binary.LittleEndian

// ErrNone says that there is no symbol table in these segments that can be read
// here. Kernels are built without one (CONFIG_KALLSYMS) when they must be small.
var ErrNone = errors.New("the kernel has no symbol table (kallsyms)")

// Segment is a piece of the kernel as it is mapped.
type Segment struct {
	Addr uint64 // virtual
	Data []byte
}

// Symbol is an entry of the table.
type Symbol struct {
	Name string
	Type byte   // as nm prints it; T and t are code
	Addr uint64 // virtual
	// End is the next higher address of a symbol: the function ends there or
	// earlier. It equals Addr for the last symbol.
	End uint64
}

// Table is a kernel's symbol table.
type Table struct {
	segment Segment
	tokens  [256][]byte
	names   []byte // up to the end of the segment; walked once, so it is sound
	count   int
	addrs   []uint64
}

const (
	minSymbols = 256
	maxSymbols = 4 << 20
	// maxName limits a name with its type, in bytes: KSYM_NAME_LEN is 512.
	maxName = 1024
	// maxDistance is how far before the token table the names may begin, bytes.
	maxDistance = 64 << 20
	// maxWork limits the names that are walked over in vain: an image can be
	// made that has many beginnings of a table.
	maxWork = 64 << 20
)

// Find finds the symbol table. The segments' bytes are kept and must not change.
func Find(segments []Segment) (*Table, error) {
	work := maxWork
	for _, s := range segments {
		for at := 0; work > 0; {
			t, next := findTokens(s, at, &work)
			if t == nil {
				break
			}
			if t.findNames(&work) {
				return &t.Table, nil
			}
			at = next
		}
	}
	return nil, ErrNone
}

// Len is the number of symbols.
func (t *Table) Len() int { return t.count }

// All walks the symbols in rising order of their addresses.
func (t *Table) All() iter.Seq[Symbol] {
	return func(yield func(Symbol) bool) {
		at, next := 0, 0
		var name []byte
		for i := range t.count {
			for next = max(next, i); next < t.count && t.addrs[next] == t.addrs[i]; {
				next++
			}
			end := t.addrs[i]
			if next < t.count {
				end = t.addrs[next]
			}
			var tokens []byte
			tokens, at = nextName(t.names, at)
			name = name[:0]
			for _, k := range tokens {
				name = append(name, t.tokens[k]...)
			}
			if len(name) < 2 || len(name) > maxName {
				continue
			}
			if !yield(Symbol{Name: string(name[1:]), Type: name[0], Addr: t.addrs[i], End: end}) {
				return
			}
		}
	}
}

// Base is the name without what the compiler appends to the parts and variants
// of a function that it cut up or changed, such as .cold or .isra.0.
func (s Symbol) Base() string {
	base, _, _ := strings.Cut(s.Name, ".")
	return base
}

// Functions returns the code whose base name matches, in rising order of
// addresses, at most maxFound of it.
func (t *Table) Functions(match func(base string) bool) []Symbol {
	var found []Symbol
	for s := range t.All() {
		if s.Type|0x20 == 't' && match(s.Base()) && len(found) < maxFound {
			found = append(found, s)
		}
	}
	return found
}

// maxFound limits what Functions returns.
const maxFound = 4096

// nextName returns the tokens of the name at offset at, and where the next one
// begins; nil when there is none.
func nextName(names []byte, at int) (tokens []byte, next int) {
	if at >= len(names) {
		return nil, at
	}
	n := int(names[at])
	at++
	if n >= 0x80 {
		if at >= len(names) || names[at] >= 0x80 {
			return nil, at
		}
		n = n&0x7f | int(names[at])<<7
		at++
	}
	if n == 0 || n > maxName || n > len(names)-at {
		return nil, at
	}
	return names[at : at+n], at + n
}
