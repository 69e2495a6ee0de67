package recording

import (
	"encoding/binary"
	"fmt"

	"github.com/klauspost/compress/s2"
	"github.com/zeebo/xxh3"

	"github.com/duet-ft/duet/hvd/event"
)

// appendHeader encodes a file's header.
func appendHeader(dst []byte) []byte {
	h := append([]byte(nil), magic...)
	h = binary.LittleEndian.AppendUint16(h, Version)
	h = binary.LittleEndian.AppendUint16(h, event.Version)
	h = binary.LittleEndian.AppendUint32(h, uint32(xxh3.Hash(h)))
	return append(dst, h...)
}

// checkHeader says in one line why a file that begins so can't be read.
func checkHeader(h []byte) error {
	if len(h) < headerSize || string(h[:8]) != magic {
		return fmt.Errorf("%w: it doesn't begin as one", ErrFormat)
	}
	if binary.LittleEndian.Uint32(h[12:]) != uint32(xxh3.Hash(h[:12])) {
		return fmt.Errorf("%w: its header's checksum is wrong", ErrDamaged)
	}
	if v := binary.LittleEndian.Uint16(h[8:]); v != Version {
		return fmt.Errorf("%w: its format is version %d, this program reads version %d; use the release that recorded it",
			ErrFormat, v, Version)
	}
	if v := binary.LittleEndian.Uint16(h[10:]); v != event.Version {
		return fmt.Errorf("%w: its log is of version %d, this program executes version %d; use the release that recorded it",
			ErrFormat, v, event.Version)
	}
	return nil
}

// Block is one block of a file, unpacked.
type Block struct {
	Kind   Kind
	Number uint32
	Stored int // bytes in the file, header included
	raw    []byte
}

// blockHeader is a block's first 24 bytes.
type blockHeader struct {
	kind        Kind
	packed      bool
	stored, raw int
	number      uint32
	sum         uint64
}

// appendBlock encodes a block.
func appendBlock(dst []byte, kind Kind, number uint32, raw []byte) []byte {
	stored, packing := raw, byte(0)
	if z := s2.Encode(nil, raw); len(z) < len(raw) {
		stored, packing = z, 1
	}
	at := len(dst)
	dst = append(dst, byte(kind), packing, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(stored)))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(raw)))
	dst = binary.LittleEndian.AppendUint32(dst, number)
	dst = binary.LittleEndian.AppendUint64(dst, sum(dst[at:], stored))
	return append(dst, stored...)
}

func sum(header, stored []byte) uint64 {
	h := xxh3.New()
	_, _ = h.Write(header[:16])
	_, _ = h.Write(stored)
	return h.Sum64()
}

// parseBlockHeader reads 24 bytes. Nothing is allocated before the lengths are
// known to be within limits.
func parseBlockHeader(b []byte) (h blockHeader, err error) {
	if len(b) < blockHeaderSize {
		return h, fmt.Errorf("%w: it ends inside a block", ErrDamaged)
	}
	h = blockHeader{
		kind: Kind(b[0]), packed: b[1] == 1,
		stored: int(binary.LittleEndian.Uint32(b[4:])), raw: int(binary.LittleEndian.Uint32(b[8:])),
		number: binary.LittleEndian.Uint32(b[12:]), sum: binary.LittleEndian.Uint64(b[16:]),
	}
	if b[1] > 1 || b[2] != 0 || b[3] != 0 || h.kind < KindHead || h.kind > KindEnd ||
		h.stored > maxStored || h.raw > maxRaw || !h.packed && h.stored != h.raw {
		return h, fmt.Errorf("%w: a block's header makes no sense", ErrDamaged)
	}
	return h, nil
}

// unpack checks a block's payload and unpacks it.
func (h blockHeader) unpack(header, stored []byte) (Block, error) {
	b := Block{Kind: h.kind, Number: h.number, Stored: blockHeaderSize + h.stored, raw: stored}
	if sum(header, stored) != h.sum {
		return b, fmt.Errorf("%w: a block's checksum is wrong", ErrDamaged)
	}
	if !h.packed {
		return b, nil
	}
	if n, err := s2.DecodedLen(stored); err != nil || n != h.raw {
		return b, fmt.Errorf("%w: a block's size is wrong", ErrDamaged)
	}
	var err error
	if b.raw, err = s2.Decode(nil, stored); err != nil {
		return b, fmt.Errorf("%w: a block can't be unpacked", ErrDamaged)
	}
	return b, nil
}

// Pages calls set for each page of a KindPages block, after it has checked all
// of it. limit is the number of pages that the machine has; content is nil for
// a page that is zero, and else valid as long as the block.
func (b Block) Pages(limit int, set func(page int, content []byte)) error {
	bad := fmt.Errorf("%w: a block of memory makes no sense", ErrDamaged)
	rest := b.raw
	next := func() (uint64, bool) {
		v, n := binary.Uvarint(rest)
		if n <= 0 {
			return 0, false
		}
		rest = rest[n:]
		return v, true
	}
	count, ok := next()
	if !ok || count > pagesPerBlock {
		return bad
	}
	type entry struct {
		page int
		zero bool
	}
	entries := make([]entry, count)
	last, full := -1, 0
	for i := range entries {
		v, ok := next()
		if !ok || v>>1 == 0 || v>>1 > uint64(limit-1-last) {
			return bad
		}
		last += int(v >> 1)
		entries[i] = entry{last, v&1 != 0}
		if v&1 == 0 {
			full++
		}
	}
	if len(rest) != full*PageSize {
		return bad
	}
	for _, e := range entries {
		if e.zero {
			set(e.page, nil)
			continue
		}
		set(e.page, rest[:PageSize:PageSize])
		rest = rest[PageSize:]
	}
	return nil
}

// Log is what a KindLog block holds: bytes of the log and the LSN of the first.
func (b Block) Log() (lsn uint64, log []byte, err error) {
	if len(b.raw) < 8 {
		return 0, nil, fmt.Errorf("%w: a block of the log makes no sense", ErrDamaged)
	}
	return binary.LittleEndian.Uint64(b.raw), b.raw[8:], nil
}

// end is what a KindEnd block holds.
func (b Block) end() (End, error) {
	if len(b.raw) < 24 || len(b.raw) > 24+maxWhy {
		return End{}, fmt.Errorf("%w: its end makes no sense", ErrDamaged)
	}
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(b.raw[8*i:]) }
	return End{Position: word(0), Fingerprint: word(1), LSN: word(2), Why: string(b.raw[24:])}, nil
}
