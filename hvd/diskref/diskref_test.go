package diskref

import (
	"bytes"
	"errors"
	"testing"

	"pgregory.net/rapid"
)

func TestRefRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Ref{
			Disk: rapid.IntRange(0, 15).Draw(t, "disk"), ID: rapid.Uint64().Draw(t, "request"),
			Sector: rapid.Uint64Range(0, 1<<55).Draw(t, "sector"), Len: SectorSize * rapid.IntRange(1, MaxLen/SectorSize).Draw(t, "sectors"),
		}
		copy(r.Sum[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "hash"))
		got, err := Decode(r.Disk, r.ID, r.Encode())
		if err != nil || got != r {
			t.Fatalf("%+v became %+v, %v", r, got, err)
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add(Ref{Sector: 2048, Len: 4096, Sum: SumOf([]byte("x"))}.Encode())
	f.Add(bytes.Repeat([]byte{0xff}, 40))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Decode(1, 2, b)
		if err != nil {
			if !errors.Is(err, ErrRef) {
				t.Fatalf("error %v isn't ErrRef", err)
			}
			return
		}
		if r.Len <= 0 || r.Len > MaxLen || r.Len%SectorSize != 0 {
			t.Fatalf("%+v", r)
		}
		if again, err := Decode(1, 2, r.Encode()); err != nil || again != r {
			t.Fatalf("%+v became %+v, %v", r, again, err)
		}
	})
}

// TestSteadyReads follows random requests. What Tracker calls steady must be what
// a list of all requests, with the times at which they were pending, says.
func TestSteadyReads(t *testing.T) {
	type past struct {
		Request
		from, to int
	}
	rapid.Check(t, func(t *rapid.T) {
		var tr Tracker
		var all []past
		var open []int
		for now := range rapid.IntRange(1, 60).Draw(t, "steps") {
			if len(open) == 0 || rapid.Bool().Draw(t, "issue") {
				r := Request{
					Disk: rapid.IntRange(0, 1).Draw(t, "disk"), ID: uint64(now), Write: rapid.Bool().Draw(t, "write"),
					Sector: rapid.Uint64Range(0, 12).Draw(t, "sector"), Len: SectorSize * rapid.IntRange(1, 5).Draw(t, "sectors"),
				}
				tr.Issued(r)
				open = append(open, len(all))
				all = append(all, past{r, now, 1 << 30})
				continue
			}
			k := rapid.IntRange(0, len(open)-1).Draw(t, "which")
			x := &all[open[k]]
			open = append(open[:k:k], open[k+1:]...)
			x.to = now
			want := !x.Write
			for _, w := range all {
				for s := range uint64(w.Len / SectorSize) {
					at := w.Sector + s
					inside := at >= x.Sector && at < x.Sector+uint64(x.Len/SectorSize)
					if w.Write && w.Disk == x.Disk && inside && w.to > x.from && w.from < x.to {
						want = false
					}
				}
			}
			r, steady, ok := tr.Done(x.Disk, x.ID)
			if !ok || r != x.Request || steady != want {
				t.Fatalf("%+v is done at %d: %+v, steady %t, %t; want steady %t of %+v", *x, now, r, steady, ok, want, all)
			}
		}
		if len(tr.flights) != len(open) {
			t.Fatalf("%d requests are followed, %d are open", len(tr.flights), len(open))
		}
	})
}

// TestTrackerHasALimit: beyond it nothing is steady any more.
func TestTrackerHasALimit(t *testing.T) {
	var tr Tracker
	for n := range uint64(MaxTracked) {
		tr.Issued(Request{ID: n, Sector: 8 * n, Len: 4096})
	}
	tr.Issued(Request{ID: 1 << 20, Write: true, Sector: 1 << 30, Len: 4096})
	if len(tr.flights) != MaxTracked {
		t.Errorf("%d requests are followed", len(tr.flights))
	}
	if _, _, ok := tr.Done(0, 1<<20); ok {
		t.Error("a request too many is known")
	}
	if _, steady, ok := tr.Done(0, 3); steady || !ok {
		t.Errorf("a read is steady: %t, %t, though a write isn't followed", steady, ok)
	}
	tr.Reset()
	tr.Issued(Request{ID: 1, Len: 4096})
	if _, steady, _ := tr.Done(0, 1); !steady {
		t.Error("after a reset nothing is steady")
	}
}

// TestKeeper: data is there until the log behind its entry is acknowledged.
func TestKeeper(t *testing.T) {
	var k Keeper
	for n := range uint64(3) {
		k.Keep(100*(n+1), 1, n, make([]byte, 1<<20))
	}
	if k.Room(MaxKept-3<<20+1) || !k.Room(MaxKept-3<<20) {
		t.Errorf("room for neither more nor less than %d bytes wanted", MaxKept-3<<20)
	}
	k.Acked(199)
	if _, ok := k.Data(1, 0); ok {
		t.Error("what was acknowledged is kept")
	}
	if _, ok := k.Data(1, 1); !ok {
		t.Error("what wasn't acknowledged is gone")
	}
	if _, ok := k.Data(0, 1); ok {
		t.Error("another disk's request has data")
	}
	k.Acked(300)
	if !k.Room(MaxKept) || k.kept != nil {
		t.Errorf("%d bytes are left", k.bytes)
	}
}

// TestHolder takes a holder through all that may happen to references, in any
// order, and compares it with a plain account of them.
func TestHolder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var h Holder
		var want []Ref // not taken yet
		have := map[uint64]bool{}
		var out, ask []Ref
		lsn, id := uint64(0), uint64(0)
		content := func(r Ref) []byte { return bytes.Repeat([]byte{byte(r.ID)}, r.Len) }
		pick := func(from *[]Ref) Ref {
			k := rapid.IntRange(0, len(*from)-1).Draw(t, "which")
			r := (*from)[k]
			*from = append((*from)[:k:k], (*from)[k+1:]...)
			return r
		}
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			switch what := rapid.IntRange(0, 5).Draw(t, "what"); {
			case what == 0:
				id++
				r := Ref{Disk: 1, ID: id, Len: SectorSize * rapid.IntRange(1, MaxLen/SectorSize).Draw(t, "sectors")}
				r.Sum = SumOf(content(r))
				if err := h.Add(lsn, r); err != nil {
					t.Fatal(err)
				}
				want, lsn = append(want, r), lsn+30
			case what == 1:
				out = append(out, h.Start()...)
				if len(out) > MaxReads {
					t.Fatalf("%d reads at once", len(out))
				}
			case what == 2 && len(out) > 0:
				r := pick(&out)
				if !h.Read(r, content(r)) {
					t.Fatalf("%+v has another hash", r)
				}
				have[r.ID] = true
			case what == 3 && len(out) > 0:
				r := pick(&out)
				if rapid.Bool().Draw(t, "other bytes") {
					if h.Read(r, make([]byte, r.Len)) && r.ID%256 != 0 {
						t.Fatalf("zeroes were taken for %+v", r)
					}
				} else {
					h.Failed(r)
				}
				ask = append(ask, r)
			case what == 4 && len(ask) > 0:
				r := pick(&ask)
				if err := h.Given(r.Disk, r.ID, content(r)[1:]); !errors.Is(err, ErrUnasked) {
					t.Fatalf("short data: %v", err)
				}
				if err := h.Given(r.Disk, r.ID, content(r)); err != nil {
					t.Fatal(err)
				}
				have[r.ID] = true
			case what == 5:
				data, ok := h.Take()
				if ok != (len(want) > 0 && have[want[0].ID]) {
					t.Fatalf("take: %t", ok)
				}
				if ok {
					if !bytes.Equal(data, content(want[0])) {
						t.Fatal("other data was taken")
					}
					want = want[1:]
				}
			}
			front := lsn
			for _, r := range want {
				if !have[r.ID] {
					front = 30 * (r.ID - 1)
					break
				}
			}
			if got := h.Frontier(lsn); got != front {
				t.Fatalf("frontier %d, want %d", got, front)
			}
		}
	})
}

// TestHolderHasLimits: what doesn't fit waits, or is refused.
func TestHolderHasLimits(t *testing.T) {
	var h Holder
	for n := range uint64(MaxHeld/MaxLen + 1) {
		if err := h.Add(n, Ref{ID: n, Len: MaxLen}); err != nil {
			t.Fatal(err)
		}
	}
	begun := 0
	for r := h.Start(); len(r) > 0; r = h.Start() {
		for _, x := range r {
			h.Failed(x)
		}
		begun += len(r)
	}
	if begun != MaxHeld/MaxLen || !h.Stuck() {
		t.Errorf("%d reads were begun, want %d; stuck %t", begun, MaxHeld/MaxLen, h.Stuck())
	}
	for n := len(h.queue); n < MaxWaiting; n++ {
		if err := h.Add(uint64(n), Ref{ID: uint64(n), Len: SectorSize}); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Add(1<<30, Ref{Len: SectorSize}); !errors.Is(err, ErrTooMany) {
		t.Errorf("one more: %v, want ErrTooMany", err)
	}
}
