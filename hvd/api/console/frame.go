// Package console is a guest's serial console as a stream: what goes over it, and both ends of it.
//
// # Place
//
// hvd/vmproc serves it on a Unix socket beside the VM's others while the guest runs there, hvd/daemon passes it on to
// the world (hvd/api, "Upgrade: console"), and appliance/duet is at the other end. It imports nothing of ours.
//
// Pure: the frames, Typist (the client's input) and Backlog (the server's output). Server is the rim around a Backlog.
//
// # Frames
//
// Numbers are big endian. A frame is its kind, one byte; the length of its body, two bytes; the body, at most MaxBody.
//
//	client  1 Resume  screen u64, offset u64   first, once: what the client has seen; 0, 0: nothing
//	        2 Input   bytes, at most MaxInput
//	server  3 Hello   screen u64, typed u64    first, once
//	        4 Output  offset u64, bytes
//	        5 Taken   typed u64, count u64     count bytes of this client's input are typed
//
// # Output
//
// A screen is what one execution of a guest wrote since it went live, and its bytes have offsets. The server keeps the
// last ones. A client that comes back to the same screen goes on at its offset; another gets what is kept. An offset
// beyond the one that was due says how much was missed.
//
// # Input
//
// The guest's UART has room for a few KiB, and the server types only what fits: a slow guest holds up the server, and
// that the client, which sends at most Window bytes beyond what is typed. How much was ever typed ("typed", from a start
// that no two boots share) is part of the machine's state, so a former secondary knows it as of the position where it
// went live. A Typist that is told so sends again what was lost with the primary, and nothing twice:
//
//	   history    |        pending
//	typed already | sent | waits to be sent
//	              ^ typed
//
// With more than one client at the keyboard this holds while they type at different times.
package console

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	// Protocol is what a request for a console's stream upgrades to.
	Protocol = "console"
	// MaxBody is the length of the longest body of a frame, in bytes.
	MaxBody = 8 << 10
	// MaxInput is how many bytes of input a frame has at most.
	MaxInput = 1 << 10
	// maxOutput is the same for output.
	maxOutput = MaxBody - 8
	// Window is how many bytes of input are on their way at most.
	Window = 4 << 10
)

// Kind is a frame's.
type Kind uint8

// The kinds of frames.
const (
	Resume Kind = iota + 1
	Input
	Hello
	Output
	Taken
)

// String is the kind's name.
func (k Kind) String() string {
	if k < Resume || k > Taken {
		return fmt.Sprintf("kind %d", uint8(k))
	}
	return [...]string{"resume", "input", "hello", "output", "taken"}[k-Resume]
}

// numbers is how many numbers a frame of this kind begins with.
func (k Kind) numbers() int {
	switch k {
	case Input:
		return 0
	case Output:
		return 1
	}
	return 2
}

// Frame is one of them. A and B are its numbers in their order, where its kind has some.
type Frame struct {
	Kind Kind
	A, B uint64
	Data []byte // of Input and Output, at least one byte
}

// ErrFrame says that the other end doesn't speak this protocol.
var ErrFrame = errors.New("not a frame of a console's stream")

// Append appends the frame to b. Data must fit.
func (f Frame) Append(b []byte) []byte {
	n := 8*f.Kind.numbers() + len(f.Data)
	if n > MaxBody {
		panic("console: a frame that is too long")
	}
	b = append(b, byte(f.Kind), byte(n>>8), byte(n))
	for _, v := range []uint64{f.A, f.B}[:f.Kind.numbers()] {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return append(b, f.Data...)
}

// Read reads a frame; its data is the caller's. It reads no byte beyond the frame. The stream's end between two frames
// is io.EOF.
func Read(r io.Reader) (Frame, error) {
	var head [3]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Frame{}, err
	}
	f, n := Frame{Kind: Kind(head[0])}, int(head[1])<<8|int(head[2])
	least := 8 * f.Kind.numbers()
	fits := n == least
	if f.Kind == Input || f.Kind == Output {
		fits = n > least && n <= MaxBody && (f.Kind == Output || n <= MaxInput)
	}
	if f.Kind < Resume || f.Kind > Taken || !fits {
		return Frame{}, fmt.Errorf("%w: %v of %d bytes", ErrFrame, f.Kind, n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	for _, v := range []*uint64{&f.A, &f.B}[:f.Kind.numbers()] {
		*v, body = binary.BigEndian.Uint64(body), body[8:]
	}
	if len(body) > 0 {
		f.Data = body
	}
	return f, nil
}
