package boottest

import (
	"context"
	"flag"
	"regexp"
	"testing"
	"time"

	"github.com/duet-ft/duet/image/matrix"
	"github.com/duet-ft/duet/image/pairlab"
)

var (
	cellsFlag     = flag.String("cells", "", "TestMatrix: run the matrix' cells whose names match")
	failoversFlag = flag.Int("failovers", 0, "TestSoakPair, and TestMatrix behind its cells: how often the guest changes hosts")
)

// quickCells runs the most telling cells of the matrix.
func (p *trial) quickCells(t *testing.T) {
	m, err := matrix.New(p.ctx, p.pair, p.load, func(line string) { t.Log(line) })
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range matrix.Cells() {
		if !c.Quick {
			continue
		}
		begin := time.Now()
		out, err := m.Run(p.ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%v (%.1f s)", out, time.Since(begin).Seconds())
	}
	p.primary = p.protected(t)
	p.alive(t)
	p.noteDivergences()
}

// startTrial makes a protected pair with a trial on it, which ends with the file system's check.
func startTrial(t *testing.T, timeout time.Duration) (context.Context, *pairlab.Pair, *matrix.Trial) {
	t.Helper()
	needPair(t)
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	t.Cleanup(cancel)
	pair, err := pairlab.Start(ctx, pairlab.Config{Dir: t.TempDir(), Proxied: true, Log: func(line string) { t.Log(line) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("the last lines of both hosts:\n" + pair.Tails())
		}
		if err := pair.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := pair.StartGuest(ctx, pairlab.Names[0]); err != nil {
		t.Fatal(err)
	}
	m, err := matrix.New(ctx, pair, nil, func(line string) { t.Log(line) })
	if err != nil {
		t.Fatal(err)
	}
	return ctx, pair, m
}

// TestMatrix runs the cells that -cells names. One that fails doesn't keep the others from being run, as long as the pair
// is protected again.
func TestMatrix(t *testing.T) {
	if *cellsFlag == "" {
		t.Skip("make matrix runs it; TestPair runs the most telling cells")
	}
	want, err := regexp.Compile(*cellsFlag)
	if err != nil {
		t.Fatal(err)
	}
	ctx, pair, m := startTrial(t, 24*time.Hour)
	var ran int
	for _, c := range matrix.Cells() {
		if !want.MatchString(c.Name()) {
			continue
		}
		ran++
		begin := time.Now()
		out, err := m.Run(ctx, c)
		if err != nil {
			t.Errorf("FAILED %v\n%s", err, pair.Tails())
			if _, err := pair.WaitProtected(ctx); err != nil {
				t.Fatal(err)
			}
			continue
		}
		t.Logf("ok %v (%.1f s)", out, time.Since(begin).Seconds())
	}
	if ran == 0 {
		t.Fatalf("no cell's name matches %s", want)
	}
	if *failoversFlag > 0 {
		if err := m.Soak(ctx, *failoversFlag); err != nil {
			t.Error(err)
		}
	}
	m.Close()
	if err := pair.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if err := pair.Fsck(ctx); err != nil {
		t.Error(err)
	}
}

// TestSoakPair has one guest change hosts again and again, and looks whether the hosts' programs grow.
func TestSoakPair(t *testing.T) {
	if *failoversFlag == 0 {
		t.Skip("make soak-pair runs it")
	}
	ctx, pair, m := startTrial(t, 24*time.Hour)
	if err := m.Soak(ctx, *failoversFlag); err != nil {
		t.Fatal(err)
	}
	m.Close()
	if err := pair.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if err := pair.Fsck(ctx); err != nil {
		t.Error(err)
	}
}
