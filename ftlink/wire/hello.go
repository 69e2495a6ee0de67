package wire

import (
	"encoding/json"
	"fmt"
)

// MaxName bounds each text in a Hello, in bytes.
const MaxName = 128

// Hello is the first frame each way: who speaks.
type Hello struct {
	Version     int    `json:"version"`        // of the layout
	Host        string `json:"host"`           // name of the sender's host
	VM          string `json:"vm,omitempty"`   // UUID of the VM; empty on the hosts' own link
	Incarnation uint64 `json:"incarnation"`    // of the sending process; see session.Config
	Role        string `json:"role,omitempty"` // the sender's role at this moment
}

// AppendHello appends a Hello frame. A text above MaxName is an error.
func AppendHello(dst []byte, h Hello) ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	payload, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	f := Frame{Type: TypeHello, Payload: payload}
	if err := f.Check(); err != nil {
		return nil, err
	}
	return Append(dst, f), nil
}

// ParseHello returns what a Hello frame says. Fields that a later version adds
// are passed over; whether the version fits is for the caller to say.
func ParseHello(f Frame) (Hello, error) {
	if f.Type != TypeHello {
		return Hello{}, fmt.Errorf("%w: %v where hello was expected", ErrFrame, f.Type)
	}
	var h Hello
	if err := json.Unmarshal(f.Payload, &h); err != nil {
		return Hello{}, fmt.Errorf("%w: hello: %v", ErrFrame, err)
	}
	return h, h.check()
}

func (h Hello) check() error {
	for _, s := range []string{h.Host, h.VM, h.Role} {
		if len(s) > MaxName {
			return fmt.Errorf("%w: hello with a text of %d bytes, limit %d", ErrFrame, len(s), MaxName)
		}
	}
	return nil
}
