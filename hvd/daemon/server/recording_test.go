package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
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

// slow is a stream that takes its time.
type slow struct{ left int }

func (s *slow) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	s.left--
	<-time.After(readTimeoutOfTest / 2)
	p[0] = 'x'
	return 1, nil
}

const readTimeoutOfTest = 100 * time.Millisecond

// TestRecordingLasts longer than a request may take to be read.
func TestRecordingLasts(t *testing.T) {
	f := &contextual{fake: &fake{stream: io.NopCloser(&slow{left: 8})}}
	s := httptest.NewUnstartedServer(Handler(Config{Backend: f, Log: func(line string) { t.Log(line) }}))
	s.Config.ReadTimeout = readTimeoutOfTest
	s.Start()
	defer s.Close()
	a, err := http.Get(s.URL + "/v1/vms/db/recording?for=1s")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	if b, err := io.ReadAll(a.Body); err != nil || string(b) != "xxxxxxxx" {
		t.Errorf("%q, %v", b, err)
	}
	if f.early {
		t.Error("the request's context ended early")
	}
}

// contextual is a backend whose stream ends with the request's context, as a VM's
// process makes it.
type contextual struct {
	*fake
	ctx   context.Context
	early bool
}

func (c *contextual) Stream(ctx context.Context, name, path string) (*http.Response, error) {
	c.ctx = ctx
	a, err := c.fake.Stream(ctx, name, path)
	if err == nil {
		a.Body = io.NopCloser(&until{c, a.Body})
	}
	return a, err
}

type until struct {
	c *contextual
	r io.Reader
}

func (u *until) Read(p []byte) (int, error) {
	if err := u.c.ctx.Err(); err != nil {
		u.c.early = true
		return 0, err
	}
	return u.r.Read(p)
}
