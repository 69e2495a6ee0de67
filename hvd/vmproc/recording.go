package vmproc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/recording"
	"github.com/duet-ft/duet/hvd/vm"
)

const (
	// maxTape bounds the log that waits for whoever reads a recording, in bytes.
	maxTape = 32 << 20
	// tapeFlush is how long the log waits for its block to become full.
	tapeFlush = 500 * time.Millisecond
	// tapeWrite is how long a write may take: a client that is stuck ends the
	// recording.
	tapeWrite = 30 * time.Second
	// tapeEnd is how long a process whose guest is gone waits for recordings to be
	// sent to their end.
	tapeEnd = 2 * time.Second
)

// errGone is why a recording ends with its guest.
var errGone = errors.New("the VM doesn't run on this host any more")

// taping is one recording on its way to a client. The engine puts the log into
// the queue, from its loop; the client's goroutine writes it.
type taping struct {
	out   io.Writer
	head  recording.Head
	w     *recording.Writer // nil until there is something to write: a refusal goes first
	bell  chan struct{}
	mu    sync.Mutex
	queue [][]byte
	bytes int
	end   *recording.End
}

var _ vm.TapeSink = (*taping)(nil)

// Pages writes memory; vm.Sink.
func (t *taping) Pages(pages []int, page func(int) []byte) (err error) {
	if t.w == nil {
		if t.w, err = recording.NewWriter(t.out, t.head); err != nil {
			return err
		}
	}
	return t.w.Pages(pages, page)
}

// Snapshot writes the machine's rest; vm.Sink.
func (t *taping) Snapshot(s *machine.Snapshot, base event.Base) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return t.w.State(base, b)
}

// Log queues a batch; vm.TapeSink.
func (t *taping) Log(batch []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.bytes+len(batch) > maxTape {
		return fmt.Errorf("whoever reads it is too slow: %d MiB of the log wait", t.bytes>>20)
	}
	t.queue = append(t.queue, batch)
	t.bytes += len(batch)
	t.ring()
	return nil
}

// End notes how the recording ended; vm.TapeSink.
func (t *taping) End(position, fingerprint uint64, why string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end = &recording.End{Position: position, Fingerprint: fingerprint, Why: why}
	t.ring()
}

func (t *taping) ring() {
	select {
	case t.bell <- struct{}{}:
	default:
	}
}

func (t *taping) take() ([][]byte, *recording.End) {
	t.mu.Lock()
	defer t.mu.Unlock()
	q := t.queue
	t.queue, t.bytes = nil, 0
	return q, t.end
}

// drain writes the log until the recording's end is written, or ctx ends.
func (t *taping) drain(ctx context.Context) error {
	ticker := time.NewTicker(tapeFlush)
	defer ticker.Stop()
	for {
		idle := false
		select {
		case <-ctx.Done():
		case <-t.bell:
		case <-ticker.C:
			idle = true
		}
		over := ctx.Err() // before the queue is taken: an end that came first is in it
		queue, end := t.take()
		for _, b := range queue {
			if err := t.w.Log(b); err != nil {
				return err
			}
		}
		if end != nil {
			return t.w.End(*end)
		}
		if over != nil {
			return over
		}
		if idle {
			if err := t.w.Flush(); err != nil {
				return err
			}
		}
	}
}

// deadlined is an answer's body; each write has a time limit of its own, and goes
// out at once.
type deadlined struct {
	http.ResponseWriter
	control *http.ResponseController
	begun   bool
}

func (d *deadlined) Write(b []byte) (int, error) {
	d.begun = true
	if err := d.control.SetWriteDeadline(time.Now().Add(tapeWrite)); err != nil {
		return 0, err
	}
	n, err := d.ResponseWriter.Write(b)
	if err == nil {
		err = d.control.Flush()
	}
	return n, err
}

// serveRecording records the running guest for the time that is asked for, or
// until the client goes away.
func (p *Process) serveRecording(w http.ResponseWriter, r *http.Request) {
	length, err := time.ParseDuration(r.URL.Query().Get("for"))
	if err != nil || length <= 0 || length > api.MaxRecording {
		refuse(w, http.StatusBadRequest, fmt.Sprintf("a recording takes more than 0 and at most %v", api.MaxRecording))
		return
	}
	g := p.here()
	if g == nil {
		refuse(w, http.StatusConflict, fmt.Sprintf("VM %q doesn't run on this host", p.def.Name))
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	body := &deadlined{ResponseWriter: w, control: http.NewResponseController(w)}
	err = p.tape(r.Context(), g, body, length)
	switch {
	case err == nil:
	case !body.begun:
		refuse(w, http.StatusConflict, fmt.Sprintf("VM %q can't be recorded: %v", p.def.Name, err))
	default:
		if r.Context().Err() == nil {
			p.say("recording: " + err.Error())
		}
		// Without an end the client knows that it was cut; the connection says
		// so, too.
		panic(http.ErrAbortHandler)
	}
}

// tape writes a recording to body. One that has begun gets an end whatever
// happens to the guest, as long as its reader is there.
func (p *Process) tape(ctx context.Context, g *guest, body *deadlined, length time.Duration) error {
	cfg := g.made
	cfg.Memory = nil // its content goes by itself
	made, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	t := &taping{out: body, bell: make(chan struct{}, 1), head: recording.Head{
		VM: p.def.Name, Host: p.host.Name, Image: p.own.Image, CPU: p.own.CPU, Leaves: p.own.Leaves,
		Started: time.Now().UTC(), Memory: g.m.Memory.Size(), Machine: made,
	}}
	stats, err := t.state(ctx, g)
	if err != nil {
		if t.w == nil || ctx.Err() != nil {
			return err
		}
		p.say("recording: " + err.Error())
		return t.w.End(recording.End{Why: err.Error()})
	}
	p.say(fmt.Sprintf("recording: %d pages in %.0f ms, the guest stood still for %.1f ms", stats.Pages, ms(stats.Total), ms(stats.Pause)))
	timer := time.AfterFunc(length, func() { _ = g.engine.EndTape(ctx, t, "its time is over") })
	defer timer.Stop()
	if err := t.log(ctx, g); err != nil {
		// The client's context may be at its end, and the engine must know.
		ctx, cancel := context.WithTimeout(g.ctx, tapeWrite)
		defer cancel()
		return errors.Join(err, g.engine.EndTape(ctx, t, "its reader is gone"))
	}
	return nil
}

// state writes the guest's state.
func (t *taping) state(ctx context.Context, g *guest) (vm.SeedStats, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(g.ctx, func() { cancel(errGone) })() // a guest that has ended answers nobody
	stats, err := g.engine.Tape(ctx, t)
	if err != nil && context.Cause(ctx) == errGone {
		err = errGone
	}
	return stats, err
}

// log writes the guest's log. An engine that ends has ended the recording before.
func (t *taping) log(ctx context.Context, g *guest) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-g.ended:
			cancel(errGone)
		case <-ctx.Done():
		}
	}()
	return t.drain(ctx)
}
