package event

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// golden pins the layout: a change here is a change of Version.
func TestLayout(t *testing.T) {
	entries := []Entry{
		{Pos: 100, Kind: Deadline},
		{Pos: 102, Kind: Time, Now: 1300},
		{Pos: 202, Kind: DiskDone, Disk: 1, ID: 300, Status: 2, Data: []byte{0xaa}},
		{Pos: 202, Kind: Stop, Traps: 77},
		{Pos: 203, Kind: Mark, Hash: 0x01020304},
		{Pos: 203, Kind: Frame, Data: []byte{1, 2, 3}},
		{Pos: 203, Kind: Power},
		{Pos: 203, Kind: Live, ID: 9},
		{Pos: 204, Kind: Digest, Data: []byte{5, 6}},
		{Pos: 304, Kind: Digest, Data: []byte{7}},
		{Pos: 305, Kind: Traps, Set: 22, Every: 300},
		{Pos: 307, Kind: DiskRef, Disk: 1, ID: 300, Data: []byte{8, 9}},
		{Pos: 308, Kind: Point, Count: 300, RIP: 0xffffffff81000010, RCX: 1, Regs: 0x0102030405060708},
	}
	want := "02" + "21ac02" + "f45501ac020201aa" + "090d" + "1b04030201" + "0303010203" + "08" + "0c09" +
		"1010020506" + "f010550107" + "1e16ac02" + "201101ac02020809" +
		"1012ac0210000081ffffffff010807060504030201"
	base := Base{Pos: 100, Now: 1000, Traps: 64}
	enc, dec := NewEncoder(base), NewDecoder(base)
	var b []byte
	for _, e := range entries {
		b = enc.Append(b, e)
	}
	if got := hex.EncodeToString(b); got != want {
		t.Errorf("layout\n got %s\nwant %s", got, want)
	}
	for i, want := range entries {
		got, n, err := dec.Next(b)
		if err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("entry %d (-want +got):\n%s", i, d)
		}
		b = b[n:]
	}
	if len(b) != 0 {
		t.Errorf("%d bytes left", len(b))
	}
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base := Base{
			Pos:   rapid.Uint64Range(0, 1<<40).Draw(t, "pos"),
			Now:   rapid.Uint64Range(0, 1<<60).Draw(t, "now"),
			Traps: rapid.Uint64Range(0, 1<<40).Draw(t, "traps"),
		}
		enc, dec := NewEncoder(base), NewDecoder(base)
		var b []byte
		var want []Entry
		cur := base
		for range rapid.IntRange(1, 20).Draw(t, "n") {
			cur.Pos += rapid.SampledFrom([]uint64{0, 1, 14, 15, 16, 1000, 1 << 33}).Draw(t, "delta")
			e := Entry{Pos: cur.Pos, Kind: rapid.SampledFrom([]Kind{Time, Deadline, Frame, DiskDone, Vsock, VsockReset, Console, Power, Stop, Resync, Mark, Live, Jump, Traps, Behind, Digest, DiskRef, Point}).Draw(t, "kind")}
			data := rapid.SliceOfN(rapid.Byte(), 1, 40).Draw(t, "data")
			switch e.Kind {
			case Time, Jump:
				cur.Now += rapid.Uint64Range(0, 1<<40).Draw(t, "dnow")
				e.Now = cur.Now
			case DiskDone:
				e.Disk, e.ID, e.Status, e.Data = 3, rapid.Uint64().Draw(t, "id"), 1, data
			case DiskRef:
				e.Disk, e.ID, e.Data = 255, rapid.Uint64().Draw(t, "id"), data
			case Frame, Vsock, Console, Resync, Digest:
				e.Data = data
			case Stop:
				cur.Traps += rapid.Uint64Range(0, 1<<30).Draw(t, "dtraps")
				e.Traps = cur.Traps
			case Mark:
				e.Hash = rapid.Uint32().Draw(t, "hash")
			case Live:
				e.ID = rapid.Uint64().Draw(t, "epoch")
			case Traps:
				e.Set, e.Every = rapid.Uint64().Draw(t, "set"), rapid.Uint64().Draw(t, "every")
			case Point:
				e.Count, e.RIP = rapid.Uint64().Draw(t, "count"), rapid.Uint64().Draw(t, "rip")
				e.RCX, e.Regs = rapid.Uint64().Draw(t, "rcx"), rapid.Uint64().Draw(t, "regs")
			}
			want = append(want, e)
			b = enc.Append(b, e)
		}
		for i := range want {
			got, n, err := dec.Next(b)
			if err != nil {
				t.Fatalf("entry %d: %v", i, err)
			}
			if d := cmp.Diff(want[i], got); d != "" {
				t.Fatalf("entry %d (-want +got):\n%s", i, d)
			}
			b = b[n:]
		}
	})
}

// TestPartial: whatever part of an entry is there, the decoder asks for more.
func TestPartial(t *testing.T) {
	whole := NewEncoder(Base{}).Append(nil, Entry{Pos: 300, Kind: DiskDone, Disk: 1, ID: 300, Data: make([]byte, 200)})
	dec := NewDecoder(Base{})
	for n := range whole {
		if _, _, err := dec.Next(whole[:n]); !errors.Is(err, ErrPartial) {
			t.Fatalf("%d of %d bytes: %v, want ErrPartial", n, len(whole), err)
		}
	}
	if _, n, err := dec.Next(whole); err != nil || n != len(whole) {
		t.Errorf("all %d bytes: took %d, %v", len(whole), n, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{0x02, 0x21, 0xac, 0x02})
	f.Add([]byte{0x1e, 0x16, 0xac, 0x02})
	f.Add([]byte{0x02, 0x0f, 0x1f})
	f.Add([]byte{0x10, 0x12, 0xac, 0x02, 0x10, 0, 0, 0x81, 0xff, 0xff, 0xff, 0xff, 0x01, 8, 7, 6, 5, 4, 3, 2, 1})
	f.Add([]byte{0xf4, 0x55, 0x01, 0xac, 0x02, 0x02, 0x01, 0xaa})
	f.Add([]byte{0x20, 0x11, 0x01, 0xac, 0x02, 0x02, 0x08, 0x09})
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Add([]byte{0xf1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		dec, enc := NewDecoder(Base{}), NewEncoder(Base{})
		for len(b) > 0 {
			e, n, err := dec.Next(b)
			if err != nil {
				if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrPartial) {
					t.Fatalf("error %v is neither ErrCorrupt nor ErrPartial", err)
				}
				return
			}
			// What was understood survives a second trip, though foreign
			// bytes may have used longer varints than ours.
			again, _, err := NewDecoder(encBase(enc)).Next(enc.Append(nil, e))
			if err != nil || !same(e, again) {
				t.Fatalf("%+v became %+v (%v)", e, again, err)
			}
			b = b[n:]
		}
	})
}

func encBase(e *Encoder) Base { return e.base }

func same(a, b Entry) bool {
	x, y := a.Data, b.Data
	a.Data, b.Data = nil, nil
	return cmp.Equal(a, b) && bytes.Equal(x, y)
}
