package wire

import (
	"encoding/binary"
	"fmt"
)

const (
	// MaxBlocks is how many bytes one Blocks frame carries at most.
	MaxBlocks = 2 << 20
	maxDisk   = 255
	wantSize  = 2 * binary.MaxVarintLen64
)

// AppendWant appends the payload of a Want frame: a disk's index, at most 255, and
// the number of a request.
func AppendWant(dst []byte, disk int, request uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(dst, uint64(disk)), request)
}

// ParseWant decodes the payload of a Want frame.
func ParseWant(payload []byte) (disk int, request uint64, err error) {
	disk, request, rest, err := parseWant(payload)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%w: %d bytes behind a request's number", ErrFrame, len(rest))
	}
	return disk, request, err
}

// AppendBlocks appends the payload of a Blocks frame: the data that a request has
// read, 1 byte to MaxBlocks.
func AppendBlocks(dst []byte, disk int, request uint64, data []byte) []byte {
	return append(AppendWant(dst, disk, request), data...)
}

// ParseBlocks decodes the payload of a Blocks frame. data points into it.
func ParseBlocks(payload []byte) (disk int, request uint64, data []byte, err error) {
	disk, request, data, err = parseWant(payload)
	if err == nil && (len(data) == 0 || len(data) > MaxBlocks) {
		err = fmt.Errorf("%w: %d bytes of a disk", ErrFrame, len(data))
	}
	return disk, request, data, err
}

func parseWant(payload []byte) (disk int, request uint64, rest []byte, err error) {
	d, n := binary.Uvarint(payload)
	if n <= 0 || d > maxDisk {
		return 0, 0, nil, fmt.Errorf("%w: bad disk", ErrFrame)
	}
	request, m := binary.Uvarint(payload[n:])
	if m <= 0 {
		return 0, 0, nil, fmt.Errorf("%w: bad request", ErrFrame)
	}
	return int(d), request, payload[n+m:], nil
}
