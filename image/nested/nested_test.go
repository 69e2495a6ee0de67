package nested

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/duet-ft/duet/image/lab/transcript"
)

func TestLines(t *testing.T) {
	var got bytes.Buffer
	w := &lineWriter{to: &got}
	for _, part := range []string{"one\r\ntw", "o\r", "\n\nthr"} {
		if _, err := io.WriteString(w, part); err != nil {
			t.Fatal(err)
		}
	}
	w.note("a note")
	if _, err := io.WriteString(w, "ee\r\n"); err != nil {
		t.Fatal(err)
	}
	if want := "one\ntwo\n\na note\nthree\n"; got.String() != want {
		t.Errorf("got %q, want %q", got.String(), want)
	}
	_, _ = w.Write(bytes.Repeat([]byte("x"), maxLine+1))
	if len(w.partial) != 0 {
		t.Errorf("%d bytes of a line without an end are kept", len(w.partial))
	}
}

func TestVerdict(t *testing.T) {
	late, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("after a minute"))
	for _, c := range []struct {
		ctx     context.Context
		printed string
		want    string // of the error; empty: none
	}{
		{context.Background(), "PASS\r\nNESTED EXIT 0\r\n", ""},
		{late, "PASS\nNESTED EXIT 0\n", ""},
		{context.Background(), "NESTED EXIT 2\n", "status 2"},
		{late, "", "after a minute"},
		{context.Background(), "Kernel panic\n", "without a result; it said at last:\nKernel panic"},
	} {
		console := transcript.New()
		_, _ = io.WriteString(console, c.printed)
		err := verdict(c.ctx, console, nil)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.printed, err, c.want)
		}
	}
}
