package board

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/duet-ft/duet/hvd/mem"
)

// act is what a guest does next: it ends its innermost handler, or lets interrupts
// in, or it makes an exit at which interrupts come.
type act struct {
	eoi, on, off bool
	come         []uint8
	behind       bool
}

// modelGuest carries out acts on a board as hvd/machine would run it.
type modelGuest struct {
	t       *testing.T
	b       *Board
	m       *mem.Memory
	at      int // the act
	on      bool
	window  bool // an exit is asked for where interrupts are let in
	serving []int
	took    []string
	exits   int
	byFlag  int
	nested  int
}

// exit is a position.
func (g *modelGuest) exit(answer func(), behind bool) {
	g.exits++
	g.b.TakeEOI()
	answer()
	taken := g.b.Pending() && g.on
	if taken {
		v := g.b.Ack()
		g.took = append(g.took, fmt.Sprintf("%#x at %d", v, g.at))
		g.serving = append(g.serving, int(v))
		g.on = false
		if len(g.serving) > 1 {
			g.nested++
		}
	}
	leave := g.b.OfferEOI(taken, behind)
	g.window = leave || g.b.Pending()
}

func (g *modelGuest) run(acts []act) {
	for i, a := range acts {
		g.at = i
		for n := 0; g.window && g.on; n++ {
			if n == 10 {
				g.t.Fatalf("act %d: the guest doesn't get on", i)
			}
			g.exit(func() {}, false)
		}
		switch {
		case a.eoi && len(g.serving) > 0:
			g.serving = g.serving[:len(g.serving)-1]
			if flagByte(g.t, g.m) == 1 {
				_ = g.m.Write(flagAt, []byte{0})
				g.byFlag++
			} else {
				g.exit(func() { g.b.MMIOWrite(apicEOI, 4, 0) }, false)
			}
		case a.on, a.off:
			g.on = a.on
		case len(a.come) > 0:
			g.exit(func() {
				for _, v := range a.come {
					interrupt(g.b, v)
				}
			}, a.behind)
		}
	}
	g.exit(func() {}, false)
}

// TestEOIModel runs a guest that ends its interrupts by the flag where it may, and
// the same guest without a flag, which makes an exit for each. Both must take the
// same interrupts at the same places, whatever nests, waits or is held back.
func TestEOIModel(t *testing.T) {
	var byFlag, nested, exits, without int
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 3))
		acts := make([]act, 400)
		for i := range acts {
			switch r.IntN(6) {
			case 0, 1:
				acts[i].eoi = true
			case 2, 3:
				acts[i].on = true
			case 4:
				acts[i].off = r.IntN(3) == 0
			default:
				for range 1 + r.IntN(2) {
					acts[i].come = append(acts[i].come, uint8(0x40+r.IntN(6)*8))
				}
				acts[i].behind = r.IntN(4) == 0
			}
		}
		a := &modelGuest{t: t, on: true}
		b := &modelGuest{t: t, on: true}
		a.b, a.m = eoiBoard(t)
		b.b, b.m = eoiBoard(t)
		b.b.SetEOIFlag(0)
		a.run(acts)
		b.run(acts)
		if !slices.Equal(a.took, b.took) {
			for i := range a.took {
				if i >= len(b.took) || a.took[i] != b.took[i] {
					t.Fatalf("seed %d: took %v, without a flag %v", seed, a.took[:i+1], b.took[:min(i+1, len(b.took))])
				}
			}
			t.Fatalf("seed %d: took %v, without a flag %v", seed, a.took, b.took)
		}
		if x, y := inService(a.b), inService(b.b); !slices.Equal(x, y) || len(x) != len(a.serving) {
			t.Fatalf("seed %d: in service %x, %x without a flag, the guest serves %x", seed, x, y, a.serving)
		}
		byFlag, nested, exits, without = byFlag+a.byFlag, nested+a.nested, exits+a.exits, without+b.exits
	}
	t.Logf("%d EOIs by the flag, %d interrupts nested, %d exits, %d without a flag", byFlag, nested, exits, without)
	if byFlag < 5000 || nested < 1000 || exits >= without {
		t.Error("the test tests too little, or the flag spares no exit")
	}
}
