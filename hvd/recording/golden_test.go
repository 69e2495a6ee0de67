package recording

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/zeebo/xxh3"

	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/lockstep"
)

var update = flag.Bool("update", false, "record the golden file of the present versions")

// goldens are recordings of the toy below, and what their replay must end with.
// They stay as they are: a change of a format adds one, and the older ones must
// replay to the same digest or be refused, with the reason.
var goldens = map[string]uint64{
	"toy-1-1.rec": 0, // of the log's version 1: refused
	"toy-1-2.rec": 0xb411d60bb9c495b2,
	"toy-1-3.rec": 0xb411d60bb9c495b2,
	"toy-1-4.rec": 0xb411d60bb9c495b2,
	"toy-1-5.rec": 0xb411d60bb9c495b2,
}

// toy is a machine of 16 pages that computes on them and makes an exit now and
// then, a counted trap more often.
type toy struct {
	Pos, Acc, Traps, Now uint64
	memory               [16 * PageSize]byte
}

func (m *toy) Position() uint64        { return m.Pos }
func (m *toy) Fingerprint() uint64     { return m.Acc }
func (m *toy) TakeEffects() []struct{} { return nil }
func (m *toy) base() event.Base        { return event.Base{Pos: m.Pos, Now: m.Now, Traps: m.Traps} }
func (m *toy) page(n int) []byte       { return m.memory[n*PageSize : (n+1)*PageSize] }

func (m *toy) mix(b []byte) {
	m.Acc = xxh3.HashSeed(b, m.Acc)
}

// Run implements lockstep.Machine.
func (m *toy) Run(stop uint64) (lockstep.Exit, error) {
	for {
		at := m.Acc % (uint64(len(m.memory)) / 8) * 8
		m.mix(m.memory[at : at+8])
		binary.LittleEndian.PutUint64(m.memory[at:], m.Acc&0xffff) // compresses well
		if m.Acc&7 == 0 {
			if m.Traps++; m.Traps == stop {
				m.Pos++
				return lockstep.Exit{Kind: lockstep.Trapped, Traps: m.Traps}, nil
			}
		}
		if m.Acc&63 == 1 {
			m.Pos++
			return lockstep.Exit{Kind: lockstep.Sync, Traps: m.Traps}, nil
		}
	}
}

// Apply implements lockstep.Machine.
func (m *toy) Apply(e event.Entry) error {
	m.mix(fmt.Appendf(nil, "%v %d %d %d %x", e.Kind, e.Now, e.Disk, e.ID, e.Data))
	m.Now = max(m.Now, e.Now)
	copy(m.page(int(m.Acc%16)), e.Data)
	return nil
}

// digest covers all of the toy.
func (m *toy) digest() uint64 {
	b, err := json.Marshal(m)
	if err != nil {
		panic(err) // numbers only
	}
	return xxh3.Hash(append(b, m.memory[:]...))
}

// recordToy runs a toy with inputs of each kind and records it from the middle on.
func recordToy(t *testing.T, w io.Writer) *toy {
	t.Helper()
	m := &toy{Acc: 1}
	for range 100 {
		if _, err := m.Run(lockstep.Free); err != nil {
			t.Fatal(err)
		}
	}
	x, err := NewWriter(w, Head{VM: "toy", Memory: uint64(len(m.memory)), Machine: []byte("{}")})
	if err != nil {
		t.Fatal(err)
	}
	state, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var all []int
	for p := range 16 {
		all = append(all, p)
	}
	if err := errors.Join(x.Pages(all, m.page), x.State(m.base(), state)); err != nil {
		t.Fatal(err)
	}
	p := &lockstep.Primary[struct{}]{Machine: m, Log: lockstep.NewRecorder(m.base())}
	inputs := []event.Entry{
		{Kind: event.Time, Now: 1000},
		{Kind: event.Deadline},
		{Kind: event.Frame, Data: []byte("a frame")},
		{Kind: event.DiskDone, Disk: 1, ID: 2, Data: bytes.Repeat([]byte("disk"), 128)},
		{Kind: event.Vsock, Data: []byte("v")},
		{Kind: event.VsockReset},
		{Kind: event.Console, Data: []byte("root\n")},
		{Kind: event.Power},
		{Kind: event.Jump, Now: 5000},
	}
	for i := range 500 {
		stop := uint64(lockstep.Free)
		if i%7 == 3 {
			stop = m.Traps + 1
		}
		if i%3 == 0 {
			in := inputs[i/3%len(inputs)]
			if in.Kind == event.Time || in.Kind == event.Jump {
				in.Now += m.Now
			}
			if err := p.Input(in); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, _, err := p.Run(stop); err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 {
			p.Mark()
			_, batch := p.Log.Take()
			if err := x.Log(batch); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.Mark()
	_, batch := p.Log.Take()
	if err := errors.Join(x.Log(batch), x.End(End{Position: m.Pos, Fingerprint: m.Acc, Why: "the test is over"})); err != nil {
		t.Fatal(err)
	}
	return m
}

// replayToy executes a recording of a toy again.
func replayToy(in io.Reader) (*toy, error) {
	r, err := NewReader(in)
	if err != nil {
		return nil, err
	}
	m := &toy{}
	state, err := r.State(func(_ Ref, b Block) error {
		return b.Pages(16, func(p int, content []byte) { copy(m.page(p), content) })
	})
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(state.Snapshot, m); err != nil {
		return nil, err
	}
	s := &lockstep.Secondary[struct{}]{Machine: m, Log: lockstep.NewReplayer(state.Base)}
	for {
		do, err := s.Step()
		if err != nil {
			return m, err
		}
		if do != lockstep.Wait {
			continue
		}
		lsn, log, _, err := r.Log()
		if errors.Is(err, io.EOF) {
			if end := r.End(); end.Position != m.Pos || end.Fingerprint != m.Acc {
				return m, fmt.Errorf("ended at %d, recorded was %d", m.Pos, end.Position)
			}
			return m, nil
		}
		if err != nil {
			return m, err
		}
		if err := s.Log.Feed(lsn, log); err != nil {
			return m, err
		}
	}
}

// TestGolden replays the recordings that are kept, for ever.
func TestGolden(t *testing.T) {
	present := fmt.Sprintf("toy-%d-%d.rec", Version, event.Version)
	if *update {
		var b bytes.Buffer
		m := recordToy(t, &b)
		if err := os.WriteFile(filepath.Join("testdata", present), b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s has %d bytes, digest %#x", present, b.Len(), m.digest())
	}
	if _, ok := goldens[present]; !ok {
		t.Errorf("there is no golden recording of the present versions: make one with -update, and add %s", present)
	}
	for name, want := range goldens {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		m, err := replayToy(bytes.NewReader(b))
		switch {
		case name != present && errors.Is(err, ErrFormat):
			t.Logf("%s is refused: %v", name, err)
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case m.digest() != want:
			t.Errorf("%s replays to %#x, want %#x", name, m.digest(), want)
		}
	}
}

// TestCutReplays: a recording that was cut, or damaged, replays up to there.
func TestCutReplays(t *testing.T) {
	var b bytes.Buffer
	recordToy(t, &b)
	whole, err := replayToy(bytes.NewReader(b.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	cut, err := replayToy(bytes.NewReader(b.Bytes()[:b.Len()-60]))
	if !errors.Is(err, ErrDamaged) || cut == nil {
		t.Fatalf("%v", err)
	}
	if cut.Pos > whole.Pos {
		t.Errorf("replayed to %d of %d", cut.Pos, whole.Pos)
	}
	m, err := replayToy(bytes.NewReader(b.Bytes()))
	if err != nil || m.digest() != whole.digest() {
		t.Errorf("a second replay differs: %v", err)
	}
}
