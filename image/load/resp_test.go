package load

import (
	"errors"
	"io"
	"strings"
	"testing"
)

func TestReplies(t *testing.T) {
	for in, want := range map[string]reply{
		"+OK\r\n":              {kind: '+', text: "OK"},
		"-ERR no\r\n":          {kind: '-', text: "ERR no"},
		":-12\r\n":             {kind: ':', number: -12},
		"$-1\r\n":              {kind: '$', null: true},
		"$0\r\n\r\n":           {kind: '$'},
		"$6\r\na\r\nb\r\n\r\n": {kind: '$', text: "a\r\nb\r\n"},
	} {
		got, err := readReply(newReplyReader(strings.NewReader(in)))
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v", in, got, err)
		}
	}
	for _, in := range []string{
		"\r\n", "OK\r\n", "*1\r\n", "+OK\n", ":x\r\n", ":\r\n", "$x\r\n", "$-2\r\n", "$99999999999\r\n", "$65537\r\n",
		"$2\r\nabc\r\n", "+" + strings.Repeat("a", maxLine) + "\r\n", "+" + strings.Repeat("a", 10000),
	} {
		if got, err := readReply(newReplyReader(strings.NewReader(in))); err == nil {
			t.Errorf("%.40q was accepted: %+v", in, got)
		}
	}
	if _, err := readReply(newReplyReader(strings.NewReader(""))); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	for _, in := range []string{"+O", "$3\r\nab", "$3\r\n"} {
		if _, err := readReply(newReplyReader(strings.NewReader(in))); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut short after %q: %v", in, err)
		}
	}
}

func TestCommand(t *testing.T) {
	got := string(appendCommand(nil, "SET", "k", "a b"))
	if want := "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$3\r\na b\r\n"; got != want {
		t.Errorf("got %q", got)
	}
}

func FuzzReply(f *testing.F) {
	for _, s := range []string{"+OK\r\n", "-ERR\r\n:1\r\n", "$3\r\nabc\r\n", "$-1\r\n", "$70000\r\n", "*1\r\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		r := newReplyReader(strings.NewReader(in))
		for {
			got, err := readReply(r)
			if err != nil {
				return
			}
			if len(got.text) > maxBulk || got.null && got.text != "" {
				t.Errorf("%q was read as %+v", in, got)
			}
		}
	})
}
