// Package bzimage unpacks a Linux kernel: from the compressed image that a
// distribution installs to the ELF file inside it.
//
// # Place
//
// hvd/boot uses it so that the guest starts in the kernel proper: no
// decompressor runs in the guest, and none of its exits and pages are recorded.
// It imports nothing of ours.
//
// # Layout
//
// After the kernel's Documentation/arch/x86/boot.rst:
//
//	0x1f1  1  setup_sects: sectors of 512 bytes after the first; 0 means 4
//	0x1fe  2  55h AAh
//	0x201  1  the header ends at 0x202 + this byte
//	0x202  4  "HdrS"
//	0x206  2  protocol version, 2.08 or later for the payload's place
//	0x248  4  payload_offset, from the end of the setup sectors
//	0x24c  4  payload_length
//
// The payload is compressed with gzip, bzip2, lzma, xz, lz4 or zstd, recognised
// by its first bytes; its last four bytes are the unpacked size. What is unpacked
// is the ELF file, and after it the relocations, which nobody here needs.
package bzimage

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz/lzma"
)

// MaxSize limits an unpacked kernel, in bytes.
const MaxSize = 512 << 20

var (
	// ErrFormat says that these bytes are no Linux kernel for a PC.
	ErrFormat = errors.New("not an x86 Linux kernel")
	// ErrDamaged says that they are one, and that it can't be unpacked.
	ErrDamaged = errors.New("damaged Linux kernel")
)

var le = binary.LittleEndian

const (
	headerStart = 0x1f1
	headerMax   = 0x290 // end of the header of the newest protocol, 2.15, and some room
)

// Header returns the setup header, which is to be copied to the same offset,
// 0x1f1, of the boot parameters; nil when the kernel is a bare ELF file.
func Header(kernel []byte) []byte {
	if IsELF(kernel) || check(kernel) != nil {
		return nil
	}
	end := min(0x202+int(kernel[0x201]), headerMax)
	return kernel[headerStart:end]
}

// IsELF tells whether the kernel is already an ELF file.
func IsELF(kernel []byte) bool { return bytes.HasPrefix(kernel, []byte("\x7fELF")) }

func check(kernel []byte) error {
	switch {
	case len(kernel) < 1024 || string(kernel[0x202:0x206]) != "HdrS" || kernel[0x1fe] != 0x55 || kernel[0x1ff] != 0xaa:
		return ErrFormat
	case le.Uint16(kernel[0x206:]) < 0x208:
		return fmt.Errorf("%w: boot protocol %d.%d is too old, 2.8 is the first that says where the payload is",
			ErrFormat, kernel[0x207], kernel[0x206])
	case kernel[0x201] < 0x250-0x202: // up to the payload's place
		return fmt.Errorf("%w: its setup header ends too early", ErrFormat)
	}
	return nil
}

// Unpack returns the ELF file inside a kernel image, or kernel itself if it is
// one.
func Unpack(kernel []byte) ([]byte, error) {
	if IsELF(kernel) {
		return kernel, nil
	}
	if err := check(kernel); err != nil {
		return nil, err
	}
	sectors := uint64(kernel[0x1f1])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*512 + uint64(le.Uint32(kernel[0x248:]))
	length := uint64(le.Uint32(kernel[0x24c:]))
	if length < 8 || start > uint64(len(kernel)) || length > uint64(len(kernel))-start {
		return nil, fmt.Errorf("%w: %d bytes of payload at %d in a file of %d bytes", ErrDamaged, length, start, len(kernel))
	}
	payload := kernel[start : start+length]
	size := le.Uint32(payload[length-4:])
	if size > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes unpacked, at most %d", ErrDamaged, size, MaxSize)
	}
	name, open := method(payload)
	if open == nil {
		return nil, fmt.Errorf("%w: unknown compression, starts with % x", ErrFormat, payload[:6])
	}
	elf, err := read(payload, int(size), open)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, name, err)
	}
	if !IsELF(elf) {
		return nil, fmt.Errorf("%w: what is packed in it is no ELF file", ErrFormat)
	}
	return elf, nil
}

// opener starts to unpack a payload. It gets the payload without the size at
// its end.
type opener func(b []byte) (io.Reader, error)

func method(payload []byte) (string, opener) {
	for _, m := range []struct {
		magic, name string
		open        opener
	}{
		{"\x1f\x8b", "gzip", func(b []byte) (io.Reader, error) { return gzip.NewReader(bytes.NewReader(b)) }},
		{"BZh", "bzip2", func(b []byte) (io.Reader, error) { return bzip2.NewReader(bytes.NewReader(b)), nil }},
		{"\xfd7zXZ\x00", "xz", newXZ},
		{"\x5d\x00\x00", "lzma", newLZMA},
		{"\x02\x21\x4c\x18", "lz4", func(b []byte) (io.Reader, error) { return &lz4Reader{b: b[4:]}, nil }},
		{"\x28\xb5\x2f\xfd", "zstd", newZstd},
	} {
		if bytes.HasPrefix(payload, []byte(m.magic)) {
			return m.name, m.open
		}
	}
	return "", nil
}

// read unpacks exactly size bytes. The buffer grows with what arrives, so that
// a small file can't claim much memory.
func read(payload []byte, size int, open opener) ([]byte, error) {
	body := payload[:len(payload)-4]
	if payload[0] == 0x1f {
		body = payload // gzip's own trailer is the size
	}
	r, err := open(body)
	if err != nil {
		return nil, err
	}
	if c, ok := r.(interface{ Close() }); ok {
		defer c.Close()
	}
	var out bytes.Buffer
	out.Grow(min(size, 16*len(payload)))
	if _, err := io.Copy(&out, io.LimitReader(r, int64(size))); err != nil {
		return nil, err
	}
	if out.Len() != size {
		return nil, fmt.Errorf("%d bytes unpacked instead of %d", out.Len(), size)
	}
	if f, ok := r.(interface{ finish([]byte) }); ok {
		f.finish(out.Bytes())
	}
	return out.Bytes(), nil
}

func newZstd(b []byte) (io.Reader, error) {
	// The kernel is packed with -22 --ultra: a window of 128 MiB.
	return zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderMaxMemory(MaxSize))
}

func newLZMA(b []byte) (io.Reader, error) {
	if len(b) < lzma.HeaderLen || le.Uint32(b[1:]) > 128<<20 {
		return nil, errors.New("dictionary too large")
	}
	return lzma.NewReader(bytes.NewReader(b))
}
