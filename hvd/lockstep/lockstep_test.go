package lockstep

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/zeebo/xxh3"

	"github.com/duet-ft/duet/hvd/event"
)

// toy is a deterministic machine: its state is a number that each exit mixes
// with itself, each input with its content. Some exits make an effect. It
// counts a few traps between two exits, so that a stop has something to stop
// at.
type toy struct {
	pos, state, traps uint64
	within            uint64 // traps since the last exit
	effects           []uint64
	interrupt         func() bool // whether the host interrupts this run
	point             func() bool // whether that makes a point
	flip              uint64      // position after which a bit flips; 0: never
}

func (m *toy) Position() uint64    { return m.pos }
func (m *toy) Fingerprint() uint64 { return m.state }

func (m *toy) mix(v uint64) {
	b := binary.LittleEndian.AppendUint64(nil, m.state)
	m.state = xxh3.Hash(binary.LittleEndian.AppendUint64(b, v))
}

func (m *toy) Run(stop uint64) (Exit, error) {
	for m.within < m.state%4 {
		if m.interrupt != nil && m.interrupt() {
			if m.point == nil || !m.point() {
				return Exit{Kind: Async}, nil
			}
			e := event.Entry{Pos: m.pos, Kind: event.Point, Count: m.within}
			m.exit(3)
			return Exit{Kind: Pointed, Point: &e}, nil
		}
		m.within++
		m.traps++
		if m.traps >= stop {
			m.exit(1)
			return Exit{Kind: Trapped, Traps: m.traps}, nil
		}
	}
	m.within = 0
	m.exit(0)
	if m.state%3 == 0 {
		m.effects = append(m.effects, m.state)
	}
	return Exit{Kind: Sync}, nil
}

func (m *toy) exit(kind uint64) {
	m.pos++
	if m.flip != 0 && m.pos == m.flip {
		m.state ^= 1 << 40
	}
	m.mix(m.traps<<8 | kind)
}

func (m *toy) capture() []byte {
	b := binary.LittleEndian.AppendUint64(nil, m.traps)
	b = binary.LittleEndian.AppendUint64(b, m.within)
	m.resynced()
	return b
}

func (m *toy) resynced() { m.exit(2) }

func (m *toy) Apply(e event.Entry) error {
	if e.Kind == event.Point {
		if e.Count < m.within {
			return errors.New("beyond the point")
		}
		m.traps += e.Count - m.within
		m.within = e.Count
		m.exit(3)
		return nil
	}
	if e.Kind == event.Resync {
		m.traps = binary.LittleEndian.Uint64(e.Data)
		m.within = binary.LittleEndian.Uint64(e.Data[8:])
		m.resynced()
		return nil
	}
	m.mix(uint64(e.Kind)<<32 ^ xxh3.Hash(e.Data) ^ e.Now)
	return nil
}

func (m *toy) TakeEffects() []uint64 {
	e := m.effects
	m.effects = nil
	return e
}

// history records a toy for n runs with random inputs, stops, points and resyncs. It
// hands every batch of the log to send, and gives the gate's releases to out.
func history(t *testing.T, r *rand.Rand, m *toy, n int, send func(lsn uint64, b []byte)) *Primary[uint64] {
	t.Helper()
	m.interrupt = func() bool { return r.IntN(20) == 0 }
	m.point = func() bool { return r.IntN(2) == 0 }
	p := &Primary[uint64]{Machine: m, Log: NewRecorder(event.Base{})}
	now := uint64(0)
	for range n {
		stop := uint64(Free)
		if r.IntN(5) == 0 {
			stop = m.traps + 1
		}
		before := m.Position()
		exit, _, _, err := p.Run(stop)
		if err != nil {
			t.Fatal(err)
		}
		if exit.Kind == Async && r.IntN(2) == 0 {
			data := m.capture()
			p.Log.Input(event.Entry{Pos: before, Kind: event.Resync, Data: data})
		} else if exit.Kind == Async {
			continue
		}
		for range r.IntN(3) {
			now += uint64(r.IntN(1000))
			in := []event.Entry{
				{Kind: event.Time, Now: now},
				{Kind: event.Frame, Data: fmt.Append(nil, r.Uint64())},
				{Kind: event.DiskDone, ID: r.Uint64(), Data: []byte{1}},
			}[r.IntN(3)]
			if err := p.Input(in); err != nil {
				t.Fatal(err)
			}
		}
		if r.IntN(4) == 0 {
			p.Mark()
		}
		if r.IntN(4) == 0 {
			send(p.Log.Take())
		}
	}
	p.Mark()
	send(p.Log.Take())
	return p
}

// TestReplay records histories and replays them while they arrive, with a host
// that interrupts the secondary at will: the end is the same.
func TestReplay(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 1))
		replica := &toy{interrupt: func() bool { return r.IntN(10) == 0 }}
		s := &Secondary[uint64]{Machine: replica, Log: NewReplayer(event.Base{})}
		drain := func() {
			for {
				do, err := s.Step()
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				if do == Wait {
					return
				}
			}
		}
		m := &toy{}
		p := history(t, r, m, 300, func(lsn uint64, b []byte) {
			if err := s.Log.Feed(lsn, b); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if r.IntN(2) == 0 {
				drain()
			}
		})
		drain()
		if replica.pos != m.pos || replica.state != m.state {
			t.Fatalf("seed %d: replica at exit %d with %x, primary at %d with %x",
				seed, replica.pos, replica.state, m.pos, m.state)
		}
		if s.Verified() != p.Log.LSN() {
			t.Errorf("seed %d: verified up to LSN %d of %d", seed, s.Verified(), p.Log.LSN())
		}
	}
}

// TestDivergenceIsFound flips a bit in a replica: it must be found, never
// verified beyond.
func TestDivergenceIsFound(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 2))
		var log []byte
		m := &toy{}
		p := history(t, r, m, 300, func(_ uint64, b []byte) { log = append(log, b...) })
		replica := &toy{flip: 1 + r.Uint64N(m.pos)}
		s := &Secondary[uint64]{Machine: replica, Log: NewReplayer(event.Base{})}
		if err := s.Log.Feed(0, log); err != nil {
			t.Fatal(err)
		}
		var err error
		for do := Run; do != Wait && err == nil; {
			do, err = s.Step()
		}
		if !errors.Is(err, ErrDiverged) {
			t.Fatalf("seed %d: flipped at exit %d, ended at %d of %d with %v", seed, replica.flip, replica.pos, m.pos, err)
		}
		if s.Verified() == p.Log.LSN() {
			t.Errorf("seed %d: all of the log was verified", seed)
		}
	}
}

func TestFeedRefusesGaps(t *testing.T) {
	r := NewReplayer(event.Base{})
	if err := r.Feed(1, []byte{2}); err == nil {
		t.Error("a batch from LSN 1 was taken at LSN 0")
	}
	if r.Received() != 0 {
		t.Errorf("received %d after a refused batch", r.Received())
	}
}

// TestWaitAtTheHorizon: the replayer must not run beyond what the log says is
// complete, for a stop may come between two exits.
func TestWaitAtTheHorizon(t *testing.T) {
	enc := event.NewEncoder(event.Base{})
	r := NewReplayer(event.Base{})
	feed := func(e event.Entry) {
		t.Helper()
		if err := r.Feed(r.Received(), enc.Append(nil, e)); err != nil {
			t.Fatal(err)
		}
	}
	next := func(pos uint64, do Do, stop uint64) {
		t.Helper()
		s, err := r.Next(pos)
		if err != nil {
			t.Fatal(err)
		}
		if s.Do != do || do == Run && s.Stop != stop {
			t.Errorf("at %d: %d with stop %d, want %d with %d", pos, s.Do, s.Stop, do, stop)
		}
	}
	next(0, Wait, 0)
	feed(event.Entry{Pos: 2, Kind: event.Mark})
	next(0, Run, Free)
	next(1, Run, Free)
	next(2, Check, 0)
	next(2, Wait, 0)
	feed(event.Entry{Pos: 2, Kind: event.Stop, Traps: 9})
	next(2, Run, 9)
	next(3, Wait, 0)
	feed(event.Entry{Pos: 3, Kind: event.Power})
	if _, err := r.Next(4); !errors.Is(err, ErrDiverged) {
		t.Errorf("overrun: %v, want ErrDiverged", err)
	}
}

func TestGate(t *testing.T) {
	released := func(g *Gate[string], want ...string) {
		t.Helper()
		if got := g.Release(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("released %v, want %v", got, want)
		}
	}
	for _, level := range []Level{Verified, Received} {
		g := &Gate[string]{Level: level}
		g.Push(0, "solo")
		released(g, "solo")
		g.Push(3, "early")
		g.Set(Closed)
		released(g)
		g.Rebase()
		g.Set(Acked)
		released(g, "early")
		g.Push(10, "a")
		g.Push(10, "b")
		g.Push(20, "c")
		g.Ack(10, 5)
		if level == Received {
			released(g, "a", "b")
		} else {
			released(g)
		}
		g.Ack(9, 9) // an old one changes nothing
		g.Ack(25, 10)
		if level == Received {
			released(g, "c")
		} else {
			released(g, "a", "b")
		}
		g.Push(30, "d")
		g.Set(Closed)
		g.Ack(30, 20)
		released(g)
		g.Set(Acked)
		if level == Received {
			released(g, "d")
		} else {
			released(g, "c")
		}
		g.Push(40, "e")
		g.Rebase() // a new log: what is held, its state transfer explains
		if level == Received {
			released(g, "e")
		} else {
			released(g, "d", "e")
		}
		g.Push(1, "f")
		released(g)
		g.Set(Open)
		released(g, "f")
	}
}

// TestConfirm: a secondary's own end counts only if the primary's log ends with
// that very state.
func TestConfirm(t *testing.T) {
	cause := errors.New("the guest has stopped")
	for _, c := range []struct {
		name string
		log  event.Entry
		same bool
	}{
		{"the same end", event.Entry{Pos: 1, Kind: event.Mark, Hash: 7}, true},
		{"another fingerprint", event.Entry{Pos: 1, Kind: event.Mark, Hash: 8}, false},
		{"an input behind it", event.Entry{Pos: 1, Kind: event.Power}, false},
		{"a primary that ran on", event.Entry{Pos: 2, Kind: event.Mark, Hash: 7}, false},
	} {
		s := &Secondary[uint64]{Machine: &toy{pos: 1, state: 7}, Log: NewReplayer(event.Base{})}
		if err := s.Log.Feed(0, event.NewEncoder(event.Base{}).Append(nil, c.log)); err != nil {
			t.Fatal(err)
		}
		err := s.Confirm(cause)
		if c.same != (err == cause) || c.same == errors.Is(err, ErrDiverged) {
			t.Errorf("%s: %v", c.name, err)
		}
		if want := s.Log.Received(); c.same && s.Verified() != want {
			t.Errorf("%s: verified up to %d of %d", c.name, s.Verified(), want)
		}
	}
}

// TestReferences: an entry that needs something from elsewhere waits for it, and
// is then carried out as what it stands for, once and in its place.
func TestReferences(t *testing.T) {
	p := &Primary[uint64]{Machine: &toy{}, Log: NewRecorder(event.Base{})}
	run := func() {
		t.Helper()
		if _, _, _, err := p.Run(Free); err != nil {
			t.Fatal(err)
		}
	}
	run()
	done := event.Entry{Kind: event.DiskDone, ID: 4, Data: []byte("what was read")}
	if err := p.InputAs(event.Entry{Kind: event.DiskRef, ID: 4, Data: []byte("blocks")}, done); err != nil {
		t.Fatal(err)
	}
	run()
	p.Mark()
	_, log := p.Log.Take()

	s := &Secondary[uint64]{Machine: &toy{}, Log: NewReplayer(event.Base{})}
	if err := s.Log.Feed(0, log); err != nil {
		t.Fatal(err)
	}
	if do, err := s.Step(); do != Run || err != nil {
		t.Fatalf("%v, %v", do, err)
	}
	if _, err := s.Step(); err == nil {
		t.Error("a reference was carried out by nobody")
	}
	here := false
	s.Log.Resolve = func(e event.Entry) (event.Entry, bool) {
		if e.Kind != event.DiskRef || string(e.Data) != "blocks" {
			t.Errorf("asked to resolve %+v", e)
		}
		done.Pos = e.Pos
		return done, here
	}
	for range 2 {
		if do, err := s.Step(); do != Wait || err != nil {
			t.Fatalf("%v, %v; it must wait", do, err)
		}
	}
	for here = true; ; {
		do, err := s.Step()
		if err != nil {
			t.Fatal(err)
		}
		if do == Wait {
			break
		}
	}
	if got, want := s.Machine.Fingerprint(), p.Machine.Fingerprint(); got != want || s.Verified() != uint64(len(log)) {
		t.Errorf("fingerprint %x, want %x; verified %d of %d", got, want, s.Verified(), len(log))
	}
}
