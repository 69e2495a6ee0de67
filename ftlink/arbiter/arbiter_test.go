package arbiter

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/duet-ft/duet/ftlink/pair"
	"pgregory.net/rapid"
)

var vm = pair.UUID{1, 2, 3}

func blocks() []pair.Block {
	n := pair.Nonce{Incarnation: 7, N: 9}
	return []pair.Block{
		{VM: vm, Kind: pair.Free, Epoch: 1, Nonce: n},
		{VM: vm, Kind: pair.Solo, Epoch: 2, Owner: 10, Nonce: n},
		{VM: vm, Kind: pair.Pair, Epoch: 1 << 60, Owner: 10, Secondary: 11, Seed: pair.Seed{Incarnation: 7, N: 1}, Nonce: n},
	}
}

func TestLayout(t *testing.T) {
	for _, size := range []int{512, 4096} {
		for _, b := range blocks() {
			p := Encode(b, size)
			if len(p) != size {
				t.Fatalf("%d bytes, want %d", len(p), size)
			}
			got, err := Decode(p)
			if err != nil || got != b {
				t.Fatalf("%v became %v, %v", b, got, err)
			}
		}
	}
	p := Encode(blocks()[2], 512)
	want := append([]byte("DUETARB\x00"), 0, 1, 3, 0, 0, 0, 0, 0, 1, 2, 3)
	if !bytes.Equal(p[:len(want)], want) || p[39] != 0 || p[32] != 0x10 || p[47] != 10 || p[55] != 11 || p[79] != 7 || p[87] != 9 {
		t.Fatalf("layout changed: % x", p[:88])
	}
}

func TestEveryFlippedBitIsFound(t *testing.T) {
	good := Encode(blocks()[2], 1024)
	for i := range good {
		for bit := range 8 {
			p := bytes.Clone(good)
			p[i] ^= 1 << bit
			if b, err := Decode(p); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("bit %d of byte %d: %v, %v", bit, i, b, err)
			}
		}
	}
	if _, err := Decode(make([]byte, 512)); !errors.Is(err, ErrBlank) {
		t.Fatalf("zeros: %v", err)
	}
}

func TestContradictionsAreRefused(t *testing.T) {
	for _, b := range []pair.Block{
		{Kind: pair.Free, Epoch: 1, Owner: 1},
		{Kind: pair.Free},
		{Kind: pair.Solo, Epoch: 1},
		{Kind: pair.Solo, Epoch: 1, Owner: 1, Secondary: 2},
		{Kind: pair.Pair, Epoch: 1, Owner: 1, Secondary: 1, Seed: pair.Seed{N: 1}},
		{Kind: pair.Pair, Epoch: 1, Owner: 1, Secondary: 2},
		{Kind: 4, Epoch: 1},
	} {
		if _, err := Decode(Encode(b, 512)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%+v: %v", b, err)
		}
	}
}

// FuzzDecode: no input panics, and what decodes has that one encoding.
func FuzzDecode(f *testing.F) {
	for _, b := range blocks() {
		f.Add(Encode(b, 512))
	}
	f.Add(make([]byte, 512))
	f.Add([]byte("DUETARB"))
	f.Fuzz(func(t *testing.T, p []byte) {
		if b, err := Decode(p); err == nil && !bytes.Equal(Encode(b, len(p)), p) {
			t.Fatalf("%v has two encodings", b)
		}
	})
}

var errLost = errors.New("the connection broke")

// volume is a block with faults: the next operations fail as listed.
type volume struct {
	block  []byte
	writes int
	faults []fault
}

type fault uint8

const (
	none     fault = iota
	unsent         // error, nothing happens
	lost           // happens, reply lost
	readBad        // read fails
	miscount       // miscompare although equal
)

func (v *volume) next() fault {
	if len(v.faults) == 0 {
		return none
	}
	f := v.faults[0]
	v.faults = v.faults[1:]
	return f
}

func (v *volume) Read(_ context.Context, lba uint64, p []byte) error {
	if v.next() == readBad {
		return errLost
	}
	copy(p, v.block)
	return nil
}

func (v *volume) CompareAndWrite(_ context.Context, lba uint64, old, new []byte) (bool, error) {
	f := v.next()
	switch {
	case f == unsent:
		return false, errLost
	case f == miscount || !bytes.Equal(v.block, old):
		return false, nil
	}
	v.block = bytes.Clone(new)
	v.writes++
	if f == lost {
		return false, errLost
	}
	return true, nil
}

func TestSwap(t *testing.T) {
	bs := blocks()
	old, mine, theirs := bs[0], bs[1], bs[2]
	for _, c := range []struct {
		name   string
		holds  pair.Block
		faults []fault
		want   pair.Answer
		block  pair.Block
	}{
		{"plain", old, nil, pair.Swapped, mine},
		{"somebody was faster", theirs, nil, pair.Current, theirs},
		{"reply lost, it happened", old, []fault{lost}, pair.Swapped, mine},
		{"never sent", old, []fault{unsent}, pair.Unknown, pair.Block{}},
		{"never sent and somebody was faster", theirs, []fault{unsent}, pair.Current, theirs},
		{"reply lost, read back fails", old, []fault{lost, readBad}, pair.Unknown, pair.Block{}},
		{"an earlier attempt landed", mine, nil, pair.Swapped, mine},
		{"miscompare, read back fails", theirs, []fault{none, readBad}, pair.Unknown, pair.Block{}},
		{"the volume contradicts itself", old, []fault{miscount}, pair.Unknown, pair.Block{}},
	} {
		v := &volume{block: Encode(c.holds, 512), faults: c.faults}
		x := &Executor{Blocks: v, Size: 512, VM: vm}
		got := x.Do(context.Background(), pair.Arbiter{Op: 5, Kind: pair.Swap, Old: old, New: mine})
		if got.Op != 5 || got.Answer != c.want || got.Block != c.block || (got.Err != nil) != (c.want == pair.Unknown) {
			t.Errorf("%s: got %+v", c.name, got)
		}
	}
}

// TestRetriedSwapWinsOnce: two hosts retry their swaps through any faults until
// they know the outcome; exactly one wins, and both agree who.
func TestRetriedSwapWinsOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old := blocks()[0]
		v := &volume{block: Encode(old, 512)}
		for range rapid.IntRange(0, 12).Draw(t, "faults") {
			v.faults = append(v.faults, fault(rapid.IntRange(0, 4).Draw(t, "fault")))
		}
		x := &Executor{Blocks: v, Size: 512, VM: vm}
		var result [2]pair.ArbiterDone
		var known [2]bool
		for turn := 0; !known[0] || !known[1]; turn++ {
			i := rapid.IntRange(0, 1).Draw(t, "host")
			if known[i] || turn > 100 {
				i = 1 - i
			}
			n := pair.Block{
				VM: vm, Kind: pair.Solo, Epoch: 2, Owner: pair.HostID(10 + i),
				Nonce: pair.Nonce{Incarnation: uint64(100 + i), N: 1},
			}
			result[i] = x.Do(context.Background(), pair.Arbiter{Kind: pair.Swap, Old: old, New: n})
			known[i] = result[i].Answer != pair.Unknown
		}
		if v.writes != 1 || (result[0].Answer == pair.Swapped) == (result[1].Answer == pair.Swapped) ||
			result[0].Block != result[1].Block {
			t.Fatalf("%d writes, %+v, %+v", v.writes, result[0], result[1])
		}
	})
}

func TestRead(t *testing.T) {
	ctx := context.Background()
	v := &volume{block: make([]byte, 512)}
	x := &Executor{Blocks: v, Size: 512, VM: vm}
	if got := x.Do(ctx, pair.Arbiter{Kind: pair.Read}); got.Answer != pair.Unknown || !errors.Is(got.Err, ErrBlank) {
		t.Fatalf("blank: %+v", got)
	}
	free := blocks()[0]
	v.block = Encode(free, 512)
	if got := x.Do(ctx, pair.Arbiter{Kind: pair.Read}); got.Answer != pair.Current || got.Block != free {
		t.Fatalf("a FREE block: %+v", got)
	}
	other := &Executor{Blocks: v, Size: 512, VM: pair.UUID{9}}
	if _, err := other.Read(ctx); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("another VM's block was taken: %v", err)
	}
	copy(v.block, "EFI PART")
	if _, err := x.Read(ctx); !errors.Is(err, ErrCorrupt) || v.writes != 0 {
		t.Fatalf("somebody's data was taken: %v", err)
	}
}
