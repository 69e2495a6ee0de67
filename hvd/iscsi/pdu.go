package iscsi

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// opcode is the kind of a PDU (RFC 7143, section 11.2.1.2).
type opcode byte

// From the initiator below 0x20, from the target from 0x20 on.
const (
	opNopOut        opcode = 0x00
	opSCSICommand   opcode = 0x01
	opTaskRequest   opcode = 0x02
	opLoginRequest  opcode = 0x03
	opTextRequest   opcode = 0x04
	opDataOut       opcode = 0x05
	opLogoutRequest opcode = 0x06
	opNopIn         opcode = 0x20
	opSCSIResponse  opcode = 0x21
	opTaskResponse  opcode = 0x22
	opLoginResponse opcode = 0x23
	opTextResponse  opcode = 0x24
	opDataIn        opcode = 0x25
	opLogoutReply   opcode = 0x26
	opR2T           opcode = 0x31
	opAsync         opcode = 0x32
	opReject        opcode = 0x3f
)

const (
	headerLen = 48
	// noTag is the reserved value of both kinds of tags.
	noTag = 0xffffffff

	flagImmediate = 0x40 // byte 0: doesn't count in the CmdSN order

	flagFinal     = 0x80 // byte 1, most PDUs
	flagRead      = 0x40 // byte 1, SCSI command
	flagWrite     = 0x20
	flagOverflow  = 0x04 // byte 1, SCSI response and Data-In
	flagUnderflow = 0x02
	flagStatus    = 0x01 // byte 1, Data-In: status is in this PDU

	flagTransit  = 0x80 // byte 1, login
	flagContinue = 0x40
)

// header is the basic header segment of a PDU; the layout is in the package
// comment.
type header [headerLen]byte

func (h *header) op() opcode      { return opcode(h[0] & 0x3f) }
func (h *header) has(f byte) bool { return h[1]&f != 0 }
func (h *header) ahsLen() int     { return int(h[4]) * 4 }
func (h *header) dataLen() int    { return int(h[5])<<16 | int(h[6])<<8 | int(h[7]) }
func (h *header) setDataLen(n int) {
	h[5], h[6], h[7] = byte(n>>16), byte(n>>8), byte(n)
}
func (h *header) u32(at int) uint32             { return binary.BigEndian.Uint32(h[at:]) }
func (h *header) put32(at int, v uint32)        { binary.BigEndian.PutUint32(h[at:], v) }
func (h *header) put64(at int, v uint64)        { binary.BigEndian.PutUint64(h[at:], v) }
func (h *header) itt() uint32                   { return h.u32(16) }
func (h *header) transferTag() uint32           { return h.u32(20) }
func (h *header) statSN() uint32                { return h.u32(24) }
func (h *header) expCmdSN() uint32              { return h.u32(28) }
func (h *header) maxCmdSN() uint32              { return h.u32(32) }
func (h *header) bufferOffset() uint32          { return h.u32(40) }
func (h *header) desiredLength() uint32         { return h.u32(44) }
func (h *header) status() (response, scsi byte) { return h[2], h[3] }

// errDigest says that a CRC32C was wrong: the bytes were damaged on the way.
var errDigest = errors.New("damaged on the way (CRC32C digest is wrong)")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// framing is what both sides agreed on about the shape of PDUs.
type framing struct {
	headerDigest, dataDigest bool
	// maxData limits the data segment of a PDU that we accept: our
	// MaxRecvDataSegmentLength.
	maxData int
}

// readHeader reads a basic header segment, skips additional ones and checks
// the digest. The data segment follows in the stream.
func (f framing) readHeader(r io.Reader, h *header) error {
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return err
	}
	var ahs [255 * 4]byte
	n := h.ahsLen()
	if n > 0 {
		if _, err := io.ReadFull(r, ahs[:n]); err != nil {
			return noEOF(err)
		}
	}
	if f.headerDigest {
		sum := crc32.Update(crc32.Checksum(h[:], castagnoli), castagnoli, ahs[:n])
		if err := checkDigest(r, sum); err != nil {
			return fmt.Errorf("PDU header: %w", err)
		}
	}
	if h.dataLen() > f.maxData {
		return fmt.Errorf("PDU 0x%02x with %d bytes of data, more than the %d allowed", byte(h.op()), h.dataLen(), f.maxData)
	}
	return nil
}

// readData reads the data segment of h into p, which must be as long as it is,
// and checks padding and digest.
func (f framing) readData(r io.Reader, h *header, p []byte) error {
	n := h.dataLen()
	if len(p) != n {
		return fmt.Errorf("buffer of %d bytes for %d bytes of data", len(p), n)
	}
	if n == 0 {
		return nil
	}
	if _, err := io.ReadFull(r, p); err != nil {
		return noEOF(err)
	}
	var pad [3]byte
	k := padding(n)
	if _, err := io.ReadFull(r, pad[:k]); err != nil {
		return noEOF(err)
	}
	if f.dataDigest {
		sum := crc32.Update(crc32.Checksum(p, castagnoli), castagnoli, pad[:k])
		if err := checkDigest(r, sum); err != nil {
			return fmt.Errorf("PDU data: %w", err)
		}
	}
	return nil
}

// write puts a PDU on w. The length of data goes into the header here.
func (f framing) write(w *bufio.Writer, h *header, data []byte) error {
	h.setDataLen(len(data))
	w.Write(h[:]) // bufio keeps the first error for the last call
	if f.headerDigest {
		w.Write(binary.LittleEndian.AppendUint32(nil, crc32.Checksum(h[:], castagnoli)))
	}
	if len(data) == 0 {
		_, err := w.Write(nil)
		return err
	}
	w.Write(data)
	var pad [3]byte
	k := padding(len(data))
	_, err := w.Write(pad[:k])
	if f.dataDigest {
		sum := crc32.Update(crc32.Checksum(data, castagnoli), castagnoli, pad[:k])
		_, err = w.Write(binary.LittleEndian.AppendUint32(nil, sum))
	}
	return err
}

// checkDigest reads a digest. CRC32C goes over the wire with its least
// significant byte first (RFC 7143, section 13.1 and the examples of RFC 3720
// appendix B.4).
func checkDigest(r io.Reader, want uint32) error {
	var d [4]byte
	if _, err := io.ReadFull(r, d[:]); err != nil {
		return noEOF(err)
	}
	if binary.LittleEndian.Uint32(d[:]) != want {
		return errDigest
	}
	return nil
}

func padding(n int) int { return -n & 3 }

// noEOF: an end inside a PDU is never a clean end.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// after says that a comes after b in serial number arithmetic (RFC 1982, 32
// bits), in which all of iSCSI's sequence numbers live.
func after(a, b uint32) bool { return int32(a-b) > 0 }
