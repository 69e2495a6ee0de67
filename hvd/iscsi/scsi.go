package iscsi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// cdb is a command descriptor block, padded with zeros to iSCSI's 16 bytes.
type cdb [16]byte

// SCSI operation codes (SPC-4 and SBC-3).
const (
	scsiTestUnitReady   = 0x00
	scsiInquiry         = 0x12
	scsiReadCapacity10  = 0x25
	scsiSyncCache10     = 0x35
	scsiUnmap           = 0x42
	scsiReserveIn       = 0x5e
	scsiReserveOut      = 0x5f
	scsiRead16          = 0x88
	scsiCompareAndWrite = 0x89
	scsiWrite16         = 0x8a
	scsiSyncCache16     = 0x91
	scsiWriteSame16     = 0x93
	scsiServiceIn16     = 0x9e
)

// cdbBlocks is READ(16), WRITE(16), SYNCHRONIZE CACHE(16) or WRITE SAME(16):
// address in bytes 2-9, number of blocks in 10-13 (SBC-3, sections 5.9, 5.35, 5.25
// and 5.43).
func cdbBlocks(op byte, lba uint64, blocks uint32) (c cdb) {
	c[0] = op
	binary.BigEndian.PutUint64(c[2:], lba)
	binary.BigEndian.PutUint32(c[10:], blocks)
	return c
}

// cdbCompareAndWrite is SBC-3 section 5.2; blocks counts those compared, the
// data segment holds as many again to write.
func cdbCompareAndWrite(lba uint64, blocks byte) (c cdb) {
	c[0] = scsiCompareAndWrite
	binary.BigEndian.PutUint64(c[2:], lba)
	c[13] = blocks
	return c
}

// cdbInquiry asks for standard data (page 0, vital false) or a page of vital
// product data (SPC-4 section 6.6).
func cdbInquiry(vital bool, page byte, n uint16) (c cdb) {
	c[0] = scsiInquiry
	if vital {
		c[1] = 1
		c[2] = page
	}
	binary.BigEndian.PutUint16(c[3:], n)
	return c
}

func cdbReadCapacity16() (c cdb) {
	c[0] = scsiServiceIn16
	c[1] = 0x10
	c[13] = 32
	return c
}

// cdbReserve is PERSISTENT RESERVE IN or OUT (SPC-4 sections 6.15 and 6.16).
func cdbReserve(op, action, typ byte, n uint32) (c cdb) {
	c[0] = op
	c[1] = action
	if op == scsiReserveIn {
		binary.BigEndian.PutUint16(c[7:], uint16(n))
		return c
	}
	c[2] = typ // scope 0: the logical unit
	binary.BigEndian.PutUint32(c[5:], n)
	return c
}

// reserveParameters is the parameter list of PERSISTENT RESERVE OUT. persist
// asks the target to remember through a loss of power (APTPL).
func reserveParameters(key, actionKey uint64, persist bool) []byte {
	p := make([]byte, 24)
	binary.BigEndian.PutUint64(p, key)
	binary.BigEndian.PutUint64(p[8:], actionKey)
	if persist {
		p[20] = 1
	}
	return p
}

// capacity is the size of a logical unit.
type capacity struct {
	blocks    uint64
	blockSize int
}

func (c capacity) check() error {
	if c.blockSize != 512 && c.blockSize != 4096 {
		return fmt.Errorf("logical unit has blocks of %d bytes; 512 or 4096 are supported", c.blockSize)
	}
	if c.blocks == 0 || c.blocks > 1<<63/uint64(c.blockSize) {
		return fmt.Errorf("logical unit claims %d blocks", c.blocks)
	}
	return nil
}

// parseCapacity16 decodes READ CAPACITY(16) (SBC-3 section 5.16.2).
func parseCapacity16(b []byte) (capacity, error) {
	if len(b) < 12 {
		return capacity{}, errors.New("READ CAPACITY(16): answer is too short")
	}
	c := capacity{binary.BigEndian.Uint64(b) + 1, int(binary.BigEndian.Uint32(b[8:]))}
	return c, c.check()
}

// parseCapacity10 decodes READ CAPACITY(10) (SBC-3 section 5.15.2).
func parseCapacity10(b []byte) (capacity, error) {
	if len(b) < 8 {
		return capacity{}, errors.New("READ CAPACITY(10): answer is too short")
	}
	c := capacity{uint64(binary.BigEndian.Uint32(b)) + 1, int(binary.BigEndian.Uint32(b[4:]))}
	return c, c.check()
}

// Inquiry is what a target says about itself (SPC-4 section 6.6.2), trimmed.
type Inquiry struct {
	Vendor, Product, Revision string
	// Serial is the unit's serial number (vital product data page 80h), or
	// empty.
	Serial string
}

// parseInquiry decodes standard inquiry data, and refuses what isn't a disk.
func parseInquiry(b []byte) (Inquiry, error) {
	if len(b) < 36 {
		return Inquiry{}, errors.New("INQUIRY: answer is too short")
	}
	switch {
	case b[0]>>5 != 0:
		return Inquiry{}, errors.New("target has no such logical unit (LUN)")
	case b[0]&0x1f != 0:
		return Inquiry{}, fmt.Errorf("logical unit isn't a disk (device type 0x%02x)", b[0]&0x1f)
	}
	return Inquiry{Vendor: ascii(b[8:16]), Product: ascii(b[16:32]), Revision: ascii(b[32:36])}, nil
}

// ascii keeps the printable characters of a fixed-width field.
func ascii(b []byte) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7e {
			return -1
		}
		return r
	}, string(b)))
}

// vitalPage returns the body of a page of vital product data, cut to what is
// there.
func vitalPage(page byte, b []byte) ([]byte, error) {
	if len(b) < 4 || b[1] != page {
		return nil, fmt.Errorf("INQUIRY: page 0x%02x is not what was asked for", page)
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	body := b[4:]
	if n < len(body) {
		body = body[:n]
	}
	return body, nil
}

// parseKeysIn decodes READ KEYS (SPC-4 section 6.15.2). total is how many
// bytes the whole answer has, which may be more than b.
func parseKeysIn(b []byte) (keys []uint64, generation uint32, total int, err error) {
	if len(b) < 8 {
		return nil, 0, 0, errors.New("READ KEYS: answer is too short")
	}
	generation = binary.BigEndian.Uint32(b)
	n := binary.BigEndian.Uint32(b[4:])
	if n%8 != 0 || n > maxReserveIn {
		return nil, 0, 0, fmt.Errorf("READ KEYS: list of %d bytes", n)
	}
	body := b[8:]
	for len(body) >= 8 && len(keys) < int(n/8) {
		keys = append(keys, binary.BigEndian.Uint64(body))
		body = body[8:]
	}
	return keys, generation, 8 + int(n), nil
}

// parseReservation decodes READ RESERVATION (SPC-4 section 6.15.3). Without a
// reservation, both results are zero.
func parseReservation(b []byte) (key uint64, typ byte, err error) {
	if len(b) < 8 {
		return 0, 0, errors.New("READ RESERVATION: answer is too short")
	}
	if binary.BigEndian.Uint32(b[4:]) == 0 {
		return 0, 0, nil
	}
	if len(b) < 24 {
		return 0, 0, errors.New("READ RESERVATION: answer is cut off")
	}
	return binary.BigEndian.Uint64(b[8:]), b[21] & 0xf, nil
}
