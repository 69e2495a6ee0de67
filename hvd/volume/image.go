package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
)

// copyChunk is the unit in which an image is copied, zeroPiece that in which
// zeros are looked for.
const (
	copyChunk = 1 << 20
	zeroPiece = 64 << 10
)

// CopyImage copies a raw disk image of n bytes onto the disk, which may be
// larger; the rest of it becomes zeros, too. Zeros of the image aren't written
// where the disk holds zeros already: with fresh, the caller vouches that it
// holds nothing else (a new volume); without it, the disk is read there.
// progress, if not nil, is told the bytes that are done. It returns the bytes
// that were written.
func CopyImage(ctx context.Context, d *DiskIO, image io.ReaderAt, n int64, fresh bool, progress func(done, total int64)) (written int64, err error) {
	if total := int64(d.Sectors()) * SectorSize; n > total {
		return 0, fmt.Errorf("%w has %s, the virtual disk only %s", ErrImage, size(uint64(n)), size(uint64(total)))
	}
	r := &counted{r: strings.NewReader("")}
	if n > 0 {
		r.r = io.NewSectionReader(image, 0, n)
	}
	written, err = copyStream(ctx, d, r, fresh, progress)
	if err == nil && r.n < n {
		err = fmt.Errorf("image ends at byte %d of %d", r.n, n)
	}
	return written, err
}

// CopyStream is CopyImage for an image that comes as a stream, up to its end.
func CopyStream(ctx context.Context, d *DiskIO, image io.Reader, progress func(done, total int64)) (written int64, err error) {
	return copyStream(ctx, d, &counted{r: image}, false, progress)
}

// counted counts the bytes that were read, and tells the end of a stream from
// one that was broken off, which a request's body calls ErrUnexpectedEOF.
type counted struct {
	r   io.Reader
	n   int64
	end bool // the stream's proper end was read
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	c.end = c.end || errors.Is(err, io.EOF)
	return n, err
}

func copyStream(ctx context.Context, d *DiskIO, image *counted, fresh bool, progress func(done, total int64)) (written int64, err error) {
	total := int64(d.Sectors()) * SectorSize
	buf := make([]byte, copyChunk)
	ended := false
	for at := int64(0); at < total && !(ended && fresh); at += copyChunk {
		p := buf[:min(copyChunk, total-at)]
		n := 0
		if !ended {
			n, err = io.ReadFull(image, p)
			ended = image.end && n < len(p)
			if err != nil && !ended {
				return written, fmt.Errorf("image: %w", err)
			}
		}
		clear(p[n:])
		k, err := d.copyPieces(ctx, at, p, fresh)
		written += k
		if err != nil {
			return written, err
		}
		if progress != nil {
			progress(at+int64(len(p)), total)
		}
	}
	if !ended {
		var more [1]byte
		if _, err := io.ReadFull(image, more[:]); err == nil {
			return written, fmt.Errorf("%w is larger than the virtual disk, which has %s", ErrImage, size(uint64(total)))
		} else if !image.end {
			return written, fmt.Errorf("image: %w", err)
		}
	}
	return written, d.Sync(ctx)
}

// copyPieces writes a chunk, without the pieces that may be left out.
func (d *DiskIO) copyPieces(ctx context.Context, at int64, p []byte, fresh bool) (written int64, err error) {
	var old []byte
	for i := 0; i < len(p); {
		// a run of pieces that are all zeros, or all not
		zero := isZero(p[i:min(i+zeroPiece, len(p))])
		end := min(i+zeroPiece, len(p))
		for end < len(p) && isZero(p[end:min(end+zeroPiece, len(p))]) == zero {
			end = min(end+zeroPiece, len(p))
		}
		sector := uint64(at+int64(i)) / SectorSize
		run := p[i:end]
		i = end
		if zero && fresh {
			continue
		}
		if zero {
			old = append(old[:0], run...)
			if err := d.Read(ctx, sector, old); err != nil {
				return written, err
			}
			if isZero(old) {
				continue
			}
		}
		write := d.Write
		if zero {
			write = d.zero
		}
		if err := write(ctx, sector, run); err != nil {
			return written, err
		}
		written += int64(len(run))
	}
	return written, nil
}

// ImageHead is how many bytes of an image CheckRaw looks at.
const ImageHead = 32

// formats are disk images that aren't raw, by what they begin with.
var formats = []struct{ magic, name string }{
	{"QFI\xfb", "qcow2"},
	{"KDMV", "VMDK"},
	{"# Disk DescriptorFile", "VMDK"},
	{"conectix", "VHD"},
	{"vhdxfile", "VHDX"},
	{"\x1f\x8b", "gzip"},
	{"\xfd7zXZ", "xz"},
	{"\x28\xb5\x2f\xfd", "Zstandard"},
}

// CheckRaw refuses an image of another kind, whose bytes would be no disk, by
// its first ImageHead bytes, or fewer if it has no more.
func CheckRaw(head []byte) error {
	if len(head) == 0 {
		return fmt.Errorf("%w is empty", ErrImage)
	}
	for _, f := range formats {
		if bytes.HasPrefix(head, []byte(f.magic)) {
			return fmt.Errorf("%w is a %s file, and not a raw one: convert it first (qemu-img convert -O raw, or unpack it)", ErrImage, f.name)
		}
	}
	return nil
}
