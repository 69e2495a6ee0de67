package recording

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/zeebo/xxh3"
	"pgregory.net/rapid"

	"github.com/duet-ft/duet/hvd/event"
)

var sample = Head{
	VM: "db", Host: "a", Image: "0123456789ab", CPU: "some CPU", Leaves: "ba9876543210",
	Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Memory: 64 * PageSize, Machine: []byte(`{"disks":1}`),
}

// content makes a page that differs from others; seed 0 is a zero page.
func content(seed byte) []byte { return bytes.Repeat([]byte{seed}, PageSize) }

// fatal is what testing and rapid have in common.
type fatal interface {
	Helper()
	Fatal(args ...any)
}

// write makes a recording of some pages, sent in rounds, and a log.
func write(t fatal, rounds []map[int]byte, log []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b, sample)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rounds {
		var pages []int
		for p := range int(sample.Memory / PageSize) {
			if _, ok := r[p]; ok {
				pages = append(pages, p)
			}
		}
		if err := w.Pages(pages, func(p int) []byte { return content(r[p]) }); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.State(event.Base{Pos: 1, Now: 2, Traps: 3}, []byte(`{"cpu":"x"}`)); err != nil {
		t.Fatal(err)
	}
	if err := w.Log(log); err != nil {
		t.Fatal(err)
	}
	if err := w.End(End{Position: 77, Fingerprint: 88, Why: "asked to"}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// read is what a recording holds, as far as it can be read.
type read struct {
	head   Head
	state  State
	memory map[int]byte
	log    []byte
	end    *End
}

func readAll(b []byte) (x read, err error) {
	r, err := NewReader(bytes.NewReader(b))
	if err != nil {
		return x, err
	}
	x.head, x.memory = r.Head(), map[int]byte{}
	x.state, err = r.State(func(_ Ref, b Block) error {
		return b.Pages(int(r.Head().Memory/PageSize), func(p int, c []byte) {
			delete(x.memory, p)
			if c != nil {
				x.memory[p] = c[0]
			}
		})
	})
	if err != nil {
		return x, err
	}
	for {
		_, log, _, err := r.Log()
		if err == io.EOF {
			x.end = r.End()
			return x, nil
		}
		if err != nil {
			return x, err
		}
		x.log = append(x.log, log...)
	}
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rounds := rapid.SliceOfN(rapid.MapOf(rapid.IntRange(0, 63), rapid.ByteRange(0, 2)), 0, 5).Draw(t, "rounds")
		log := rapid.SliceOf(rapid.Byte()).Draw(t, "log")
		want := map[int]byte{}
		for _, r := range rounds {
			for p, c := range r {
				delete(want, p)
				if c != 0 {
					want[p] = c
				}
			}
		}
		got, err := readAll(write(t, rounds, log))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got.memory); d != "" {
			t.Fatal(d)
		}
		if !bytes.Equal(got.log, log) || got.end.LSN != uint64(len(log)) || got.end.Position != 77 || got.end.Why != "asked to" {
			t.Fatalf("log of %d bytes, end %+v", len(got.log), got.end)
		}
		if d := cmp.Diff(sample, got.head); d != "" {
			t.Fatal(d)
		}
		if got.state.Base != (event.Base{Pos: 1, Now: 2, Traps: 3}) || string(got.state.Snapshot) != `{"cpu":"x"}` {
			t.Fatalf("state %+v", got.state)
		}
	})
}

// TestDamage flips each byte and cuts at each place: what comes out is a prefix
// of the log and a line that says damaged, never a wrong byte.
func TestDamage(t *testing.T) {
	log := make([]byte, 700<<10)
	for i := range log {
		log[i] = byte(i * i >> 8)
	}
	good := write(t, []map[int]byte{{1: 1, 9: 2}, {1: 0}}, log)
	check := func(what string, at int, b []byte) int {
		t.Helper()
		got, err := readAll(b)
		if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrFormat) {
			t.Fatalf("%s at byte %d: %v", what, at, err)
		}
		if strings.ContainsAny(err.Error(), "\n") {
			t.Fatalf("%s at byte %d: more than a line: %v", what, at, err)
		}
		if !bytes.HasPrefix(log, got.log) {
			t.Fatalf("%s at byte %d: the log that was read isn't the one that was written", what, at)
		}
		return len(got.log)
	}
	longest := 0
	for at := 0; at < len(good); at += 1 + at/200 {
		bad := bytes.Clone(good)
		bad[at] ^= 0x10
		longest = max(longest, check("flip", at, bad))
		check("cut", at, good[:at])
	}
	if longest == 0 {
		t.Error("nothing before the damage was read")
	}
	if _, err := readAll(good[:len(good)-1]); err == nil || !strings.Contains(err.Error(), "cut") {
		t.Errorf("a file that was cut: %v", err)
	}
}

// TestOtherVersions refuses files of other versions, and says so.
func TestOtherVersions(t *testing.T) {
	for at, want := range map[int]string{
		8:  "its format is version 9, this program reads version 1",
		10: "its log is of version 9, this program executes version",
	} {
		b := write(t, nil, nil)
		binary.LittleEndian.PutUint16(b[at:], 9)
		binary.LittleEndian.PutUint32(b[12:], uint32(xxh3.Hash(b[:12])))
		if _, err := readAll(b); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v", err)
		}
	}
}

// TestReadAt reads blocks a second time.
func TestReadAt(t *testing.T) {
	file := bytes.NewReader(write(t, []map[int]byte{{3: 7}}, []byte("log")))
	r, err := NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	var refs []Ref
	if _, err := r.State(func(at Ref, _ Block) error { refs = append(refs, at); return nil }); err != nil {
		t.Fatal(err)
	}
	_, _, at, err := r.Log()
	if err != nil {
		t.Fatal(err)
	}
	b, err := ReadAt(file, at)
	if err != nil {
		t.Fatal(err)
	}
	if _, log, err := b.Log(); err != nil || string(log) != "log" {
		t.Errorf("%q, %v", log, err)
	}
	if b, err = ReadAt(file, refs[0]); err != nil {
		t.Fatal(err)
	}
	err = b.Pages(64, func(p int, c []byte) {
		if p != 3 || !bytes.Equal(c, content(7)) {
			t.Errorf("page %d", p)
		}
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := ReadAt(file, Ref{at.Offset, at.Number + 1}); !errors.Is(err, ErrDamaged) {
		t.Errorf("another block: %v", err)
	}
}

// FuzzRead: whatever a file holds, reading it ends with an error or the end, and
// no block is larger than the limit.
func FuzzRead(f *testing.F) {
	f.Add(write(f, []map[int]byte{{1: 1, 2: 0, 63: 3}, {1: 0}}, []byte("some log")))
	f.Add(write(f, nil, nil)[:200])
	f.Add(appendHeader(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := readAll(b)
		if err == nil && got.end == nil {
			t.Error("neither an error nor an end")
		}
	})
}

// FuzzBlock goes behind the checksum: payloads that nobody wrote.
func FuzzBlock(f *testing.F) {
	f.Add(byte(KindPages), []byte{1, 4})
	f.Add(byte(KindPages), append([]byte{1, 2}, content(1)...))
	f.Add(byte(KindEnd), make([]byte, 30))
	f.Add(byte(KindLog), make([]byte, 8))
	f.Fuzz(func(t *testing.T, kind byte, raw []byte) {
		b := Block{Kind: Kind(kind), raw: raw}
		switch b.Kind {
		case KindPages:
			last := -1
			_ = b.Pages(64, func(p int, c []byte) {
				if p <= last || p >= 64 || c != nil && len(c) != PageSize {
					t.Errorf("page %d behind %d, %d bytes", p, last, len(c))
				}
				last = p
			})
		case KindLog:
			_, _, _ = b.Log()
		case KindEnd:
			_, _ = b.end()
		}
	})
}

// TestUnfinished: whoever made it couldn't write the machine's state, and said why.
func TestUnfinished(t *testing.T) {
	var b bytes.Buffer
	w, err := NewWriter(&b, Head{VM: "db", Memory: 2 * PageSize, Machine: []byte("{}")})
	if err != nil {
		t.Fatal(err)
	}
	page := bytes.Repeat([]byte{1}, PageSize)
	if err := errors.Join(w.Pages([]int{1}, func(int) []byte { return page }), w.End(End{Why: "the VM went away"})); err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(&b)
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.State(func(Ref, Block) error { return nil })
	if !errors.Is(err, ErrUnfinished) || !strings.Contains(err.Error(), "the VM went away") {
		t.Errorf("%v", err)
	}
}
