package pairing

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
)

// world makes keys and secrets of a seed, so that every run of a test is the same.
type world struct{ *rand.Rand }

func newWorld(seed uint64) world { return world{rand.New(rand.NewPCG(seed, 1))} }

func (w world) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(w.Uint32())
	}
	return b
}

func (w world) key() ed25519.PublicKey {
	return ed25519.NewKeyFromSeed(w.bytes(ed25519.SeedSize)).Public().(ed25519.PublicKey)
}

// connection makes the two runs at the ends of one TLS connection.
func (w world) connection(t testing.TB, joiner, shower Side, typed, shown Code) (a, b *Run, first Frame) {
	t.Helper()
	binding := w.bytes(32)
	a, first, err := Join(Config{
		Self: joiner, PeerKey: shower.Key, Binding: binding, Code: typed,
		Secret: [48]byte(w.bytes(48)), Settings: []byte("of the joiner"),
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err = Show(Config{
		Self: shower, PeerKey: joiner.Key, Binding: binding, Code: shown,
		Secret: [48]byte(w.bytes(48)), Settings: []byte("of the shower"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return a, b, first
}

// exchange carries frames between two runs until neither has something to say. It returns all of them.
func exchange(a, b *Run, first Frame) (frames []Frame, errA, errB error) {
	toB := []Frame{first}
	var toA []Frame
	for len(toA)+len(toB) > 0 {
		frames = append(frames, toB...)
		for _, f := range toB {
			out, err := b.Step(f)
			errB = errors.Join(errB, err)
			toA = append(toA, out...)
		}
		frames = append(frames, toA...)
		toB = nil
		for _, f := range toA {
			out, err := a.Step(f)
			errA = errors.Join(errA, err)
			toB = append(toB, out...)
		}
		toA = nil
	}
	return frames, errA, errB
}

func TestTwoHostsMeet(t *testing.T) {
	w := newWorld(1)
	a, b := Side{"a", w.key()}, Side{"b", w.key()}
	join, show, first := w.connection(t, a, b, "47110815", "47110815")
	if _, ok := join.Partner(); ok {
		t.Error("the joiner has a partner before it heard of any")
	}
	frames, errA, errB := exchange(join, show, first)
	if errA != nil || errB != nil {
		t.Fatal(errA, errB)
	}
	var text []byte
	for _, f := range frames {
		text = f.Append(text)
	}
	if bytes.Contains(text, []byte("4711")) {
		t.Error("the code is in what was sent")
	}
	for _, c := range []struct {
		r        *Run
		want     Side
		settings string
	}{{join, b, "of the shower"}, {show, a, "of the joiner"}} {
		got, ok := c.r.Partner()
		settings, whole := c.r.Settings()
		if !ok || !whole || got.Name != c.want.Name || !got.Key.Equal(c.want.Key) || string(settings) != c.settings || c.r.Outcome() != Right {
			t.Errorf("partner %+v (%v), settings %q (%v), want %s with its key", got, ok, settings, whole, c.want.Name)
		}
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(2)
	key := w.key()
	if _, _, err := Join(Config{Self: Side{"a", key}, PeerKey: key}); !errors.Is(err, ErrSelf) {
		t.Errorf("a host that meets itself: %v", err)
	}
	a, b := Side{"same", w.key()}, Side{"same", w.key()}
	_, show, first := w.connection(t, a, b, "00000000", "00000000")
	if _, err := show.Step(first); err == nil || !strings.Contains(err.Error(), "both hosts are named same") || show.Outcome() != Untested {
		t.Errorf("two hosts of one name: %v", err)
	}
	b.Name = "other"
	join, show, first := w.connection(t, a, b, "00000000", "00000001")
	_, _, err := exchange(join, show, first)
	if !errors.Is(err, ErrCode) || show.Outcome() != Wrong {
		t.Errorf("another code: %v", err)
	}
	if _, err := join.Step(Refusal("it's drained\x1b")); !errors.Is(err, ErrRefused) || strings.ContainsAny(err.Error(), "\x1b\n") {
		t.Errorf("a refusal: %v", err)
	}
	// Frames out of turn, such as settings without a confirmation.
	for _, f := range []Frame{{TypeSettings, nil}, {TypeConfirm, make([]byte, 32)}, {9, nil}, {TypeHello, make([]byte, 80)}} {
		_, show, first := w.connection(t, a, b, "00000000", "00000000")
		if _, err := show.Step(f); err == nil {
			t.Errorf("type %d was taken as the first frame", f.Type)
		}
		if _, err := show.Step(first); err == nil {
			t.Error("the run went on after an error")
		}
		if _, ok := show.Partner(); ok {
			t.Error("a partner without a proof")
		}
	}
}

// middle is a machine between the two hosts: it ends both TLS connections with its own key.
type middle struct {
	w    world
	self Side
}

// attack lets the machine in the middle do to one pairing what it can. It returns the runs of the two hosts.
type attack func(t *testing.T, m middle, a, b Side, code Code, old []Frame) (join, show *Run)

// relay passes frames on, changed by edit if there is one.
func relay(edit func(w world, f Frame) Frame) attack {
	return func(t *testing.T, m middle, a, b Side, code Code, _ []Frame) (*Run, *Run) {
		join, _, first := m.w.connection(t, a, m.self, code, "")
		_, show, _ := m.w.connection(t, m.self, b, "", code)
		toB := []Frame{first}
		for i := 0; i < 8 && len(toB) > 0; i++ {
			var toA []Frame
			for _, f := range toB {
				if edit != nil {
					f = edit(m.w, f)
				}
				out, _ := show.Step(f)
				toA = append(toA, out...)
			}
			toB = nil
			for _, f := range toA {
				if edit != nil {
					f = edit(m.w, f)
				}
				out, _ := join.Step(f)
				toB = append(toB, out...)
			}
		}
		return join, show
	}
}

// replay sends the frames of an older pairing of the same two hosts.
func replay(t *testing.T, m middle, a, b Side, code Code, old []Frame) (*Run, *Run) {
	join, _, _ := m.w.connection(t, a, m.self, code, "")
	_, show, _ := m.w.connection(t, m.self, b, "", code)
	for _, f := range old {
		join.Step(f)
		show.Step(f)
	}
	return join, show
}

// guess plays an honest host to both, with codes of its own.
func guess(codes func(w world) Code) attack {
	return func(t *testing.T, m middle, a, b Side, code Code, _ []Frame) (*Run, *Run) {
		join, mine, first := m.w.connection(t, a, m.self, code, codes(m.w))
		exchange(join, mine, first)
		mine, show, first := m.w.connection(t, m.self, b, codes(m.w), code)
		exchange(mine, show, first)
		return join, show
	}
}

// mirror sends each host its own frames back.
func mirror(t *testing.T, m middle, a, b Side, code Code, _ []Frame) (*Run, *Run) {
	join, _, first := m.w.connection(t, a, m.self, code, "")
	out, _ := join.Step(first)
	for _, f := range out {
		join.Step(f)
	}
	_, show, other := m.w.connection(t, m.self, b, "", code)
	out, _ = show.Step(other)
	for _, f := range out {
		show.Step(f)
	}
	return join, show
}

// TestMiddle has attacks that don't guess: none ever succeeds.
func TestMiddle(t *testing.T) {
	edits := map[string]func(w world, f Frame) Frame{
		"relays": nil,
		"replaces shares": func(w world, f Frame) Frame {
			if f.Type != TypeHello {
				return f
			}
			r, _ := newRun(Config{Self: Side{"m", w.key()}, PeerKey: w.key(), Code: NewCode([8]byte(w.bytes(8))), Secret: [48]byte(w.bytes(48))}, 0)
			return hello("m", r.pake.Share())
		},
		"flips a bit": func(w world, f Frame) Frame {
			f.Payload = slices.Clone(f.Payload)
			if len(f.Payload) > 0 {
				f.Payload[w.IntN(len(f.Payload))] ^= 1 << w.IntN(8)
			}
			return f
		},
		"confirms with zeros": func(_ world, f Frame) Frame {
			if f.Type == TypeConfirm {
				f.Payload = make([]byte, len(f.Payload))
			}
			return f
		},
	}
	attacks := map[string]attack{"replays": replay, "mirrors": mirror}
	for name, edit := range edits {
		attacks[name] = relay(edit)
	}
	for name, try := range attacks {
		for seed := range uint64(50) {
			w := newWorld(seed)
			m := middle{w, Side{"m", w.key()}}
			a, b := Side{"a", w.key()}, Side{"b", w.key()}
			code := NewCode([8]byte(w.bytes(8)))
			join, show, first := w.connection(t, a, b, code, code)
			old, errA, errB := exchange(join, show, first)
			if errA != nil || errB != nil {
				t.Fatal(errA, errB)
			}
			join, show = try(t, m, a, b, NewCode([8]byte(w.bytes(8))), old)
			for _, r := range []*Run{join, show} {
				if p, ok := r.Partner(); ok {
					t.Fatalf("%s, seed %d: %s has the partner %+v", name, seed, r.cfg.Self.Name, p)
				}
			}
		}
	}
}

// TestGuessing counts how often an attacker who guesses gets in when there are 20 codes only: once in 20 at each of the two
// places where it can guess.
func TestGuessing(t *testing.T) {
	const pairings, space = 600, 20
	w := newWorld(3)
	short := func(w world) Code { return Code(fmt.Sprintf("%02d", w.IntN(space))) }
	m := middle{w, Side{"m", w.key()}}
	a, b := Side{"a", w.key()}, Side{"b", w.key()}
	try := guess(short)
	fooled, shown := 0, 0
	for range pairings {
		join, show := try(t, m, a, b, short(w), nil)
		if _, ok := join.Partner(); ok {
			fooled++
		}
		if _, ok := show.Partner(); ok {
			shown++
		}
		if show.Outcome() == Untested {
			t.Fatal("a guess wasn't counted as one")
		}
	}
	t.Logf("of %d pairings, %d joiners and %d showers took the attacker for the partner", pairings, fooled, shown)
	// 30 are expected of each; the standard deviation is 5.4.
	for _, n := range []int{fooled, shown} {
		if n < 10 || n > 50 {
			t.Errorf("%d of %d guesses of a code among %d were right, want about %d", n, pairings, space, pairings/space)
		}
	}
	if p := 2 * math.Pow10(-len(NewCode([8]byte{}))); p > 1e-6 {
		t.Errorf("with codes as they are the chance is %g for each", p)
	}
}

// TestNoSecondGuess has an attacker who tries all codes, one after the other, at a window with a code of two digits: after
// one guess the code is another, and after MaxGuesses there is none.
func TestNoSecondGuess(t *testing.T) {
	w := newWorld(4)
	var window Window
	now := time.Unix(0, 0)
	window.Open(now, [8]byte(w.bytes(8)), true)
	wrong := 0
	for i := range 1000 {
		now = now.Add(time.Second)
		window.Tick(now, [8]byte(w.bytes(8)))
		code, err := window.Take(now)
		if err != nil {
			if !errors.Is(err, ErrGuesses) {
				t.Fatal(err)
			}
			continue
		}
		mine, show, first := w.connection(t, Side{"m", w.key()}, Side{"b", w.key()}, Code(fmt.Sprintf("%08d", i)), code)
		exchange(mine, show, first)
		window.Returned(code, show.Outcome())
		wrong++
		if again, _, err := window.Code(now); err == nil && again == code {
			t.Fatal("a code counts after a wrong guess")
		}
	}
	if wrong != MaxGuesses {
		t.Errorf("%d codes could be guessed at, want %d", wrong, MaxGuesses)
	}
}

// TestWindow carries out the scripts of testdata/window.
func TestWindow(t *testing.T) {
	var w Window
	now := time.Unix(0, 0).UTC()
	var taken Code
	next := uint64(0)
	random := func() (b [8]byte) {
		next += 11111111
		binary.BigEndian.PutUint64(b[:], next)
		return b
	}
	datadriven.RunTest(t, "testdata/window", func(t *testing.T, d *datadriven.TestData) string {
		var err error
		switch d.Cmd {
		case "reset":
			w, next = Window{}, 0
		case "open":
			w.Open(now, random(), d.HasArg("renews"))
		case "close":
			w.Close()
		case "wait":
			d2, err := time.ParseDuration(d.CmdArgs[0].Key)
			if err != nil {
				d.Fatalf(t, "%v", err)
			}
			now = now.Add(d2)
			w.Tick(now, random())
		case "take":
			var c Code
			if c, err = w.Take(now); err == nil {
				taken = c
			}
		case "return":
			o, ok := map[string]Outcome{"untested": Untested, "wrong": Wrong, "right": Right}[d.CmdArgs[0].Key]
			if !ok {
				d.Fatalf(t, "no outcome %s", d.CmdArgs[0].Key)
			}
			w.Returned(taken, o)
			w.Tick(now, random())
		default:
			d.Fatalf(t, "no directive %s", d.Cmd)
		}
		text := ""
		if err != nil {
			text = "refused: " + err.Error() + "\n"
		}
		c, until, err := w.Code(now)
		if err != nil {
			return text + "no code: " + err.Error() + "\n"
		}
		return text + fmt.Sprintf("code %s for %v\n", c, until.Sub(now))
	})
}

func TestCodes(t *testing.T) {
	for in, want := range map[string]Code{"47110815": "47110815", "4711-0815": "47110815", " 4711 0815 ": "47110815", "0000-0000": "00000000"} {
		if got, err := ParseCode(in); err != nil || got != want {
			t.Errorf("%q is %q (%v), want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", "4711", "4711-081", "4711-08155", "4711-081x", "４７１１0815", "+4711081"} {
		if got, err := ParseCode(in); err == nil {
			t.Errorf("%q is the code %q", in, got)
		}
	}
	if got := NewCode([8]byte{0, 0, 0, 0, 0, 0, 0, 7}); got.String() != "0000-0007" {
		t.Errorf("a small code is %s", got)
	}
}

func FuzzReadFrame(f *testing.F) {
	w := newWorld(5)
	_, _, first := w.connection(f, Side{"a", w.key()}, Side{"b", w.key()}, "1", "1")
	f.Add(first.Append(nil))
	f.Add(Frame{TypeSettings, []byte("{}")}.Append(nil))
	f.Add(Refusal("no").Append(nil))
	f.Add([]byte{3, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		for {
			frame, err := ReadFrame(r)
			if err != nil {
				break
			}
			if len(frame.Payload) > MaxPayload {
				t.Fatalf("a payload of %d bytes", len(frame.Payload))
			}
			w := newWorld(6)
			join, show, hello := w.connection(t, Side{"a", w.key()}, Side{"b", w.key()}, "1", "1")
			for _, run := range []*Run{join, show} {
				run.Step(frame)
				run.Step(hello)
				run.Step(frame)
				if _, ok := run.Partner(); ok {
					t.Fatal("a partner by accident")
				}
			}
		}
	})
}
