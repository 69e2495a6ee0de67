package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/image/guest"
	"github.com/duet-ft/duet/image/lab"
	"github.com/duet-ft/duet/image/workload"
)

// TestRunsAreDrawn checks that seeds reach every workload on every kernel with all timers, and that each run is in one
// batch, boots first.
func TestRunsAreDrawn(t *testing.T) {
	const n = 3000
	var runs []run
	kinds := map[string]int{}
	for seed := range uint64(n) {
		r := runOf(seed, run{})
		if r != runOf(seed, run{}) {
			t.Fatalf("seed %d is drawn in two ways", seed)
		}
		runs = append(runs, r)
		kinds[r.workload+r.kernel+r.timers]++
	}
	if len(kinds) != len(workloads)*len(kernels)*len(timers) {
		t.Errorf("%d kinds of runs are drawn", len(kinds))
	}
	seen := 0
	for _, b := range batches(runs) {
		seen += len(b)
		if len(b) > maxBatch {
			t.Errorf("a batch of %d runs", len(b))
		}
		for i, r := range b {
			if r.kernel != b[0].kernel || r.timers != b[0].timers {
				t.Errorf("%+v and %+v share a host", r, b[0])
			}
			if i > 0 && rank(r) < rank(b[i-1]) {
				t.Errorf("%+v comes behind %+v", r, b[i-1])
			}
		}
	}
	if seen != n {
		t.Errorf("%d of %d runs are in batches", seen, n)
	}
	if r := runOf(1, run{workload: "redis", kernel: "6.1.", timers: "oneshot"}); r != (run{1, "redis", "6.1.", "oneshot", false}) {
		t.Errorf("fixed, and drawn as %+v", r)
	}
}

// TestScripts checks that each workload that is drawn is there.
func TestScripts(t *testing.T) {
	for _, w := range workloads {
		if w.name == boot {
			continue
		}
		b, err := workload.Script(w.name)
		if err != nil || !strings.HasPrefix(string(b), "#!/bin/") {
			t.Errorf("%s is no script: %v", w.name, err)
		}
	}
}

// TestSoak is a small soak: some runs are equal, and the last, whose replica was changed, is found to be different.
func TestSoak(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped with -short: boots a machine in QEMU")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skipf("qemu-system-x86_64 is missing: install the packages %v", lab.Missing())
	}
	const runs = 3
	var out strings.Builder
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	err := soak(ctx, options{
		root: "../..", runs: runs, seed: testSeed, fixed: run{kernel: "6.12.", timers: "periodic"}, core: 1, mib: 1,
		fault: true, keep: filepath.Join(t.TempDir(), "kept"),
	}, io.MultiWriter(&out, t.Output()))
	if errors.Is(err, guest.ErrUnavailable) {
		t.Skip(err)
	}
	if said := out.String(); err == nil || !strings.Contains(said, fmt.Sprintf("%d of %d runs equal", runs-1, runs)) ||
		!strings.Contains(said, "differ") {
		t.Errorf("the soak ended with: %v", err)
	}
}

// testSeed is where the seeds of TestSoak's runs begin: a Go program, then SQLite.
const testSeed = 7

func TestTally(t *testing.T) {
	var out strings.Builder
	seen := newTally(&out)
	for _, part := range []string{
		"=== RUN   TestSoak\r\nrun: redis seed 7 kernel 6.1.0-1 timers oneshot: 12 exits: eq", "ual\r\nPASS\r\n",
		"run: boot seed 9 kernel 6.12 timers periodic: 12 exits: it differs\nNESTED EXIT 0\n",
	} {
		if _, err := io.WriteString(seen, part); err != nil {
			t.Fatal(err)
		}
	}
	want := "1 run: redis seed 7 kernel 6.1.0-1 timers oneshot: 12 exits: equal\nrun: boot seed 9 kernel 6.12 timers periodic: 12 exits: it differs\n"
	if out.String() != want || seen.runs != 1 {
		t.Errorf("%d runs, printed %q", seen.runs, out.String())
	}
	if s := seen.summary(); !strings.Contains(s, "redis") || strings.Contains(s, "boot") {
		t.Errorf("summary %q", s)
	}
}
