package boottest

import (
	"bytes"
	"context"
	"io"
	"os"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/recording"
	"github.com/duet-ft/duet/image/nested"
	"github.com/duet-ft/duet/image/pairlab"
)

// recordFor is how much of the pair's life is recorded.
const recordFor = 3 * time.Second

// record records the protected VM by the API, under load: it stays protected.
func (p *trial) record(t *testing.T) {
	primary := p.protected(t)
	before, err := p.look(primary)
	if err != nil {
		t.Fatal(err)
	}
	size := p.recordTo(t, primary, p.tape)
	after, err := p.look(primary)
	if err != nil || !after.Protected || after.Epoch != before.Epoch {
		t.Errorf("behind the recording: %s, it was %s", describe(after, err), describe(before, nil))
	}
	p.noteDivergences()
	t.Logf("%d bytes recorded", size)
}

// recordTo writes a recording to a file and checks that it has an end.
func (p *trial) recordTo(t *testing.T, host, path string) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, settleTimeout)
	defer cancel()
	stream, err := p.pair.API(host).Record(ctx, pairlab.Guest, recordFor)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := io.Copy(f, stream)
	if err != nil {
		t.Fatalf("behind %d bytes: %v", size, err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	r, err := recording.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.State(func(recording.Ref, recording.Block) error { return nil }); err != nil {
		t.Fatal(err)
	}
	end := theEnd(t, r)
	t.Logf("ends at position %d: %s", end.Position, end.Why)
	// A disk is made of whole sectors.
	if err := f.Truncate((size + 511) &^ 511); err != nil {
		t.Fatal(err)
	}
	return size
}

// theEnd reads a recording's log to its end, which it must have.
func theEnd(t *testing.T, r *recording.Reader) *recording.End {
	t.Helper()
	for {
		if _, _, _, err := r.Log(); err == io.EOF {
			return r.End()
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// shutDown has the guest switch itself off while it is recorded: the recording's end says so.
func (p *trial) shutDown(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, settleTimeout)
	defer cancel()
	stream, err := p.pair.API(p.protected(t)).Record(ctx, pairlab.Guest, settleTimeout)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	r, err := recording.NewReader(stream)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.State(func(recording.Ref, recording.Block) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if err := p.pair.Shutdown(p.ctx); err != nil {
		t.Fatal(err)
	}
	if end := theEnd(t, r); end.Why != "the VM doesn't run here any more" {
		t.Errorf("the recording of a guest that switched itself off ends: %s", end.Why)
	}
}

// replayed replays the recording in a host of its own, when the pair is gone.
func (p *trial) replayed(t *testing.T) {
	t.Helper()
	var log bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), nestedTimeout)
	defer cancel()
	err := nested.Run(ctx, t.TempDir(), nested.Config{
		Kernel: "../kernel/vmlinuz", Package: "../../hvd/playback", Args: []string{"-test.v", "-test.run=^TestReplayFile"},
		Disks: []string{p.tape}, MemoryMiB: nestedMemoryMiB, Core: nestedCore, Log: io.MultiWriter(&log, t.Output()),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := ran(log.String()); err != nil {
		t.Error(err)
	}
}
