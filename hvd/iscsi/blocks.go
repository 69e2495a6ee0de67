package iscsi

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Capacity returns the size of the logical unit in blocks, and the size of a
// block in bytes (512 or 4096). A unit may grow; it never shrinks while the
// session lives.
func (s *Session) Capacity() (blocks uint64, blockSize int) {
	return s.blocks.Load(), s.unit.blockSize
}

// Inquiry returns what the target says about itself.
func (s *Session) Inquiry() Inquiry { return s.unit.inquiry }

const (
	// maxReadPiece limits the bytes of one READ.
	maxReadPiece = 256 << 10
	// goodImmediate is the immediate data from which on writes are cut to fit
	// one PDU each.
	goodImmediate = 64 << 10
	// piecesAtOnce limits the commands that one Read or Write has in flight.
	piecesAtOnce = 8
)

// Read fills p, whole blocks of it, from block lba on.
func (s *Session) Read(ctx context.Context, lba uint64, p []byte) error {
	if err := s.check("READ", lba, len(p)); err != nil {
		return err
	}
	return s.pieces(lba, p, s.cut(maxReadPiece), func(lba uint64, p []byte) error {
		c := cdbBlocks(scsiRead16, lba, uint32(len(p)/s.unit.blockSize))
		_, err := s.exec(ctx, command{op: "READ", cdb: c, in: p})
		return err
	})
}

// Write stores p, whole blocks of it, from block lba on. It returns when the
// target has them, perhaps in its cache: Sync makes them last. A large p goes
// in pieces, in no certain order. After an error, also that of ctx, each block
// may be old or new; after ErrUnknownOutcome it may yet change.
//
// A target that crashes may lose what it had taken since the last Sync, also
// when this session gets over the crash without an error.
func (s *Session) Write(ctx context.Context, lba uint64, p []byte) error {
	if err := s.check("WRITE", lba, len(p)); err != nil {
		return err
	}
	return s.pieces(lba, p, s.cut(s.writePiece()), func(lba uint64, p []byte) error {
		c := cdbBlocks(scsiWrite16, lba, uint32(len(p)/s.unit.blockSize))
		_, err := s.exec(ctx, command{op: "WRITE", cdb: c, out: p})
		return err
	})
}

// writePiece is how many bytes a WRITE should have.
func (s *Session) writePiece() int {
	s.mu.Lock()
	c := s.cur
	s.mu.Unlock()
	if c == nil {
		return goodImmediate
	}
	if n := c.p.immediateLimit(); n >= goodImmediate {
		return min(n, maxReadPiece)
	}
	return min(c.p.maxBurst, maxReadPiece)
}

// cut turns a wish in bytes into whole blocks that the target takes at once.
func (s *Session) cut(n int) int {
	bs := s.unit.blockSize
	if l := s.unit.limits.transfer; l > 0 && uint64(l)*uint64(bs) < uint64(n) {
		n = int(l) * bs
	}
	return max(n/bs, 1) * bs
}

// check tests a range against the unit.
func (s *Session) check(op string, lba uint64, n int) error {
	bs := s.unit.blockSize
	if n == 0 || n%bs != 0 {
		return s.named(fmt.Errorf("%s: %d bytes are not whole blocks of %d", op, n, bs))
	}
	return s.checkRange(op, lba, uint64(n/bs))
}

func (s *Session) checkRange(op string, lba, n uint64) error {
	if all := s.blocks.Load(); lba > all || n > all-lba {
		return s.named(fmt.Errorf("%s: blocks %d to %d: %w, which has %d", op, lba, lba+n, ErrRange, all))
	}
	return nil
}

// pieces calls f for pieces of p, a few at a time, and returns the first error.
func (s *Session) pieces(lba uint64, p []byte, size int, f func(lba uint64, p []byte) error) error {
	if len(p) <= size {
		return f(lba, p)
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		first error
	)
	slots := make(chan struct{}, piecesAtOnce)
	for len(p) > 0 {
		slots <- struct{}{}
		mu.Lock()
		stop := first != nil
		mu.Unlock()
		if stop {
			break
		}
		n := min(size, len(p))
		at, piece := lba, p[:n]
		wg.Go(func() {
			if err := f(at, piece); err != nil {
				mu.Lock()
				if first == nil {
					first = err
				}
				mu.Unlock()
			}
			<-slots
		})
		lba += uint64(n / s.unit.blockSize)
		p = p[n:]
	}
	wg.Wait()
	return first
}

// Sync returns when everything written before it lasts (SYNCHRONIZE CACHE of
// the whole unit).
func (s *Session) Sync(ctx context.Context) error {
	_, err := s.exec(ctx, command{op: "SYNCHRONIZE CACHE", cdb: cdbBlocks(scsiSyncCache16, 0, 0)})
	if errors.Is(err, ErrUnsupported) {
		_, err = s.exec(ctx, command{op: "SYNCHRONIZE CACHE", cdb: cdb{scsiSyncCache10}})
	}
	return err
}

// CompareAndWrite replaces old by new, whole blocks of equal number (at most
// 255), in one atomic step, if the blocks from lba on still hold old. swapped
// is false when they didn't. With ErrUnknownOutcome, the caller has to read
// back; ErrUnsupported says that the target can't do it. As with Write, Sync
// makes it last: a decision between hosts wants one before it is acted on.
func (s *Session) CompareAndWrite(ctx context.Context, lba uint64, old, new []byte) (swapped bool, err error) {
	const op = "COMPARE AND WRITE"
	if err := s.check(op, lba, len(old)); err != nil {
		return false, err
	}
	blocks := len(old) / s.unit.blockSize
	if len(old) != len(new) || blocks > 255 {
		return false, s.named(fmt.Errorf("%s: %d and %d bytes; expected the same, and at most 255 blocks", op, len(old), len(new)))
	}
	if m := int(s.unit.limits.compareAndWrite); m > 0 && blocks > m {
		return false, s.named(fmt.Errorf("%s: %d blocks; the target takes %d at most", op, blocks, m))
	}
	data := append(append(make([]byte, 0, 2*len(old)), old...), new...)
	_, err = s.exec(ctx, command{op: op, cdb: cdbCompareAndWrite(lba, byte(blocks)), out: data, once: true})
	var ce *CommandError
	if errors.As(err, &ce) && ce.Status == statusCheckCondition && ce.Sense.Key == senseMiscompare {
		return false, nil
	}
	if errors.Is(err, ErrUnsupported) {
		err = s.lacksCompareAndWrite(err)
	}
	return err == nil, err
}
