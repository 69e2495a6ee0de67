package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"testing"
)

// FuzzReader: whatever comes, frames obey their rules and nothing panics.
func FuzzReader(f *testing.F) {
	f.Add([]byte{})
	f.Add(Append(nil, Frame{Type: TypeControl, Payload: []byte("{}")}))
	f.Add(AppendAck(AppendLog(nil, 3, make([]byte, 500)), 9, 9))
	f.Add([]byte{6, 0, 0, 0, 0, 0, 0x40, 0, 1})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := NewReader(bytes.NewReader(in))
		var out []byte
		for {
			fr, err := r.Next()
			if err != nil {
				if err != io.EOF && err != io.ErrUnexpectedEOF && !errors.Is(err, ErrFrame) {
					t.Fatalf("unexpected error %v", err)
				}
				break
			}
			if err := fr.Check(); err != nil {
				t.Fatal(err)
			}
			out = Append(out, fr)
			decodeAny(fr)
		}
		if !bytes.HasPrefix(in, out) {
			t.Fatal("encoding the frames again gives other bytes")
		}
	})
}

// decodeAny runs every decoder over a frame.
func decodeAny(f Frame) {
	_, _, _ = ParseLog(f, nil)
	_, _, _ = ParseAck(f)
	_, _ = ParseHello(f)
	_ = DecodePages(f.Payload, func(int, []byte) error { return nil })
}

// FuzzLog: what is decoded is within its limits and survives another trip.
func FuzzLog(f *testing.F) {
	f.Add(uint8(0), []byte("12345678abc"))
	f.Add(uint8(FlagZstd), AppendLog(nil, 5, make([]byte, 300))[HeaderSize:])
	f.Add(uint8(FlagZstd), AppendLog(nil, 5, bytes.Repeat([]byte("tick "), 300))[HeaderSize:])
	f.Fuzz(func(t *testing.T, flags uint8, payload []byte) {
		lsn, log, err := ParseLog(Frame{TypeLog, flags, payload}, nil)
		if err != nil {
			return
		}
		if len(log) == 0 || len(log) > MaxLog {
			t.Fatalf("%d bytes of log", len(log))
		}
		if again, _, _ := readAll(t, AppendLog(nil, lsn, log), lsn); !bytes.Equal(again, log) {
			t.Fatal("another trip changes the log")
		}
	})
}

// FuzzPages: page numbers rise, stay in bounds, and pages survive another trip.
func FuzzPages(f *testing.F) {
	for sort := range 3 {
		p, err := AppendPages(nil, []int{1, 2, 700}, func(n int) []byte { return fill(sort, uint64(n)) })
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p)
	}
	rle, _ := hex.DecodeString("010101" + "28b52ffd" + "60000f" + "038000" + "7a")
	f.Add(rle)
	f.Fuzz(func(t *testing.T, payload []byte) {
		var numbers []int
		contents := map[int][]byte{}
		if err := DecodePages(payload, func(n int, data []byte) error {
			numbers = append(numbers, n)
			contents[n] = bytes.Clone(data)
			return nil
		}); err != nil {
			if !errors.Is(err, ErrFrame) {
				t.Fatalf("unexpected error %v", err)
			}
			return
		}
		again, err := AppendPages(nil, numbers, func(n int) []byte { return contents[n] })
		if err != nil {
			t.Fatal(err)
		}
		if err := DecodePages(again, func(n int, data []byte) error {
			if !bytes.Equal(data, contents[n]) {
				t.Fatalf("another trip changes page %d", n)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	})
}
