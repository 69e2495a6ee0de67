package virtio

import "github.com/duet-ft/duet/hvd/mem"

// Bytes is the total length of segments.
func Bytes(segs []Segment) int {
	n := 0
	for _, s := range segs {
		n += int(s.Len)
	}
	return n
}

// Gather copies the bytes of segments out of guest memory.
func Gather(m *mem.Memory, segs []Segment) ([]byte, error) {
	p := make([]byte, 0, Bytes(segs))
	for _, s := range segs {
		v, err := m.View(s.Addr, uint64(s.Len))
		if err != nil {
			return nil, err
		}
		p = append(p, v...)
	}
	return p, nil
}

// Scatter writes p to segments, as much as fits, and returns how much that is.
func Scatter(m *mem.Memory, segs []Segment, p []byte) (int, error) {
	n := 0
	for _, s := range segs {
		if n == len(p) {
			break
		}
		k := min(len(p)-n, int(s.Len))
		if err := m.Write(s.Addr, p[n:n+k]); err != nil {
			return n, err
		}
		n += k
	}
	return n, nil
}

// CutLast takes the last byte off segments: rest is what is before it, at is
// its address. ok is false if there is none.
func CutLast(segs []Segment) (rest []Segment, at uint64, ok bool) {
	if len(segs) == 0 {
		return nil, 0, false
	}
	last := segs[len(segs)-1]
	last.Len--
	rest = append(rest, segs[:len(segs)-1]...)
	if last.Len > 0 {
		rest = append(rest, last)
	}
	return rest, last.Addr + uint64(last.Len), true
}

// CheckSegments says whether all segments lie in guest memory, for restored
// state.
func CheckSegments(m *mem.Memory, segs []Segment) error {
	for _, s := range segs {
		if _, err := m.View(s.Addr, uint64(s.Len)); err != nil {
			return err
		}
	}
	return nil
}
