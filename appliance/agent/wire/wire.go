// Package wire is the guest agent's language: requests and replies, one JSON
// object a line, in the style of the QEMU guest agent.
//
// # Place
//
// appliance/agent speaks it inside the guest, over vsock port 1024; hvd, the
// command line and the demo speak it from outside. It imports nothing of ours,
// and does no I/O but on what it is given.
//
// # Format
//
// One request, then one reply, each a line of at most 64 KiB that ends with a
// line feed:
//
//	{"execute":"ping"}
//	{"execute":"info"}
//	{"execute":"shutdown","arguments":{"mode":"poweroff"}}
//
//	{"return":{}}
//	{"return":{"boot_id":"...","uptime":12.34,"hostname":"...","kernel":"...",
//	           "addresses":[{"interface":"eth0","address":"192.0.2.7/24"}]}}
//	{"error":{"class":"CommandNotFound","desc":"..."}}
//
// A field or command that isn't known is an error, so that a newer client finds
// out. A connection serves any number of requests, one after the other; a line
// that is too long ends it.
package wire

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

const (
	// Port is the agent's vsock port.
	Port = 1024
	// MaxLine is the length of the longest line, in bytes, its line feed
	// included.
	MaxLine = 64 << 10
)

// Commands.
const (
	Ping        = "ping"     // no arguments; returns {}
	Information = "info"     // no arguments; returns Info
	Shutdown    = "shutdown" // takes ShutdownArguments; returns {}, then shuts down
)

// Modes of Shutdown.
const (
	PowerOff = "poweroff"
	Reboot   = "reboot"
)

// Classes of errors.
const (
	ClassCommandNotFound = "CommandNotFound" // "execute" names no command
	ClassBadRequest      = "BadRequest"      // the line or the arguments can't be understood
	ClassGeneric         = "GenericError"    // the guest couldn't do it
)

// ErrTooLong says that a line is longer than MaxLine.
var ErrTooLong = fmt.Errorf("line longer than %d bytes", MaxLine)

// Request is one command.
type Request struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments,omitempty"`
}

// Reply answers a request: one of the two fields is set.
type Reply struct {
	Return json.RawMessage `json:"return,omitempty"`
	Error  *Error          `json:"error,omitempty"`
}

// Error is what the agent says when it can't do what it was asked for.
type Error struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

// Error implements error.
func (e *Error) Error() string { return "guest agent: " + e.Desc }

// Info is what a guest tells about itself.
type Info struct {
	BootID    string    `json:"boot_id"` // a UUID that is drawn at each boot
	Uptime    float64   `json:"uptime"`  // seconds since the kernel started
	Hostname  string    `json:"hostname"`
	Kernel    string    `json:"kernel"` // release, as uname -r prints it
	Addresses []Address `json:"addresses"`
}

// Address is an IP address of one of the guest's interfaces; loopback isn't
// listed.
type Address struct {
	Interface string `json:"interface"`
	Address   string `json:"address"` // with the length of its prefix: 192.0.2.7/24
}

// ShutdownArguments say how to shut down.
type ShutdownArguments struct {
	Mode string `json:"mode"` // PowerOff or Reboot
}

// ReadLine reads one line, without its line feed. The end of the stream is
// io.EOF before a line's first byte and io.ErrUnexpectedEOF within it. r's
// buffer must hold MaxLine bytes, as NewReader's does; the line is valid until
// the next call.
func ReadLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	switch {
	case err == nil:
		return bytes.TrimSuffix(line[:len(line)-1], []byte("\r")), nil
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, ErrTooLong
	case err == io.EOF && len(line) > 0:
		return nil, io.ErrUnexpectedEOF
	}
	return nil, err
}

// NewReader makes a reader for ReadLine.
func NewReader(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, MaxLine) }

// ParseRequest reads a request. The error, if any, is what to answer.
func ParseRequest(line []byte) (Request, *Error) {
	var r Request
	if err := strict(line, &r); err != nil {
		return r, &Error{ClassBadRequest, "not a request: " + err.Error()}
	}
	if r.Execute == "" {
		return r, &Error{ClassBadRequest, `not a request: there is no "execute"`}
	}
	return r, nil
}

// ParseArguments reads a request's arguments into args; nil args means that the
// command takes none.
func ParseArguments(r Request, args any) *Error {
	raw := r.Arguments
	if len(raw) == 0 || string(raw) == "null" {
		raw = []byte("{}")
	}
	if args == nil {
		args = &struct{}{}
	}
	if err := strict(raw, args); err != nil {
		return &Error{ClassBadRequest, fmt.Sprintf("arguments of %s: %v", r.Execute, err)}
	}
	return nil
}

// strict decodes one JSON value that fills b and has no unknown fields.
func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("more than one JSON value")
	}
	return nil
}

// FormatReply makes a reply's line of a value, or of an error if there is one.
func FormatReply(value any, failed *Error) []byte {
	line, err := format(value, failed)
	if err != nil {
		line, _ = format(nil, &Error{ClassGeneric, "reply: " + err.Error()})
	}
	return line
}

func format(value any, failed *Error) ([]byte, error) {
	reply := Reply{Error: failed}
	if failed == nil {
		var err error
		if value == nil {
			value = struct{}{}
		}
		if reply.Return, err = json.Marshal(value); err != nil {
			return nil, err
		}
	}
	line, err := json.Marshal(reply)
	if err == nil && len(line) >= MaxLine {
		err = ErrTooLong
	}
	return append(line, '\n'), err
}

// ParseReply reads a reply's value into out, which may be nil. What the agent
// answers with an error is returned as *Error. Unknown fields of the value are
// let pass: they come from a newer agent.
func ParseReply(line []byte, out any) error {
	var r Reply
	if err := json.Unmarshal(line, &r); err != nil {
		return fmt.Errorf("guest agent: not a reply: %w", err)
	}
	switch {
	case r.Error != nil:
		return r.Error
	case r.Return == nil:
		return errors.New("guest agent: a reply with neither a value nor an error")
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(r.Return, out); err != nil {
		return fmt.Errorf("guest agent: unexpected reply: %w", err)
	}
	return nil
}

// Call sends a command on conn and waits for its reply, whose value goes to
// out. args and out may be nil. conn must not be used by others meanwhile;
// deadlines are the caller's.
func Call(conn io.ReadWriter, command string, args, out any) error {
	r := Request{Execute: command}
	if args != nil {
		var err error
		if r.Arguments, err = json.Marshal(args); err != nil {
			return err
		}
	}
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if len(line) >= MaxLine {
		return ErrTooLong
	}
	if _, err := conn.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("guest agent: %w", err)
	}
	reply, err := ReadLine(NewReader(conn))
	if err != nil {
		return fmt.Errorf("guest agent: no reply to %s: %w", command, err)
	}
	return ParseReply(reply, out)
}
