package server

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/api"
)

// broken is a stream that breaks off.
type broken struct{ io.Reader }

func (b broken) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// TestRecording streams what the VM's process sends, and an end that isn't one
// is none for the client either.
func TestRecording(t *testing.T) {
	f := &fake{}
	addr, key := serve(t, f, token)
	c := api.Dial(api.Config{Address: addr, Token: token, Fingerprint: api.Fingerprint(public(key))})
	defer c.Close()
	if _, err := c.Record(deadline(t), "db", time.Second); err == nil || !strings.Contains(err.Error(), "not now") {
		t.Errorf("a refusal: %v", err)
	}
	if _, err := c.Record(deadline(t), "other", time.Second); err == nil || !strings.Contains(err.Error(), "no VM") {
		t.Errorf("an unknown VM: %v", err)
	}
	want := bytes.Repeat([]byte("recording "), 100<<10)
	for _, good := range []bool{true, false} {
		f.stream = io.NopCloser(bytes.NewReader(want))
		if !good {
			f.stream = io.NopCloser(broken{bytes.NewReader(want)})
		}
		s, err := c.Record(deadline(t), "db", time.Second)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(s)
		s.Close()
		if (err == nil) != good || good && !bytes.Equal(got, want) {
			t.Errorf("good %t: %d bytes, %v", good, len(got), err)
		}
	}
}
