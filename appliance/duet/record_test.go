package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/recording"
)

// tape is a small recording.
func tape(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := recording.NewWriter(&b, recording.Head{VM: "db", Memory: recording.PageSize, Machine: []byte("{}")})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		w.State(event.Base{Pos: 1}, []byte("{}")), w.Log([]byte("log")), w.End(recording.End{Position: 9, Why: "its time is over"}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func TestRecord(t *testing.T) {
	h := &host{tape: tape(t)}
	flags := serve(t, h).flags()
	path := filepath.Join(t.TempDir(), "rec")
	var out bytes.Buffer
	do := func(args ...string) error {
		return run(context.Background(), append(flags, append([]string{"vm", "record", "db"}, args...)...), nil, &out, io.Discard)
	}
	if err := do("--out", path, "--for", "3s"); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, h.tape) {
		t.Errorf("the file has %d bytes, want %d (%v)", len(got), len(h.tape), err)
	}
	if !strings.Contains(out.String(), "up to position 9: its time is over") {
		t.Errorf("%q", out.String())
	}
	if h.asked[0] != "stream db/recording?for=3s" {
		t.Errorf("asked for %q", h.asked)
	}
	if err := do("--out", path, "--for", "2m"); err == nil || !strings.Contains(err.Error(), "has no end") && !strings.Contains(err.Error(), "no end") {
		t.Errorf("a recording that was cut: %v", err)
	}
	var unfinished bytes.Buffer
	if w, err := recording.NewWriter(&unfinished, recording.Head{VM: "db", Memory: recording.PageSize, Machine: []byte("{}")}); err != nil {
		t.Fatal(err)
	} else if err := w.End(recording.End{Why: "the VM went away"}); err != nil {
		t.Fatal(err)
	}
	h.tape = unfinished.Bytes()
	if err := do("--out", path, "--for", "3s"); err == nil || !strings.Contains(err.Error(), "the VM went away") || strings.Contains(err.Error(), "no end") {
		t.Errorf("a recording without the machine's state: %v", err)
	}
	for _, bad := range [][]string{{}, {"--for", "1s"}, {"--out", path, "--for", "-1s"}, {"--out", path, "more"}} {
		if err := do(bad...); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
