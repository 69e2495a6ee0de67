package pairing

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/duet-ft/duet/ftlink/pairing/spake2"
)

// MaxPayload is the largest payload of a frame, in bytes.
const MaxPayload = 4096

const (
	version     = 1
	frameHeader = 3
	helloMin    = 1 + spake2.ShareSize + 1
	maxRefusal  = MaxName + 192
)

// Type is the type of a frame.
type Type uint8

// The types; the package comment has their payloads.
const (
	TypeHello Type = 1 + iota
	TypeConfirm
	TypeSettings
	TypeRefusal
)

// ErrFrame says that the other side doesn't speak this protocol.
var ErrFrame = errors.New("not a message of the pairing protocol")

// Frame is one message.
type Frame struct {
	Type    Type
	Payload []byte
}

// Append appends the frame's bytes to dst.
func (f Frame) Append(dst []byte) []byte {
	dst = append(dst, byte(f.Type))
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(f.Payload)))
	return append(dst, f.Payload...)
}

// ReadFrame reads one frame. What it reads of a stranger's is bounded by MaxPayload.
func ReadFrame(r io.Reader) (Frame, error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Frame{}, err
	}
	f := Frame{Type: Type(head[0])}
	n := int(binary.BigEndian.Uint16(head[1:]))
	if err := f.check(n); err != nil {
		return Frame{}, err
	}
	f.Payload = make([]byte, n)
	if _, err := io.ReadFull(r, f.Payload); err != nil {
		return Frame{}, err
	}
	return f, nil
}

// check tells whether a payload of n bytes fits the type.
func (f Frame) check(n int) error {
	ok := false
	switch f.Type {
	case TypeHello:
		ok = n >= helloMin && n < helloMin+MaxName
	case TypeConfirm:
		ok = n == spake2.ConfirmSize
	case TypeSettings:
		ok = n <= MaxPayload
	case TypeRefusal:
		ok = n <= maxRefusal
	}
	if !ok {
		return fmt.Errorf("%w: type %d with %d bytes", ErrFrame, f.Type, n)
	}
	return nil
}

// Refusal says why a run ends here, in a line for people.
func Refusal(line string) Frame { return Frame{TypeRefusal, []byte(line)[:min(len(line), maxRefusal)]} }

func hello(name string, share []byte) Frame {
	p := append([]byte{version}, share...)
	return Frame{TypeHello, append(p, name...)}
}

// parseHello takes a payload that check has let through.
func parseHello(p []byte) (name string, share []byte, err error) {
	if p[0] != version {
		return "", nil, fmt.Errorf("the other host speaks version %d of the pairing protocol and this one version %d: give both the same image", p[0], version)
	}
	share, name = p[1:1+spake2.ShareSize], string(p[1+spake2.ShareSize:])
	if !IsName(name) {
		return "", nil, fmt.Errorf("%w: the name %.70q", ErrFrame, name)
	}
	return name, share, nil
}

// IsName tells whether s can be a host's name: one DNS label in lower case (RFC 1123, section 2.1).
func IsName(s string) bool {
	if s == "" || len(s) > MaxName || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return false
		}
	}
	return true
}
