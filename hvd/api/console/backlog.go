package console

// MaxBacklog is how much of a console's output is kept, in bytes.
const MaxBacklog = 64 << 10

// Backlog is the last output of a screen. It is pure.
type Backlog struct {
	screen uint64
	end    uint64 // offset behind the last byte
	buf    []byte
}

// NewBacklog begins a screen, whose number isn't 0 and differs from others'.
func NewBacklog(screen uint64) *Backlog { return &Backlog{screen: screen} }

// Append adds output.
func (b *Backlog) Append(p []byte) {
	b.buf = append(b.buf, p...)
	b.end += uint64(len(p))
	if n := len(b.buf); n > 2*MaxBacklog {
		b.buf = append([]byte(nil), b.buf[n-MaxBacklog:]...)
	}
}

// Tail is what is kept.
func (b *Backlog) Tail() []byte {
	return append([]byte(nil), b.buf[max(0, len(b.buf)-MaxBacklog):]...)
}

// first is the offset of the first byte that is kept.
func (b *Backlog) first() uint64 { return b.end - uint64(min(len(b.buf), MaxBacklog)) }

// Start is where a client's output begins that has seen a screen up to an offset.
func (b *Backlog) Start(screen, offset uint64) uint64 {
	if screen != b.screen || offset > b.end {
		return b.first()
	}
	return offset
}

// Next returns the output from an offset on, as much as one frame has, and where it really begins: later, if what was
// asked for is kept no more. It is empty at the end.
func (b *Backlog) Next(offset uint64) (from uint64, p []byte) {
	from = min(max(offset, b.first()), b.end)
	rest := b.buf[uint64(len(b.buf))-(b.end-from):]
	return from, append([]byte(nil), rest[:min(len(rest), maxOutput)]...)
}
