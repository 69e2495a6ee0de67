package load

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
)

const (
	// maxLine is the longest line of a reply, in bytes with its end.
	maxLine = 512
	// maxBulk is the longest bulk string of a reply, in bytes.
	maxBulk = 64 << 10
)

// reply is one RESP2 reply. kind is its first byte.
type reply struct {
	kind   byte
	text   string // of '+', '-' and '$'
	number int64  // of ':'
	null   bool   // '$' of length -1
}

// err is the error that the server replied, if it did.
func (r reply) err() error {
	if r.kind == '-' {
		return fmt.Errorf("the server answered: %s", r.text)
	}
	return nil
}

// appendCommand encodes a request.
func appendCommand(b []byte, args ...string) []byte {
	b = fmt.Appendf(b, "*%d\r\n", len(args))
	for _, a := range args {
		b = fmt.Appendf(b, "$%d\r\n%s\r\n", len(a), a)
	}
	return b
}

// newReplyReader makes a reader for readReply, which needs a line to fit into its buffer.
func newReplyReader(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, max(maxLine, 4096)) }

// readReply reads one reply.
func readReply(r *bufio.Reader) (reply, error) {
	line, err := readLine(r)
	if err != nil {
		return reply{}, err
	}
	if len(line) == 0 {
		return reply{}, errors.New("not a Redis reply: an empty line")
	}
	kind, rest := line[0], string(line[1:])
	switch kind {
	case '+', '-':
		return reply{kind: kind, text: rest}, nil
	case ':':
		n, err := strconv.ParseInt(rest, 10, 64)
		if err != nil {
			return reply{}, fmt.Errorf("not a Redis integer: %.40q", rest)
		}
		return reply{kind: kind, number: n}, nil
	case '$':
		return readBulk(r, rest)
	}
	return reply{}, fmt.Errorf("not a Redis reply that was asked for: %.40q", line)
}

func readBulk(r *bufio.Reader, length string) (reply, error) {
	n, err := strconv.Atoi(length)
	if err != nil || n < -1 || n > maxBulk {
		return reply{}, fmt.Errorf("not the length of a Redis string: %.40q (at most %d)", length, maxBulk)
	}
	if n == -1 {
		return reply{kind: '$', null: true}, nil
	}
	b := make([]byte, n+2)
	if _, err := io.ReadFull(r, b); err != nil {
		return reply{}, unexpected(err)
	}
	if !bytes.HasSuffix(b, []byte("\r\n")) {
		return reply{}, errors.New("a Redis string without its end")
	}
	return reply{kind: '$', text: string(b[:n])}, nil
}

// readLine reads a line and returns it without its end; it is valid until the next read.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	switch {
	case err == nil && len(line) <= maxLine && bytes.HasSuffix(line, []byte("\r\n")):
		return line[:len(line)-2], nil
	case err == nil || errors.Is(err, bufio.ErrBufferFull):
		return nil, fmt.Errorf("not a Redis reply: %.40q", line)
	case len(line) > 0:
		return nil, unexpected(err)
	}
	return nil, err
}

// unexpected tells an end of the stream within a reply from one before it.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
