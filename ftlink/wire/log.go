package wire

import (
	"encoding/binary"
	"fmt"
)

// MaxLog is how many bytes of the log one frame carries at most.
const MaxLog = maxRaw

// minCompress is the number of log bytes below which compression isn't tried:
// a zstd frame has some 10 bytes of its own, and ticks are hardly repetitive.
const minCompress = 160

const (
	lsnSize = 8
	rawSize = 4
	ackSize = 16
)

// AppendLog appends Log frames with the bytes of the log that start at lsn:
// one for each MaxLog bytes, none if there are no bytes. A frame is compressed
// if that makes it smaller.
func AppendLog(dst []byte, lsn uint64, log []byte) []byte {
	for len(log) > 0 {
		n := min(len(log), MaxLog)
		dst = appendLog(dst, lsn, log[:n])
		lsn += uint64(n)
		log = log[n:]
	}
	return dst
}

func appendLog(dst []byte, lsn uint64, log []byte) []byte {
	start := len(dst)
	if len(log) >= minCompress {
		dst = appendHeader(dst, TypeLog, FlagZstd, 0)
		dst = binary.LittleEndian.AppendUint64(dst, lsn)
		dst = binary.LittleEndian.AppendUint32(dst, uint32(len(log)))
		dst = logEncoder().EncodeAll(log, dst)
		length := len(dst) - start - HeaderSize
		if length < lsnSize+len(log) {
			binary.LittleEndian.PutUint32(dst[start+4:], uint32(length))
			return dst
		}
		dst = dst[:start]
	}
	dst = appendHeader(dst, TypeLog, 0, lsnSize+len(log))
	dst = binary.LittleEndian.AppendUint64(dst, lsn)
	return append(dst, log...)
}

// ParseLog returns the LSN of the first byte in a Log frame, and the bytes:
// part of the frame's payload, or decompressed into buf, which is replaced by
// a larger one if need be.
func ParseLog(f Frame, buf []byte) (lsn uint64, log []byte, err error) {
	if f.Type != TypeLog {
		return 0, nil, fmt.Errorf("%w: %v where log was expected", ErrFrame, f.Type)
	}
	if len(f.Payload) < lsnSize {
		return 0, nil, fmt.Errorf("%w: log of %d bytes", ErrFrame, len(f.Payload))
	}
	lsn, log = binary.LittleEndian.Uint64(f.Payload), f.Payload[lsnSize:]
	raw := len(log)
	if f.Flags&FlagZstd != 0 {
		if len(log) < rawSize {
			return 0, nil, fmt.Errorf("%w: compressed log of %d bytes", ErrFrame, len(log))
		}
		raw, log = int(binary.LittleEndian.Uint32(log)), log[rawSize:]
	}
	if raw == 0 || raw > MaxLog || lsn+uint64(raw) < lsn {
		return 0, nil, fmt.Errorf("%w: %d bytes of log at LSN %d", ErrFrame, raw, lsn)
	}
	if f.Flags&FlagZstd == 0 {
		return lsn, log, nil
	}
	if cap(buf) < raw {
		buf = make([]byte, raw)
	}
	buf = buf[:raw]
	if err := decompress(logDecoder(), buf, log); err != nil {
		return 0, nil, err
	}
	return lsn, buf, nil
}

// AppendAck appends an Ack frame. verified is at most received.
func AppendAck(dst []byte, received, verified uint64) []byte {
	dst = appendHeader(dst, TypeAck, 0, ackSize)
	dst = binary.LittleEndian.AppendUint64(dst, received)
	return binary.LittleEndian.AppendUint64(dst, verified)
}

// ParseAck returns the two LSNs in an Ack frame.
func ParseAck(f Frame) (received, verified uint64, err error) {
	if f.Type != TypeAck || len(f.Payload) != ackSize {
		return 0, 0, fmt.Errorf("%w: %v of %d bytes where an ack was expected", ErrFrame, f.Type, len(f.Payload))
	}
	received = binary.LittleEndian.Uint64(f.Payload)
	verified = binary.LittleEndian.Uint64(f.Payload[8:])
	if verified > received {
		return 0, 0, fmt.Errorf("%w: acknowledges LSN %d as executed but only %d as received", ErrFrame, verified, received)
	}
	return received, verified, nil
}
