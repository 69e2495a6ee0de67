package proxy

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
)

const (
	// headerLen is a basic header segment (RFC 7143, section 11.2.1), digestLen a digest.
	headerLen, digestLen = 48, 4
	// maxSegment bounds a data segment in bytes; the targets of tests allow a quarter of it.
	maxSegment = 1 << 20

	opCommand       = 0x01 // SCSI Command (section 11.3)
	opResponse      = 0x21 // SCSI Response (section 11.4)
	opLoginResponse = 0x23 // Login Response (section 11.13)
	opMask          = 0x3f

	statusGood, statusCheck, statusBusy = 0x00, 0x02, 0x08 // SAM-5, section 5.3.1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// digests tells which digests follow the segments of a PDU.
type digests struct{ header, data bool }

// pdu is one PDU without its digests.
type pdu struct {
	head [headerLen]byte
	ahs  []byte
	data []byte // without padding
}

func (p *pdu) op() byte    { return p.head[0] & opMask }
func (p *pdu) tag() uint32 { return binary.BigEndian.Uint32(p.head[16:]) }

func padding(n int) int { return -n & 3 }

// read reads a PDU. Digests are taken away unchecked: the end that gets the PDU checks the ones that are made anew.
func read(r io.Reader, d digests) (*pdu, error) {
	p := &pdu{}
	if _, err := io.ReadFull(r, p.head[:]); err != nil {
		return nil, err
	}
	extra := int(p.head[4]) * 4
	segment := int(p.head[5])<<16 | int(p.head[6])<<8 | int(p.head[7])
	if segment > maxSegment {
		return nil, fmt.Errorf("a PDU with a data segment of %d bytes; %d are possible", segment, maxSegment)
	}
	size := extra + segment + padding(segment)
	at := extra // of the data segment
	if d.header {
		size, at = size+digestLen, at+digestLen
	}
	if d.data && segment > 0 {
		size += digestLen
	}
	rest := make([]byte, size)
	if _, err := io.ReadFull(r, rest); err != nil {
		return nil, err
	}
	p.ahs, p.data = rest[:extra], rest[at:at+segment]
	return p, nil
}

// append appends the PDU's bytes, with digests made anew.
func (p *pdu) append(b []byte, d digests) []byte {
	p.head[5], p.head[6], p.head[7] = byte(len(p.data)>>16), byte(len(p.data)>>8), byte(len(p.data))
	from := len(b)
	b = append(append(b, p.head[:]...), p.ahs...)
	if d.header {
		b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[from:], castagnoli))
	}
	from = len(b)
	b = append(b, p.data...)
	b = append(b, make([]byte, padding(len(p.data)))...)
	if d.data && len(p.data) > 0 {
		b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[from:], castagnoli))
	}
	return b
}

// loggedIn takes what a login response says of digests into d, and tells whether the full feature phase begins
// behind it (RFC 7143, section 11.13: bit T, next stage 3).
func (p *pdu) loggedIn(d *digests) bool {
	for _, pair := range strings.Split(string(p.data), "\x00") {
		switch key, value, _ := strings.Cut(pair, "="); key {
		case "HeaderDigest":
			d.header = value == "CRC32C"
		case "DataDigest":
			d.data = value == "CRC32C"
		}
	}
	return p.head[1]&0x83 == 0x83
}

// writes tells whether a command changes a disk's blocks. COMPARE AND WRITE isn't among them: it serves the arbiter.
func writes(cdb []byte) bool {
	switch cdb[0] {
	case 0x0a, 0x2a, 0xaa, 0x8a, // WRITE (6, 10, 12, 16)
		0x2e, 0x8e, // WRITE AND VERIFY
		0x41, 0x93, 0x42: // WRITE SAME, UNMAP
		return true
	}
	return false
}

// blocks tells whether a command is about the disk's blocks at all.
func blocks(cdb []byte) bool {
	switch cdb[0] {
	case 0x08, 0x28, 0xa8, 0x88, 0x35, 0x91, 0x89: // READ, SYNCHRONIZE CACHE, COMPARE AND WRITE
		return true
	}
	return writes(cdb)
}

// spoil makes a command one that the target refuses without doing it: an operation that SPC-4 leaves to vendors.
func (p *pdu) spoil() {
	p.head[32] = 0xff
}

// answer makes a response say something else.
func (p *pdu) answer(status byte, sense []byte) {
	p.head[1], p.head[2], p.head[3] = 0x80, 0, status // final, no residual, completed at the target
	p.data = nil
	if len(sense) > 0 {
		p.data = append(binary.BigEndian.AppendUint16(nil, uint16(len(sense))), sense...)
	}
}

// fixedSense is sense data in fixed format (SPC-4, section 4.5.3).
func fixedSense(key, asc, ascq byte) []byte {
	s := make([]byte, 18)
	s[0], s[2], s[7], s[12], s[13] = 0x70, key, 10, asc, ascq
	return s
}
