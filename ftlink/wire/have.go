package wire

import (
	"encoding/binary"
	"fmt"
)

const (
	// SumSize is the size of a page's hash, in bytes.
	SumSize = 16
	// MaxHave is how many pages one Have frame tells of at most.
	MaxHave = 4096
)

// AppendHave appends the payload of a Have frame: the hashes of the pages from
// first on, SumSize bytes each, at most MaxHave. None of them end the list.
func AppendHave(dst []byte, first int, sums []byte) ([]byte, error) {
	if first < 0 || first > MaxPage || len(sums)%SumSize != 0 || len(sums) > MaxHave*SumSize {
		return nil, fmt.Errorf("%d bytes of hashes from page %d on in a frame", len(sums), first)
	}
	if len(sums) == 0 {
		return dst, nil
	}
	dst = binary.AppendUvarint(dst, uint64(first))
	return append(dst, sums...), nil
}

// ParseHave decodes the payload of a Have frame. sums points into it; its
// length is a multiple of SumSize, and 0 at the list's end.
func ParseHave(payload []byte) (first int, sums []byte, err error) {
	if len(payload) == 0 {
		return 0, nil, nil
	}
	v, n := binary.Uvarint(payload)
	if n <= 0 || v > MaxPage {
		return 0, nil, fmt.Errorf("%w: hashes from a bad page on", ErrFrame)
	}
	sums = payload[n:]
	if len(sums) == 0 || len(sums)%SumSize != 0 || len(sums) > MaxHave*SumSize {
		return 0, nil, fmt.Errorf("%w: %d bytes of hashes", ErrFrame, len(sums))
	}
	return int(v), sums, nil
}
