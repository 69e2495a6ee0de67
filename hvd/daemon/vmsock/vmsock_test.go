package vmsock

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// answering is a stream that holds an answer, and takes any request.
type answering struct {
	io.Reader
	got bytes.Buffer
}

func (a *answering) Write(p []byte) (int, error) { return a.got.Write(p) }

func TestConnect(t *testing.T) {
	for _, c := range []struct{ answer, rest, err string }{
		{"OK 1073741824\nhello", "hello", ""},
		{"OK \n", "", ""},
		{"", "", "nothing listens on vsock port 52 of the guest"},
		{"OK 1", "", "nothing listens on vsock port 52 of the guest"},
		{"ERROR\n", "", `the VM's process answered CONNECT with "ERROR"`},
		{strings.Repeat("O", 1000), "", "the VM's process answered CONNECT with a line that is too long"},
	} {
		a := &answering{Reader: strings.NewReader(c.answer)}
		err := connect(a, 52)
		if a.got.String() != "CONNECT 52\n" {
			t.Errorf("it wrote %q", a.got.String())
		}
		if c.err != "" {
			if err == nil || err.Error() != c.err {
				t.Errorf("answer %.20q: error %v, want %s", c.answer, err, c.err)
			}
			continue
		}
		rest, _ := io.ReadAll(a)
		if err != nil || string(rest) != c.rest {
			t.Errorf("answer %.20q: %v, then %q, want %q", c.answer, err, rest, c.rest)
		}
	}
}

func TestDown(t *testing.T) {
	c := New(t.TempDir())
	ctx := context.Background()
	if _, err := c.VM(ctx); !errors.Is(err, ErrDown) || err.Error() != ErrDown.Error() {
		t.Errorf("VM without a process: %v", err)
	}
	if _, err := c.Vsock(ctx, 1); !errors.Is(err, ErrDown) || err.Error() != ErrDown.Error() {
		t.Errorf("Vsock without a process: %v", err)
	}
}

// TestSilent has a process that accepts and never answers.
func TestSilent(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{APIName, VsockName} {
		l, err := net.Listen("unix", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	c := New(dir)
	if _, err := c.VM(ctx); err == nil || err.Error() != "the VM's process doesn't answer in time" {
		t.Errorf("VM: %v", err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Vsock(ctx, 9); err == nil || err.Error() != "no answer from port 9 of the guest in time" {
		t.Errorf("Vsock: %v", err)
	}
}

func FuzzConnect(f *testing.F) {
	f.Add([]byte("OK 1\nrest"))
	f.Add([]byte("\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		r := bytes.NewReader(answer)
		err := connect(&answering{Reader: r}, 1)
		line, rest, whole := bytes.Cut(answer, []byte("\n"))
		if ok := whole && len(line) <= maxAnswer && bytes.HasPrefix(line, []byte("OK ")); ok != (err == nil) {
			t.Fatalf("answer %q: %v", answer, err)
		}
		if err == nil && r.Len() != len(rest) {
			t.Fatalf("answer %q: %d bytes are left of %d", answer, r.Len(), len(rest))
		}
	})
}
