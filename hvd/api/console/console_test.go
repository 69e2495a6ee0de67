package console

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestFrames(t *testing.T) {
	frames := []Frame{
		{Kind: Resume, A: 1, B: 1<<64 - 1},
		{Kind: Input, Data: []byte("ls\r")},
		{Kind: Input, Data: bytes.Repeat([]byte{0}, MaxInput)},
		{Kind: Hello, A: 7, B: 8},
		{Kind: Output, A: 9, Data: bytes.Repeat([]byte("x"), maxOutput)},
		{Kind: Taken, A: 10, B: 3},
	}
	var b []byte
	for _, f := range frames {
		b = f.Append(b)
	}
	if want := "\x01\x00\x10\x00\x00\x00\x00\x00\x00\x00\x01" + strings.Repeat("\xff", 8) + "\x02\x00\x03ls\r"; !bytes.HasPrefix(b, []byte(want)) {
		t.Errorf("the layout is %x", b[:len(want)])
	}
	r := bytes.NewReader(b)
	for _, want := range frames {
		got, err := Read(r)
		if err != nil || got.Kind != want.Kind || got.A != want.A || got.B != want.B || !bytes.Equal(got.Data, want.Data) {
			t.Fatalf("%v comes back as %v of %d bytes (%v)", want.Kind, got.Kind, len(got.Data), err)
		}
	}
	if _, err := Read(r); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	for _, bad := range []string{
		"\x00\x00\x00", "\x06\x00\x10" + strings.Repeat("x", 16), "\x02\x00\x00", "\x02\x04\x01" + strings.Repeat("x", 1025),
		"\x04\x00\x08" + strings.Repeat("x", 8), "\x04\xff\xff" + strings.Repeat("x", 65535), "\x05\x00\x0f" + strings.Repeat("x", 15),
	} {
		if f, err := Read(strings.NewReader(bad)); !errors.Is(err, ErrFrame) {
			t.Errorf("%.12x is read as %+v (%v)", bad, f, err)
		}
	}
	if _, err := Read(strings.NewReader("\x02\x00\x05ab")); err != io.ErrUnexpectedEOF {
		t.Errorf("a frame that is cut: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(Frame{Kind: Output, A: 1, Data: []byte("login: ")}.Append(nil))
	f.Add(Frame{Kind: Taken, A: 1, B: 1}.Append(nil))
	f.Add([]byte{2, 4, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		frame, err := Read(r)
		if err != nil {
			return
		}
		if again := frame.Append(nil); !bytes.Equal(again, b[:len(b)-r.Len()]) {
			t.Fatalf("%x is read as %+v, which is %x", b, frame, again)
		}
	})
}

// TestTypistResends loses a primary whose secondary knows of a part of what was typed, and one with all of it.
func TestTypistResends(t *testing.T) {
	var y Typist
	y.Add([]byte("root\n"))
	if lost := y.Resumed(1000); lost != 0 || string(y.Next()) != "root\n" || y.Next() != nil {
		t.Fatal("the first bytes aren't sent")
	}
	if err := y.Taken(1003, 3); err != nil || y.Waiting() != 2 {
		t.Fatalf("after 3 of 5: %d wait (%v)", y.Waiting(), err)
	}
	if lost := y.Resumed(1001); lost != 0 {
		t.Errorf("%d bytes are lost", lost)
	}
	if p := y.Next(); string(p) != "oot\n" {
		t.Errorf("the secondary, which knows 1 byte, gets %q", p)
	}
	if lost := y.Resumed(1004); lost != 0 {
		t.Errorf("%d bytes are lost", lost)
	}
	if p := y.Next(); string(p) != "\n" {
		t.Errorf("one that typed 4 without an answer gets %q", p)
	}
	if lost := y.Resumed(5e9); lost != 1 || y.Next() != nil {
		t.Errorf("a guest that was started anew: %d bytes are lost", lost)
	}
	if err := y.Taken(5e9, 1); !errors.Is(err, ErrFrame) {
		t.Errorf("an answer to nothing: %v", err)
	}
}

// TestTypistExactlyOnce types through a line of primaries, each of which dies at any time and leaves a secondary that
// lags behind. The guest must read what was typed.
func TestTypistExactlyOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var y Typist
		var want, guest, wire []byte // wire: sent and not typed
		first := rapid.Uint64().Draw(t, "first")
		answers := [][2]uint64{} // of the primary, not read yet
		y.Resumed(first)
		read := func() {
			a := answers[0]
			answers = answers[1:]
			if err := y.Taken(a[0], a[1]); err != nil {
				t.Fatal(err)
			}
		}
		typeSome := func(n int) {
			guest, wire = append(guest, wire[:n]...), wire[n:]
			answers = append(answers, [2]uint64{first + uint64(len(guest)), uint64(n)})
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				p := rapid.SliceOfN(rapid.Byte(), 1, 2*MaxInput).Draw(t, "input")
				want = append(want, p...)
				y.Add(p)
			},
			"send": func(t *rapid.T) { wire = append(wire, y.Next()...) },
			"type": func(t *rapid.T) {
				if len(wire) > 0 {
					typeSome(rapid.IntRange(1, len(wire)).Draw(t, "n"))
				}
			},
			"answer": func(t *rapid.T) {
				if len(answers) > 0 {
					read()
				}
			},
			"die": func(t *rapid.T) {
				guest = guest[:len(guest)-rapid.IntRange(0, min(len(guest), 100)).Draw(t, "lag")]
				wire, answers = nil, nil
				if lost := y.Resumed(first + uint64(len(guest))); lost != 0 {
					t.Fatalf("%d bytes are lost", lost)
				}
			},
			"": func(t *rapid.T) {
				if !bytes.HasPrefix(want, guest) {
					t.Fatalf("the guest read %q of %q", guest, want)
				}
				if len(wire) > Window {
					t.Fatalf("%d bytes are on their way", len(wire))
				}
			},
		})
		for len(guest) < len(want) {
			for p := y.Next(); p != nil; p = y.Next() {
				wire = append(wire, p...)
			}
			if len(wire) > 0 {
				typeSome(len(wire))
			}
			if len(answers) == 0 {
				t.Fatalf("%d bytes were never sent", len(want)-len(guest))
			}
			read()
		}
		if !bytes.Equal(guest, want) {
			t.Fatalf("the guest read %q of %q", guest, want)
		}
	})
}

func TestBacklog(t *testing.T) {
	b := NewBacklog(9)
	b.Append([]byte("hello"))
	for _, c := range []struct{ screen, offset, want uint64 }{{9, 2, 2}, {9, 5, 5}, {9, 6, 0}, {8, 2, 0}, {0, 0, 0}} {
		if got := b.Start(c.screen, c.offset); got != c.want {
			t.Errorf("screen %d from %d: starts at %d, want %d", c.screen, c.offset, got, c.want)
		}
	}
	if from, p := b.Next(3); from != 3 || string(p) != "lo" {
		t.Errorf("from 3 on: %q at %d", p, from)
	}
	if from, p := b.Next(5); from != 5 || len(p) != 0 {
		t.Errorf("at the end: %q at %d", p, from)
	}
	total := 5
	for i := range 5 * MaxBacklog / 1000 {
		b.Append(bytes.Repeat([]byte{byte(i)}, 1000))
		total += 1000
		if cap(b.buf) > 4*MaxBacklog {
			t.Fatalf("it holds %d bytes", cap(b.buf))
		}
	}
	from, p := b.Next(0)
	if from != uint64(total-MaxBacklog) || len(p) != maxOutput || len(b.Tail()) != MaxBacklog {
		t.Errorf("after %d bytes: %d bytes from %d on, a tail of %d", total, len(p), from, len(b.Tail()))
	}
	if !bytes.HasPrefix(b.Tail(), p) {
		t.Error("the tail begins with other bytes than what a client gets")
	}
}
