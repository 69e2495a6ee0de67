package wire

import (
	"bytes"
	"errors"
	"testing"
)

func TestWantAndBlocks(t *testing.T) {
	const request = 1<<64 - 1
	disk, id, err := ParseWant(AppendWant(nil, 255, request))
	if err != nil || disk != 255 || id != request {
		t.Errorf("want: %d, %d, %v", disk, id, err)
	}
	for _, n := range []int{1, MaxBlocks} {
		b := AppendBlocks(nil, 3, 300, bytes.Repeat([]byte{7}, n))
		if err := (Frame{Type: TypeBlocks, Payload: b}).Check(); err != nil {
			t.Error(err)
		}
		disk, id, data, err := ParseBlocks(b)
		if err != nil || disk != 3 || id != 300 || len(data) != n || data[0] != 7 {
			t.Errorf("blocks: %d, %d, %d bytes, %v", disk, id, len(data), err)
		}
	}
	for _, bad := range [][]byte{nil, {1}, {0x80, 0x02, 1}, {1, 0x80}, {1, 2, 3}} {
		if _, _, err := ParseWant(bad); !errors.Is(err, ErrFrame) {
			t.Errorf("want %x: %v", bad, err)
		}
	}
	for _, bad := range [][]byte{nil, {1}, {1, 2}, {0x80, 0x02, 1, 1}, AppendBlocks(nil, 1, 1, make([]byte, MaxBlocks+1))} {
		if _, _, _, err := ParseBlocks(bad); !errors.Is(err, ErrFrame) {
			t.Errorf("blocks of %d bytes: %v", len(bad), err)
		}
	}
}

func FuzzBlocks(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{1, 2})
	f.Add(AppendBlocks(nil, 1, 300, []byte("data")))
	f.Add(bytes.Repeat([]byte{0xff}, 30))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, err := ParseWant(b); err != nil && !errors.Is(err, ErrFrame) {
			t.Fatalf("%v isn't ErrFrame", err)
		}
		disk, request, data, err := ParseBlocks(b)
		if err != nil {
			if !errors.Is(err, ErrFrame) {
				t.Fatalf("%v isn't ErrFrame", err)
			}
			return
		}
		d, r, again, err := ParseBlocks(AppendBlocks(nil, disk, request, data))
		if err != nil || d != disk || r != request || !bytes.Equal(again, data) {
			t.Fatalf("%x became disk %d, request %d, %x, %v", b, d, r, again, err)
		}
	})
}
