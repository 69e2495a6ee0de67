package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	total := int64(d.Sectors()) * SectorSize
	if n > total {
		return 0, fmt.Errorf("image has %s, the virtual disk only %s", size(uint64(n)), size(uint64(total)))
	}
	buf := make([]byte, copyChunk)
	for at := int64(0); at < total; at += copyChunk {
		if fresh && at >= n {
			break
		}
		p := buf[:min(copyChunk, total-at)]
		clear(p)
		if at < n {
			part := p[:min(int64(len(p)), n-at)]
			if got, err := image.ReadAt(part, at); got < len(part) && (err == nil || errors.Is(err, io.EOF)) {
				return written, fmt.Errorf("image ends at byte %d of %d", at+int64(got), n)
			} else if err != nil && !errors.Is(err, io.EOF) {
				return written, fmt.Errorf("image: %w", err)
			}
		}
		k, err := d.copyPieces(ctx, at, p, fresh)
		written += k
		if err != nil {
			return written, err
		}
		if progress != nil {
			progress(at+int64(len(p)), total)
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
