package iscsi

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
)

// blockLimits are the fields of page B0h that matter here (SBC-3 section
// 6.5.3). Zero means that the target doesn't say.
type blockLimits struct {
	compareAndWrite byte   // blocks
	transfer        uint32 // blocks of one READ or WRITE
	unmap           uint32 // blocks of one UNMAP; all ones: no limit
	writeSame       uint64 // blocks of one WRITE SAME
}

func parseBlockLimits(body []byte) (l blockLimits) {
	if len(body) >= 2 {
		l.compareAndWrite = body[1]
	}
	if len(body) >= 8 {
		l.transfer = binary.BigEndian.Uint32(body[4:])
	}
	if len(body) >= 20 {
		l.unmap = binary.BigEndian.Uint32(body[16:])
	}
	if len(body) >= 40 {
		l.writeSame = binary.BigEndian.Uint64(body[32:])
	}
	return l
}

// provisioning is page B2h (SBC-3 section 6.5.4): which commands give blocks
// back to the target's pool.
type provisioning struct {
	unmap     bool // LBPU: UNMAP
	writeSame bool // LBPWS: WRITE SAME(16) with the UNMAP bit
}

func parseProvisioning(body []byte) (p provisioning) {
	if len(body) >= 2 {
		p.unmap, p.writeSame = body[1]&0x80 != 0, body[1]&0x40 != 0
	}
	return p
}

// maxZero limits the bytes that one WRITE SAME covers, so that none takes long
// enough to be taken for lost.
const maxZero = 64 << 20

// Zero fills n blocks from lba on with zeros, by WRITE SAME(16) (SBC-3 section
// 5.43), so that none of them goes over the network, or by WRITE where the target
// can't do that. As with Write, Sync makes it last, and after an error each block
// may be old or zero.
func (s *Session) Zero(ctx context.Context, lba, n uint64) error {
	const op = "WRITE SAME"
	if err := s.checkRange(op, lba, n); err != nil {
		return err
	}
	bs := uint64(s.unit.blockSize)
	most := maxZero / bs
	if l := s.unit.limits.writeSame; l > 0 {
		most = min(most, l)
	}
	block := make([]byte, bs)
	for n > 0 {
		k := min(n, most)
		var err error = ErrUnsupported
		if !s.noWriteSame.Load() {
			_, err = s.exec(ctx, command{op: op, cdb: cdbBlocks(scsiWriteSame16, lba, uint32(k)), out: block})
		}
		if errors.Is(err, ErrUnsupported) {
			s.noWriteSame.Store(true)
			k = min(k, goodImmediate/bs)
			err = s.Write(ctx, lba, make([]byte, k*bs))
		}
		if err != nil {
			return err
		}
		lba, n = lba+k, n-k
	}
	return nil
}

// Unmap tells the target that n blocks from lba on hold nothing any more (UNMAP,
// SBC-3 section 5.34): their content is anything from then on, until they are
// written. ErrUnsupported says that the target keeps all blocks anyway.
func (s *Session) Unmap(ctx context.Context, lba, n uint64) error {
	const op = "UNMAP"
	if err := s.checkRange(op, lba, n); err != nil {
		return err
	}
	if !s.unit.provision.unmap {
		return s.named(fmt.Errorf("%s: %w", op, ErrUnsupported))
	}
	most := uint64(maxZero / s.unit.blockSize)
	if l := s.unit.limits.unmap; l > 0 {
		most = min(most, uint64(l))
	}
	for n > 0 {
		k := min(n, most)
		p := unmapParameters(lba, uint32(k))
		c := cdb{scsiUnmap}
		binary.BigEndian.PutUint16(c[7:], uint16(len(p)))
		if _, err := s.exec(ctx, command{op: op, cdb: c, out: p}); err != nil {
			return err
		}
		lba, n = lba+k, n-k
	}
	return nil
}

// unmapParameters is UNMAP's parameter list with one descriptor: length of what
// follows (2 bytes), of the descriptors (2), reserved (4); then address (8), number of
// blocks (4), reserved (4).
func unmapParameters(lba uint64, blocks uint32) []byte {
	p := make([]byte, 24)
	binary.BigEndian.PutUint16(p, 22)
	binary.BigEndian.PutUint16(p[2:], 16)
	binary.BigEndian.PutUint64(p[8:], lba)
	binary.BigEndian.PutUint32(p[16:], blocks)
	return p
}
