package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/google/go-cmp/cmp"
)

func TestKillTimesFollowTheSeed(t *testing.T) {
	seen := map[time.Duration]bool{}
	for seed := uint64(1); seed <= 100; seed++ {
		d := killTimes(seed)
		if d != killTimes(seed) {
			t.Fatalf("seed %d gives different times", seed)
		}
		for _, k := range d {
			if k < killAfter || k >= killWithin {
				t.Errorf("seed %d kills after %v", seed, k)
			}
			seen[k] = true
		}
	}
	if len(seen) < 190 {
		t.Errorf("100 seeds give only %d kill times", len(seen))
	}
}

// good is a result without a fault.
func good() Result {
	r := Result{
		Seed: 7, Failovers: 2, Connections: 8, Acknowledged: 5000, SameBoot: true, Fsck: clean,
		OutageMS: []float64{300, 410.4}, SeedMS: []float64{5000, 6000, 7000},
	}
	r.OutputDelayMS.Verified = Delay{Median: 1.5, P99: 9}
	return r
}

func TestVerdict(t *testing.T) {
	if r := good(); !r.ok(false) {
		t.Error("a result without a fault fails")
	}
	for name, harm := range map[string]func(*Result){
		"a reset":             func(r *Result) { r.Resets = 1 },
		"a lost write":        func(r *Result) { r.Lost = 1 },
		"a divergence":        func(r *Result) { r.Divergences = 1 },
		"one failover only":   func(r *Result) { r.Failovers = 1 },
		"a third failover":    func(r *Result) { r.Failovers = 3 },
		"a counter back":      func(r *Result) { r.Backwards = 1 },
		"an INCR twice":       func(r *Result) { r.Doubled = 1 },
		"something unread":    func(r *Result) { r.Unread = 1 },
		"another boot":        func(r *Result) { r.SameBoot = false },
		"no clients":          func(r *Result) { r.Connections = 0 },
		"nothing written":     func(r *Result) { r.Acknowledged = 0 },
		"an error":            func(r *Result) { r.Error = "waited for Godot" },
		"a bad file system":   func(r *Result) { r.Fsck = "errors" },
		"an unchecked volume": func(r *Result) { r.Fsck = notChecked },
	} {
		r := good()
		harm(&r)
		if r.ok(false) {
			t.Errorf("%s passes", name)
		}
	}
	r := good()
	r.Fsck = notChecked
	if !r.ok(true) {
		t.Error("a pair that was left running fails, because nobody checked the volume")
	}
}

func TestResultLine(t *testing.T) {
	line, ok := strings.CutPrefix(good().line(), "RESULT ")
	if !ok || strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") {
		t.Fatalf("not one line: %q", line)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(line), &got); err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{
		"failovers", "connections", "resets", "acknowledged", "lost", "outage_ms", "detection_ms", "output_delay_ms",
		"link_ms", "output_delay_round_trips", "echo_ms", "output_delay_echoes", "seed_ms", "seed_per_used", "pause_ms", "log_bytes_per_tick_idle", "log_bytes_per_request", "exits_per_tick", "resyncs", "divergences",
	} {
		if _, ok := got[field]; !ok {
			t.Errorf("no field %q", field)
		}
	}
	want := map[string]any{
		"verified": map[string]any{"median": 1.5, "p99": 9.0}, "received": map[string]any{"median": 0.0, "p99": 0.0},
	}
	if d := cmp.Diff(want, got["output_delay_ms"]); d != "" {
		t.Error(d)
	}
	bad := good()
	bad.LagMS = math.NaN()
	if l := bad.line(); !strings.Contains(l, `"error"`) {
		t.Errorf("a number that JSON doesn't have: %s", l)
	}
}

func TestTable(t *testing.T) {
	text := good().table()
	for _, want := range []string{"2 of 2", "8, of which 0 were reset", "5000, of which 0 were lost", "300 ms, 410 ms", "median 1.5 ms"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	r := good()
	r.SameBoot = false
	if !strings.Contains(r.table(), "NOT") {
		t.Error("another boot isn't told")
	}
}

func vm(epoch uint64, live bool, c api.Counters) api.VM {
	return api.VM{Epoch: epoch, Live: live, Counters: c}
}

func TestRates(t *testing.T) {
	before := vm(3, true, api.Counters{Ticks: 100, Exits: 1000, LogBytes: 5000})
	idle, err := between(before, vm(3, true, api.Counters{Ticks: 300, Exits: 1400, LogBytes: 6000}), 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if idle.logPerTick() != 5 || idle.exitsPerTick() != 2 || idle.logPerSecond() != 500 || idle.ticksPerSecond() != 100 {
		t.Errorf("idle: %+v", idle)
	}
	busy, err := between(before, vm(3, true, api.Counters{Ticks: 200, Exits: 1800, LogBytes: 105500}), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if log, exits := busy.perRequest(idle, 100); log != 1000 || exits != 6 {
		t.Errorf("a request costs %v bytes and %v exits", log, exits)
	}
	if log, exits := busy.perRequest(idle, 0); log != 0 || exits != 0 {
		t.Errorf("no requests: %v, %v", log, exits)
	}
	for name, after := range map[string]api.VM{
		"another epoch": vm(4, true, api.Counters{Ticks: 300, Exits: 1400, LogBytes: 6000}),
		"counters back": vm(3, true, api.Counters{Ticks: 10, Exits: 10, LogBytes: 10}),
		"no ticks":      before,
	} {
		if _, err := between(before, after, time.Second); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestMultiples(t *testing.T) {
	if got := (Delay{3, 8}).roundTrips(2); got != (Delay{1.5, 4}) {
		t.Errorf("in round trips: %v", got)
	}
	if got := (Delay{3, 8}).roundTrips(0); got != (Delay{}) {
		t.Errorf("without a round trip: %v", got)
	}
	const want = "median 3.0 ms (1.5 round trips, 1.0 from program to program), p99 8.0 ms (4.0 round trips, 2.7 from program to program)"
	if got := delay(Delay{3, 8}, Delay{1.5, 4}, Delay{1, 8.0 / 3}); got != want {
		t.Errorf("got %q", got)
	}
	if got := delay(Delay{3, 8}, Delay{}, Delay{}); got != "median 3.0 ms, p99 8.0 ms" {
		t.Errorf("got %q", got)
	}
	if got := perUsed(api.Seed{Bytes: 6144, Used: 1}); got != 1.5 {
		t.Errorf("%v times the memory", got)
	}
	if got := perUsed(api.Seed{Bytes: 6144}); got != 0 {
		t.Errorf("%v times no memory", got)
	}
}

func TestTallyAddsUpCopies(t *testing.T) {
	ta := newTally()
	ta.see("a", vm(1, true, api.Counters{Resyncs: 5}))
	ta.see("a", vm(1, true, api.Counters{Resyncs: 8}))
	ta.see("b", vm(1, false, api.Counters{Resyncs: 8})) // the same ones, applied
	ta.see("b", vm(2, true, api.Counters{Resyncs: 3}))  // took over
	ta.killed("a")
	ta.see("a", vm(1, true, api.Counters{Resyncs: 1})) // another copy
	at := time.Unix(100, 0)
	ta.seeEvents("b", []api.Event{{At: at, Role: diverged}, {At: at.Add(time.Second), Role: "standby"}})
	ta.seeEvents("b", []api.Event{{At: at, Role: diverged}, {At: at.Add(2 * time.Second), Role: diverged}})
	ta.seeEvents("a", []api.Event{{At: at, Role: diverged}})
	if resyncs, divergences := ta.sums(); resyncs != 12 || divergences != 3 {
		t.Errorf("%d resyncs, %d divergences", resyncs, divergences)
	}
}

func TestProgress(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(0, 0)
	p := newProgress(&out, func() time.Time { return now })
	p.stage("one")
	now = now.Add(1500 * time.Millisecond)
	p.say("waited for %s\nthe log's end\n", "it")
	p.stage("two")
	now = now.Add(3 * time.Second)
	want := "[    1.5 s] waited for it\n            the log's end\n"
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Error(d)
	}
	if got := p.spent(); got != "where the time went: one 2 s, two 3 s\n" {
		t.Errorf("got %q", got)
	}
	if got := firstLine(errors.New("this\nand that")); got != "this" {
		t.Errorf("got %q", got)
	}
}

func TestDirectoriesOfDeadRunsGo(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("DUET_CACHE", cache)
	dead := filepath.Join(cache, dirPrefix+"dead")
	if err := os.MkdirAll(filepath.Join(dead, "a"), 0o755); err != nil {
		t.Fatal(err)
	}
	first, removeFirst, err := workDir("")
	if err != nil {
		t.Fatal(err)
	}
	second, removeSecond, err := workDir("")
	if err != nil {
		t.Fatal(err)
	}
	exists := func(dir string) bool { _, err := os.Stat(dir); return err == nil }
	if exists(dead) || !exists(first) || !exists(second) {
		t.Errorf("dead %v, first %v, second %v", exists(dead), exists(first), exists(second))
	}
	removeFirst()
	removeSecond()
	if exists(first) || exists(second) {
		t.Error("a run's directory stays")
	}
	wanted := filepath.Join(cache, "mine")
	dir, remove, err := workDir(wanted)
	if err != nil || dir != wanted {
		t.Fatal(dir, err)
	}
	remove()
	if !exists(wanted) {
		t.Error("a directory that was asked for is gone")
	}
}
