package bzimage

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

// Filter IDs of the .xz file format, section 5.3.
const (
	filterX86   = 0x04
	filterLZMA2 = 0x21
)

var errXZ = errors.New("bad xz header")

// newXZ opens the first block of an .xz stream. The kernel packs itself into a
// single block with the filters x86 BCJ and LZMA2, and BCJ is why a general
// reader doesn't do. The check after the block is left alone; the caller knows
// the size.
//
//	stream header  6 magic, 2 flags, 4 CRC32
//	block header   1 size/4 - 1, 1 flags (number of filters - 1; 40h packed size
//	               follows, 80h unpacked size follows), sizes, filters, padding, 4 CRC32
//	filter         id, size of properties, properties (numbers of 7 bits a byte)
func newXZ(b []byte) (io.Reader, error) {
	if len(b) < 12+8 {
		return nil, errXZ
	}
	b = b[12:]
	size := (int(b[0]) + 1) * 4
	if b[0] == 0 || size > len(b) {
		return nil, errXZ
	}
	header, body := b[2:size-4], b[size:]
	flags := b[1]
	for _, bit := range []byte{0x40, 0x80} {
		if flags&bit != 0 {
			var err error
			if _, header, err = varint(header); err != nil {
				return nil, err
			}
		}
	}
	bcj, dict := false, int64(0)
	for range int(flags&3) + 1 {
		var id, length uint64
		var err error
		if id, header, err = varint(header); err == nil {
			length, header, err = varint(header)
		}
		if err != nil || length > uint64(len(header)) {
			return nil, errXZ
		}
		props := header[:length]
		header = header[length:]
		switch {
		case id == filterX86 && !bcj && dict == 0 && length == 0:
			bcj = true
		case id == filterLZMA2 && dict == 0 && length == 1 && props[0] <= 40:
			dict = dictSize(props[0])
		default:
			return nil, fmt.Errorf("unsupported xz filter %#x", id)
		}
	}
	if dict == 0 || dict > 128<<20 {
		return nil, fmt.Errorf("xz dictionary of %d bytes", dict)
	}
	r, err := lzma.Reader2Config{DictCap: int(dict)}.NewReader2(bytes.NewReader(body))
	return &xzReader{Reader: r, bcj: bcj}, err
}

// dictSize decodes LZMA2's property byte: 2 or 3, shifted.
func dictSize(p byte) int64 {
	if p == 40 {
		return 1<<32 - 1
	}
	return int64(2|p&1) << (p/2 + 11)
}

// varint reads a number of up to nine bytes, seven bits each.
func varint(b []byte) (uint64, []byte, error) {
	var v uint64
	for i := range min(9, len(b)) {
		v |= uint64(b[i]&0x7f) << (7 * i)
		if b[i]&0x80 == 0 {
			return v, b[i+1:], nil
		}
	}
	return 0, nil, errXZ
}

// xzReader is a block's contents before the branch filter, which wants the
// whole file at once.
type xzReader struct {
	io.Reader
	bcj bool
}

// finish undoes the branch filter on everything that was read.
func (r *xzReader) finish(b []byte) {
	if r.bcj {
		undoBranches(b)
	}
}

func signByte(b byte) bool { return b == 0 || b == 0xff }

// undoBranches undoes the x86 BCJ filter of the .xz format: before compression
// the targets of CALL and JMP (E8, E9) were made absolute, so that calls of one
// function look alike. What looks like an opcode within the operand of one is
// ambiguous, so a mask of the opcodes in the last bytes decides, with the very
// rules by which the encoder decided.
func undoBranches(b []byte) {
	allowed := [8]bool{true, true, true, false, true, false, false, false}
	shift := [8]uint32{0, 1, 2, 2, 3, 3, 3, 3}
	mask, last := uint32(0), -5
	for i := 0; i+5 <= len(b); i++ {
		if b[i]&0xfe != 0xe8 {
			continue
		}
		if i-last > 5 {
			mask = 0
		} else {
			for range i - last {
				mask = mask & 0x77 << 1
			}
		}
		last = i
		top := b[i+4]
		if !signByte(top) || !allowed[mask>>1&7] || mask>>1 >= 0x10 {
			mask |= 1
			if signByte(top) {
				mask |= 0x10
			}
			continue
		}
		src, dest := le.Uint32(b[i+1:]), uint32(0)
		for {
			dest = src - uint32(i+5)
			if mask == 0 {
				break
			}
			bits := shift[mask>>1] * 8
			if !signByte(byte(dest >> (24 - bits))) {
				break
			}
			src = dest ^ (1<<(32-bits) - 1)
		}
		le.PutUint32(b[i+1:], dest&0x1ffffff)
		b[i+4] = -(b[i+4] & 1) // the sign, from bit 24
		i += 4
		mask = 0
	}
}
