package vm

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/diskref"
	"github.com/duet-ft/duet/hvd/event"
)

// fakeSource is a disk whose sectors hold their numbers, and a primary that
// answers.
type fakeSource struct {
	t    *testing.T
	p    *prefetch
	read func(sector uint64) error // what a read ends with, or errStale
	mute bool                      // the primary doesn't answer

	mu    sync.Mutex
	asked map[uint64]error
	holds uint64
}

var errStale = errors.New("other bytes")

func contents(sector uint64, n int) []byte { return bytes.Repeat([]byte{byte(sector)}, n) }

func (s *fakeSource) ReadDisk(ctx context.Context, _ int, sector uint64, p []byte) error {
	err := s.read(sector)
	switch {
	case errors.Is(err, errStale):
		sector++
	case errors.Is(err, context.DeadlineExceeded):
		<-ctx.Done()
		return ctx.Err()
	case err != nil:
		return err
	}
	copy(p, contents(sector, len(p)))
	return nil
}

func (s *fakeSource) Ask(disk int, id uint64, why error) {
	s.mu.Lock()
	s.asked[id] = why
	s.mu.Unlock()
	if s.mute {
		return
	}
	if err := s.p.give(disk, id, contents(id, diskref.MinLen)); err != nil {
		s.t.Error(err)
	}
}

func (s *fakeSource) Holds(lsn uint64) {
	s.mu.Lock()
	s.holds = max(s.holds, lsn)
	s.mu.Unlock()
}

// refLog is a log of n references to the sectors 0 to n-1, each the request of its
// number, with a tick behind each.
func refLog(n int) (log []byte, refs []event.Entry) {
	enc := event.NewEncoder(event.Base{})
	for i := range uint64(n) {
		r := diskref.Ref{ID: i, Sector: i, Len: diskref.MinLen, Sum: diskref.SumOf(contents(i, diskref.MinLen))}
		e := event.Entry{Pos: i, Kind: event.DiskRef, ID: i, Data: r.Encode()}
		refs = append(refs, e)
		log = enc.Append(enc.Append(log, e), event.Entry{Pos: i, Kind: event.Deadline})
	}
	return log, refs
}

func following(t *testing.T, read func(uint64) error) (*prefetch, *fakeSource) {
	s := &fakeSource{t: t, read: read, asked: map[uint64]error{}}
	s.p = newPrefetch(t.Context(), event.Base{}, s, 20*time.Millisecond, &doorbell{})
	return s.p, s
}

// feed gives a log in random pieces.
func (s *fakeSource) feed(log []byte) {
	s.t.Helper()
	for at := 0; at < len(log); {
		n := min(1+rand.IntN(60), len(log)-at)
		if err := s.p.scan(uint64(at), bytes.Clone(log[at:at+n])); err != nil {
			s.t.Fatal(err)
		}
		s.p.begin()
		at += n
	}
}

// TestPrefetch reads what a log refers to, with a volume that fails in each way:
// all is there in the end, in the log's order, and the primary was asked for what
// the volume didn't give.
func TestPrefetch(t *testing.T) {
	const n = 200
	errBroken := errors.New("broken")
	log, refs := refLog(n)
	p, s := following(t, func(sector uint64) error {
		switch {
		case sector == 7:
			return errStale
		case sector == 150:
			return errBroken
		case sector == 160:
			return context.DeadlineExceeded
		}
		return nil
	})
	s.feed(log)
	for _, e := range refs {
		var done event.Entry
		await(t, "reference", func() (ok bool) {
			done, ok = p.resolve(e)
			return ok
		})
		if done.Kind != event.DiskDone || done.ID != e.ID || done.Pos != e.Pos || !bytes.Equal(done.Data, contents(e.ID, diskref.MinLen)) {
			t.Fatalf("%+v became %+v", e, done)
		}
	}
	p.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds != uint64(len(log)) || p.held() != s.holds {
		t.Errorf("held up to %d, %d was told, of %d", p.held(), s.holds, len(log))
	}
	if !errors.Is(s.asked[7], ErrOtherBytes) || !errors.Is(s.asked[150], errBroken) || s.asked[0] != nil {
		t.Errorf("asked: %v", s.asked)
	}
}

// TestPrefetchAlone: without volume and primary, the log is held up to the first
// reference, and it is known that waiting is of no use.
func TestPrefetchAlone(t *testing.T) {
	log, refs := refLog(5)
	p, s := following(t, func(sector uint64) error {
		if sector < 2 {
			return nil
		}
		return context.DeadlineExceeded
	})
	s.mute = true
	s.feed(log)
	for _, e := range refs[:2] {
		await(t, "reference", func() bool { _, ok := p.resolve(e); return ok })
	}
	await(t, "end of the patience", p.stuck)
	if _, ok := p.resolve(refs[2]); ok {
		t.Error("what nobody has was resolved")
	}
	enc := event.NewEncoder(event.Base{})
	var before []byte
	for _, e := range refs[:2] {
		before = enc.Append(enc.Append(before, e), event.Entry{Pos: e.Pos, Kind: event.Deadline})
	}
	if got := p.held(); got != uint64(len(before)) {
		t.Errorf("held up to %d, want %d", got, len(before))
	}
	p.end()
	if err := p.give(0, 4, []byte("x")); !errors.Is(err, diskref.ErrUnasked) {
		t.Errorf("other data: %v", err)
	}
}

// TestPrefetchOfAnotherLog: what can't be read isn't held.
func TestPrefetchOfAnotherLog(t *testing.T) {
	p, s := following(t, func(uint64) error { return nil })
	log, _ := refLog(1)
	s.feed(log)
	await(t, "reference", func() bool { return p.held() == uint64(len(log)) })
	if err := p.scan(uint64(len(log)), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}); err != nil {
		t.Error(err)
	}
	if got := p.held(); got != uint64(len(log)) || !p.stuck() {
		t.Errorf("held up to %d, stuck %t", got, p.stuck())
	}
}
