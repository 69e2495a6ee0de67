package vmproc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/recording"
)

func newTaping(out io.Writer) *taping {
	return &taping{
		out: out, bell: make(chan struct{}, 1),
		head: recording.Head{VM: "db", Memory: 2 * recording.PageSize, Machine: []byte("{}")},
	}
}

// begin writes what comes before the log.
func (t *taping) begin() error {
	page := make([]byte, recording.PageSize)
	return errors.Join(t.Pages([]int{1}, func(int) []byte { return page }), t.Snapshot(&machine.Snapshot{}, event.Base{Pos: 5}))
}

// TestTaping writes what the engine queued, up to the end.
func TestTaping(t *testing.T) {
	var b bytes.Buffer
	x := newTaping(&b)
	if err := x.begin(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- x.drain(t.Context()) }()
	for range 100 {
		if err := x.Log([]byte("a batch")); err != nil {
			t.Fatal(err)
		}
	}
	x.End(9, 10, "its time is over")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n, end := written(t, &b); n != 700 || end.Position != 9 || end.Why != "its time is over" {
		t.Errorf("%d bytes of log, end %+v", n, end)
	}
}

// written reads a recording to its proper end: the bytes of its log, and the end.
func written(t *testing.T, from io.Reader) (n int, end *recording.End) {
	t.Helper()
	r, err := recording.NewReader(from)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.State(func(recording.Ref, recording.Block) error { return nil }); err != nil {
		t.Fatal(err)
	}
	for {
		_, log, _, err := r.Log()
		if errors.Is(err, io.EOF) {
			return n, r.End()
		}
		if err != nil {
			t.Fatal(err)
		}
		n += len(log)
	}
}

// TestTapingSlowReader: what nobody reads is bounded.
func TestTapingSlowReader(t *testing.T) {
	x := newTaping(io.Discard)
	batch := make([]byte, 1<<20)
	n := 0
	for ; n < 100; n++ {
		if err := x.Log(batch); err != nil {
			break
		}
	}
	if n*len(batch) != maxTape {
		t.Errorf("%d bytes wait", n*len(batch))
	}
}

// TestTapingEnds with the client, and writes what is there now and then.
func TestTapingEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		x := newTaping(&b)
		if err := x.begin(); err != nil {
			t.Fatal(err)
		}
		before := b.Len()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- x.drain(ctx) }()
		if err := x.Log([]byte("a batch")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * tapeFlush)
		synctest.Wait()
		if b.Len() == before {
			t.Error("a small log isn't written in time")
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
}

// TestTapingOutlivesItsGuest: the engine ended the recording before it ended itself, and that end is written.
func TestTapingOutlivesItsGuest(t *testing.T) {
	var b bytes.Buffer
	x := newTaping(&b)
	if err := x.begin(); err != nil {
		t.Fatal(err)
	}
	g := &guest{ended: make(chan struct{})}
	if err := x.Log([]byte("a batch")); err != nil {
		t.Fatal(err)
	}
	x.End(9, 10, "the VM doesn't run here any more")
	close(g.ended)
	if err := x.log(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	if _, end := written(t, &b); end.Why != "the VM doesn't run here any more" {
		t.Errorf("end %+v", end)
	}
	// An engine that ended without a word leaves no end, and nobody waits for one.
	if err := newTaping(io.Discard).log(t.Context(), g); err == nil {
		t.Error("a recording without an end counts as ended")
	}
}

// during calls a function at its next write.
type during struct {
	bytes.Buffer
	do func()
}

func (d *during) Write(b []byte) (int, error) {
	if do := d.do; do != nil {
		d.do = nil
		do()
	}
	return d.Buffer.Write(b)
}

// TestTapingEndsWhileItWrites: the end that comes with the guest's isn't lost, though
// it comes after the queue was taken.
func TestTapingEndsWhileItWrites(t *testing.T) {
	var b during
	x := newTaping(&b)
	if err := x.begin(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	b.do = func() {
		x.End(9, 10, "the VM doesn't run here any more")
		cancel()
	}
	for range 2 { // more than a block
		if err := x.Log(make([]byte, 4<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.drain(ctx); err != nil {
		t.Fatal(err)
	}
	if _, end := written(t, &b.Buffer); end.Why != "the VM doesn't run here any more" {
		t.Errorf("end %+v", end)
	}
}
