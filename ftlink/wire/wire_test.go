package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// TestGolden pins the bytes of each kind of frame.
func TestGolden(t *testing.T) {
	hello, err := AppendHello(nil, Hello{Version: 1, Host: "a", VM: "u", Incarnation: 7})
	if err != nil {
		t.Fatal(err)
	}
	page := func(n int) []byte {
		b := make([]byte, PageSize)
		if n == 5 {
			// Noise, so that the coding is plain.
			r := rand.New(rand.NewPCG(1, 2))
			for i := range b {
				b[i] = byte(r.Uint32())
			}
		}
		return b
	}
	pages, err := AppendPages(nil, []int{3, 4, 5, 1000}, page)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{"hello", hello, "01000000" + "31000000" + hex.EncodeToString([]byte(`{"version":1,"host":"a","vm":"u","incarnation":7}`))},
		{"log", AppendLog(nil, 0x1122, []byte("abc")), "02000000" + "0b000000" + "2211000000000000" + "616263"},
		{"ack", AppendAck(nil, 9, 8), "03000000" + "10000000" + "0900000000000000" + "0800000000000000"},
		{"bye", Append(nil, Frame{Type: TypeBye, Payload: []byte("x")}), "09000000" + "01000000" + "78"},
		{"pages", pages, "00" + "04" + "06" + "00" + "01" + "c40f" + hex.EncodeToString(page(5))},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s:\n got %.120s\nwant %.120s", c.name, got, c.want)
		}
	}
}

// TestGoldenCompressed decodes log bytes that were compressed once and for
// all: a later library must still read them.
func TestGoldenCompressed(t *testing.T) {
	// zstd frame: single segment, 200 bytes, one RLE block of 'z'.
	payload, err := hex.DecodeString("0500000000000000" + "c8000000" + "28b52ffd" + "20c8" + "430600" + "7a")
	if err != nil {
		t.Fatal(err)
	}
	lsn, log, err := ParseLog(Frame{TypeLog, FlagZstd, payload}, nil)
	if err != nil || lsn != 5 || string(log) != strings.Repeat("z", 200) {
		t.Fatalf("lsn %d, %d bytes, %v", lsn, len(log), err)
	}
}

func TestFramesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var stream []byte
		var want []Frame
		for range rapid.IntRange(0, 20).Draw(t, "frames") {
			f := Frame{Type: Type(rapid.IntRange(1, int(types)-1).Draw(t, "type"))}
			f.Payload = rapid.SliceOfN(rapid.Byte(), 0, min(f.Type.Limit(), 100)).Draw(t, "payload")
			stream = Append(stream, f)
			want = append(want, f)
		}
		// One byte at a time: frames don't depend on how reads fall.
		r := NewReader(iotest.OneByteReader(bytes.NewReader(stream)))
		for i, w := range want {
			got, err := r.Next()
			if err != nil {
				t.Fatalf("frame %d: %v", i, err)
			}
			if got.Type != w.Type || !bytes.Equal(got.Payload, w.Payload) {
				t.Fatalf("frame %d: %v, want %v", i, got, w)
			}
		}
		if _, err := r.Next(); err != io.EOF {
			t.Fatalf("after the last frame: %v, want EOF", err)
		}
	})
}

func TestReaderRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		in   string
		want error
	}{
		{"unknown type", "7f00000000000000", ErrFrame},
		{"type 0", "0000000000000000", ErrFrame},
		{"flags", "0301000010000000", ErrFrame},
		{"reserved", "0300010010000000", ErrFrame},
		{"above the type's limit", "0300000011000000", ErrFrame},
		{"above every limit", "06000000ffffffff", ErrFrame},
		{"cut in the header", "0300", io.ErrUnexpectedEOF},
		{"cut behind the header", "0300000010000000", io.ErrUnexpectedEOF},
		{"cut in the payload", "030000001000000011", io.ErrUnexpectedEOF},
	} {
		in, err := hex.DecodeString(c.in)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := NewReader(bytes.NewReader(in)).Next(); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// readAll decodes a stream of Log frames, which must follow on each other.
func readAll(t testing.TB, stream []byte, lsn uint64) (log []byte, frames, compressed int) {
	t.Helper()
	r := NewReader(bytes.NewReader(stream))
	var buf []byte
	for {
		f, err := r.Next()
		if err == io.EOF {
			return log, frames, compressed
		}
		if err != nil {
			t.Fatal(err)
		}
		at, part, err := ParseLog(f, buf)
		if err != nil {
			t.Fatal(err)
		}
		if want := lsn + uint64(len(log)); at != want {
			t.Fatalf("frame at LSN %d, want %d", at, want)
		}
		log = append(log, part...)
		frames++
		compressed += int(f.Flags & FlagZstd)
		buf = part
	}
}

func TestLog(t *testing.T) {
	noise := make([]byte, 2*MaxLog+10)
	r := rand.New(rand.NewPCG(3, 4))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	for _, c := range []struct {
		name               string
		log                []byte
		frames, compressed int
	}{
		{"nothing", nil, 0, 0},
		{"a tick", noise[:5], 1, 0},
		{"a text", []byte(strings.Repeat("interrupt ", 30)), 1, 1},
		{"noise", noise[:1000], 1, 0},
		{"more than a frame holds", noise, 3, 0},
		{"the same, repetitive", make([]byte, 2*MaxLog+10), 3, 2},
	} {
		stream := AppendLog([]byte{}, 77, c.log)
		log, frames, compressed := readAll(t, stream, 77)
		if !bytes.Equal(log, c.log) || frames != c.frames || compressed != c.compressed {
			t.Errorf("%s: %d bytes, %d frames, %d compressed; want %d, %d, %d", c.name,
				len(log), frames, compressed, len(c.log), c.frames, c.compressed)
		}
		if limit := len(c.log) + frames*(HeaderSize+lsnSize); len(stream) > limit {
			t.Errorf("%s: grew to %d bytes, want at most %d", c.name, len(stream), limit)
		}
	}
}

func TestParseLogRefuses(t *testing.T) {
	for _, c := range []struct {
		name, payload string
		flags         uint8
	}{
		{"no LSN", "00000000000000", 0},
		{"no bytes", "0000000000000000", 0},
		{"LSN runs over", "ffffffffffffffff" + "0102", 0},
		{"no length", "0000000000000000" + "c80000", FlagZstd},
		{"length 0", "0000000000000000" + "00000000", FlagZstd},
		{"length above the limit", "0000000000000000" + "01001000" + "28b52ffd", FlagZstd},
		{"no zstd frame", "0000000000000000" + "c8000000" + "00112233", FlagZstd},
		{"longer than said", "0000000000000000" + "c7000000" + "28b52ffd" + "20c8" + "430600" + "7a", FlagZstd},
		{"shorter than said", "0000000000000000" + "c9000000" + "28b52ffd" + "20c8" + "430600" + "7a", FlagZstd},
	} {
		payload, err := hex.DecodeString(c.payload)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := ParseLog(Frame{TypeLog, c.flags, payload}, nil); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v, want ErrFrame", c.name, err)
		}
	}
}

func TestAck(t *testing.T) {
	f, err := NewReader(bytes.NewReader(AppendAck(nil, 1<<40, 12))).Next()
	if err != nil {
		t.Fatal(err)
	}
	received, verified, err := ParseAck(f)
	if err != nil || received != 1<<40 || verified != 12 {
		t.Errorf("%d, %d, %v", received, verified, err)
	}
	f, _ = NewReader(bytes.NewReader(AppendAck(nil, 12, 13))).Next()
	if _, _, err := ParseAck(f); !errors.Is(err, ErrFrame) {
		t.Errorf("executed beyond received: %v, want ErrFrame", err)
	}
	if _, _, err := ParseAck(Frame{Type: TypeAck}); !errors.Is(err, ErrFrame) {
		t.Errorf("empty: %v, want ErrFrame", err)
	}
}

func TestHello(t *testing.T) {
	want := Hello{Version: Version, Host: "alpha", VM: "4f6c", Incarnation: 1<<64 - 1, Role: "primary"}
	b, err := AppendHello(nil, want)
	if err != nil {
		t.Fatal(err)
	}
	f, err := NewReader(bytes.NewReader(b)).Next()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseHello(f)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if _, err := AppendHello(nil, Hello{Host: strings.Repeat("a", MaxName+1)}); !errors.Is(err, ErrFrame) {
		t.Errorf("long name: %v, want ErrFrame", err)
	}
	long := `{"host":"` + strings.Repeat("a", MaxName+1) + `"}`
	for _, s := range []string{"", "{", "[]", long} {
		if _, err := ParseHello(Frame{Type: TypeHello, Payload: []byte(s)}); !errors.Is(err, ErrFrame) {
			t.Errorf("%.20q: %v, want ErrFrame", s, err)
		}
	}
}
