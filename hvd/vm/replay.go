package vm

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/machine"
)

// maxFeed bounds the log that waits to be executed, in bytes.
const maxFeed = 256 << 20

// ErrBehind says that a secondary has too much log waiting.
var ErrBehind = errors.New("the secondary is too far behind its primary")

// feed queues log batches for the replaying loop.
type feed struct {
	mu       sync.Mutex
	chunks   []chunk
	bytes    int
	closed   bool // no more will come: run to the end
	consumed func(lsn uint64)
	bell     *doorbell
}

type chunk struct {
	lsn   uint64
	bytes []byte
}

// Feed adds a batch of the log; the engine keeps it.
func (e *Engine) Feed(lsn uint64, batch []byte) error {
	f := &e.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil // the primary is dead to this copy already
	}
	if f.bytes+len(batch) > maxFeed {
		return ErrBehind
	}
	if p := e.prefetch; p != nil {
		if err := p.scan(lsn, batch); err != nil {
			return err
		}
		p.begin()
	}
	f.chunks = append(f.chunks, chunk{lsn, batch})
	f.bytes += len(batch)
	f.bell.ring()
	return nil
}

// Consume says that no more of the log will come: Replay executes what is here
// and returns. It ends before the first reference that can't be read here: nothing
// behind that was acknowledged.
func (e *Engine) Consume() {
	e.feed.mu.Lock()
	e.feed.closed = true
	e.feed.mu.Unlock()
	e.bell.ring()
}

// AskConsumed has f called once, with the LSN, when all of the log that has
// arrived is executed, as far as it can be without the primary; more may come. f
// must not block.
func (e *Engine) AskConsumed(f func(lsn uint64)) {
	e.feed.mu.Lock()
	e.feed.consumed = f
	e.feed.mu.Unlock()
	e.bell.ring()
}

// asked returns what AskConsumed left, once, if nothing has arrived since.
func (f *feed) asked() func(uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.chunks) > 0 {
		return nil
	}
	c := f.consumed
	f.consumed = nil
	return c
}

func (f *feed) take() (chunks []chunk, closed bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	chunks, f.chunks, f.bytes = f.chunks, nil, 0
	return chunks, f.closed
}

// ackEvery is how often a secondary that has more to do acknowledges what it
// has verified; one that waits does so at once.
const ackEvery = time.Millisecond

// Replay runs the machine, which was just restored, as a secondary of the log
// that starts at base. ack is told what has been received and verified; it
// must not block. Replay returns nil after Consume, when all of the log has
// been executed: the machine can go live. ErrDiverged means that it can't.
func (e *Engine) Replay(ctx context.Context, base event.Base, ack func(received, verified uint64)) error {
	release, err := holdThread()
	if err != nil {
		return err
	}
	defer release()
	if err := e.bell.open(); err != nil {
		return err
	}
	defer e.bell.close()
	// A former primary's anchors stay fresh for a time.
	if err := errors.Join(e.m.SetFresh(0), e.m.SetLogged(true)); err != nil {
		return err
	}
	unlocate, err := e.locate()
	if err != nil {
		return err
	}
	defer unlocate()
	defer context.AfterFunc(ctx, e.wake)()
	defer e.m.KickWhen(ctx)()
	s := &lockstep.Secondary[board.Effect]{Machine: e.m, Log: lockstep.NewReplayer(base)}
	if p := e.prefetch; p != nil {
		s.Log.Resolve = p.resolve
		defer p.end()
	}
	var acked time.Time
	var told uint64 // the last verified LSN that was acknowledged
	for ctx.Err() == nil {
		e.commands()
		do, err := s.Step()
		e.since = s.EqualAt()
		if errors.Is(err, machine.ErrStopped) {
			err = s.Confirm(err)
		}
		if err != nil {
			if errors.Is(err, lockstep.ErrDiverged) {
				e.Stats.Divergences.Add(1)
			}
			return err
		}
		switch do {
		case lockstep.Run:
			e.Stats.ran(e.m)
		case lockstep.Apply:
			e.Stats.Inputs.Add(1)
		case lockstep.Check:
			e.Stats.Verified.Store(s.Verified())
			if time.Since(acked) >= ackEvery {
				ack(e.Held(s.Log.Received()), s.Verified())
				acked, told = time.Now(), s.Verified()
			}
		case lockstep.Wait:
			if told != s.Verified() {
				ack(e.Held(s.Log.Received()), s.Verified())
				acked, told = time.Now(), s.Verified()
			}
			chunks, closed := e.feed.take()
			for _, c := range chunks {
				if err := s.Log.Feed(c.lsn, c.bytes); err != nil {
					return err
				}
			}
			if len(chunks) > 0 {
				e.Stats.LSN.Store(s.Log.Received())
				continue
			}
			if reading := s.Log.Resolving() && !e.prefetch.stuck(); !reading {
				if closed {
					return nil
				}
				if f := e.feed.asked(); f != nil {
					f(s.Log.Executed())
					continue
				}
			}
			e.bell.wait(time.Hour) // the end of ctx rings, too
		}
	}
	return ctx.Err()
}

// Diverged describes the error with which Replay has returned, if it is a
// divergence: what differs, and the exits since both copies were known to be
// equal, as this one made them.
func (e *Engine) Diverged(err error) (*lockstep.Divergence, []machine.Crumb) {
	var d *lockstep.Divergence
	if !errors.As(err, &d) {
		return nil, nil
	}
	return d, e.m.Trail(e.since, maxSuspects)
}

// maxSuspects bounds the exits that a divergence is reported with.
const maxSuspects = 256

// Reissue sends the disk requests that the guest has made and that haven't
// completed to the rim once more: the first thing that a copy does when it
// goes live. Before Live.
func (e *Engine) Reissue() int {
	pending := e.m.Board.PendingDisk()
	for _, x := range pending {
		e.rim.Effect(x)
	}
	return len(pending)
}
