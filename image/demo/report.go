package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
)

const (
	// wantedFailovers is how many failovers the demo makes.
	wantedFailovers = 2
	// clean and notChecked are what Fsck says when there is nothing to complain about.
	clean      = "clean"
	notChecked = "not checked"
)

// Delay is how long effects waited for the output rule, in ms.
type Delay struct {
	Median float64 `json:"median"`
	P99    float64 `json:"p99"`
}

// Result is what the last line tells. Lists have one number for each failover, those of seedings one for each seeding.
type Result struct {
	Seed         uint64 `json:"seed"`
	Failovers    int    `json:"failovers"`
	Connections  int    `json:"connections"`
	Resets       int    `json:"resets"`
	Acknowledged int    `json:"acknowledged"`
	Lost         int    `json:"lost"`
	Backwards    int    `json:"counters_back"`  // counters that went back
	Doubled      int    `json:"executed_twice"` // counters that ran ahead
	Unread       int    `json:"unread"`         // values that couldn't be read back
	SameBoot     bool   `json:"same_boot"`      // boot_id stayed, uptime grew
	Fsck         string `json:"fsck"`           // "clean", "not checked", or what e2fsck said

	OutageMS    []float64 `json:"outage_ms"`    // the longest that a connection waited for an answer
	DetectionMS []float64 `json:"detection_ms"` // from the last sign of life to suspicion
	ClaimMS     []float64 `json:"claim_ms"`     // to the arbiter's block
	LiveMS      []float64 `json:"live_ms"`      // to the guest running with its network open

	OutputDelayMS struct {
		Verified Delay `json:"verified"`
		Received Delay `json:"received"`
	} `json:"output_delay_ms"`

	// The direct link's round trip without the programs at its ends, and the same delays as multiples of it.
	LinkMS                float64 `json:"link_ms"`
	OutputDelayRoundTrips struct {
		Verified Delay `json:"verified"`
		Received Delay `json:"received"`
	} `json:"output_delay_round_trips"`

	// The direct link's round trip with the programs at its ends: a small message and its answer, under the same load.
	// Then the same delays as multiples of that.
	EchoMS            float64 `json:"echo_ms"`
	OutputDelayEchoes struct {
		Verified Delay `json:"verified"`
		Received Delay `json:"received"`
	} `json:"output_delay_echoes"`

	SeedMS      []float64 `json:"seed_ms"`
	SeedBytes   []uint64  `json:"seed_bytes"`
	SeedPerUsed []float64 `json:"seed_per_used"` // SeedBytes as multiples of the guest's pages that aren't zero
	PauseMS     []float64 `json:"pause_ms"`

	LogBytesPerTickIdle    float64 `json:"log_bytes_per_tick_idle"`
	ResyncBytesPerTickIdle float64 `json:"resync_bytes_per_tick_idle"` // of them, what resyncs took
	LogBytesPerSecondIdle  float64 `json:"log_bytes_per_second_idle"`
	LogBytesPerSecond      float64 `json:"log_bytes_per_second"` // under load
	LogBytesPerRequest     float64 `json:"log_bytes_per_request"`
	ExitsPerTick           float64 `json:"exits_per_tick"`
	ExitsPerRequest        float64 `json:"exits_per_request"`
	RequestsPerSecond      float64 `json:"requests_per_second"`
	RequestMS              Delay   `json:"request_ms"` // as the clients saw it
	LagMS                  float64 `json:"lag_ms"`     // of the secondary's execution, under load

	Resyncs     uint64  `json:"resyncs"`
	Divergences uint64  `json:"divergences"`
	Seconds     float64 `json:"seconds"`
	Error       string  `json:"error,omitempty"`
}

// newResult is a result before anything happened.
func newResult(seed uint64) Result {
	none := []float64{}
	return Result{
		Seed: seed, Fsck: notChecked, OutageMS: none, DetectionMS: none, ClaimMS: none, LiveMS: none,
		SeedMS: none, SeedBytes: []uint64{}, SeedPerUsed: none, PauseMS: none,
	}
}

// ok is the verdict. kept says that the pair was left running, so that nothing could check the volume.
func (r Result) ok(kept bool) bool {
	return r.Error == "" && r.Failovers == wantedFailovers && r.Connections > 0 && r.Acknowledged > 0 &&
		r.Resets == 0 && r.Lost == 0 && r.Backwards == 0 && r.Doubled == 0 && r.Unread == 0 && r.Divergences == 0 &&
		r.SameBoot && (r.Fsck == clean || kept && r.Fsck == notChecked)
}

// line is the last line.
func (r Result) line() string {
	b, err := json.Marshal(r)
	if err != nil { // a number that JSON doesn't have
		b, _ = json.Marshal(map[string]any{"seed": r.Seed, "failovers": r.Failovers, "error": err.Error()})
	}
	return "RESULT " + string(b) + "\n"
}

// table is the result for people.
func (r Result) table() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "  %s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	fmt.Fprintln(w)
	row("failovers", "%d of %d", r.Failovers, wantedFailovers)
	row("connections", "%d, of which %d were reset", r.Connections, r.Resets)
	row("acknowledged writes", "%d, of which %d were lost", r.Acknowledged, r.Lost)
	row("counters", "%d went back, %d ran ahead, %d values unread", r.Backwards, r.Doubled, r.Unread)
	row("the guest", "%s; its file system: %s", map[bool]string{
		true: "same boot all along, growing uptime", false: "NOT seen to be in the same boot",
	}[r.SameBoot], r.Fsck)
	row("outage seen by a client", "%s", milliseconds(r.OutageMS))
	row("  until suspicion", "%s", milliseconds(r.DetectionMS))
	row("  until the arbiter's word", "%s", milliseconds(r.ClaimMS))
	row("  until live", "%s", milliseconds(r.LiveMS))
	row("seeding", "%s, the guest stood still for %s", milliseconds(r.SeedMS), milliseconds(r.PauseMS))
	row("  bytes per used memory", "%s", list(r.SeedPerUsed, "%.2f"))
	row("round trip of the link", "%.2f ms; %.2f ms from program to program", r.LinkMS, r.EchoMS)
	row("output delay, verified", "%s", delay(r.OutputDelayMS.Verified, r.OutputDelayRoundTrips.Verified, r.OutputDelayEchoes.Verified))
	row("output delay, received", "%s", delay(r.OutputDelayMS.Received, r.OutputDelayRoundTrips.Received, r.OutputDelayEchoes.Received))
	row("a request", "median %.1f ms, p99 %.1f ms, %.0f a second", r.RequestMS.Median, r.RequestMS.P99, r.RequestsPerSecond)
	row("log", "idle %.1f bytes a tick (%.1f of them resyncs; %.0f a second), %.0f bytes a request (%.0f a second under load)",
		r.LogBytesPerTickIdle, r.ResyncBytesPerTickIdle, r.LogBytesPerSecondIdle, r.LogBytesPerRequest, r.LogBytesPerSecond)
	row("exits", "idle %.2f a tick, %.1f a request", r.ExitsPerTick, r.ExitsPerRequest)
	row("lag of the secondary", "%.1f ms", r.LagMS)
	row("resyncs, divergences", "%d, %d", r.Resyncs, r.Divergences)
	row("time", "%.0f s", r.Seconds)
	_ = w.Flush() // to memory
	return b.String()
}

// milliseconds lists figures: "12 ms, 7 ms".
func milliseconds(figures []float64) string { return list(figures, "%.0f ms") }

// list lists figures in a format.
func list(figures []float64, format string) string {
	if len(figures) == 0 {
		return "-"
	}
	parts := make([]string, len(figures))
	for i, v := range figures {
		parts[i] = fmt.Sprintf(format, v)
	}
	return strings.Join(parts, ", ")
}

// delay shows a delay in ms, in round trips of the link and in those from program to program, which may be unknown.
func delay(ms, trips, echoes Delay) string {
	show := func(ms, trips, echoes float64) string {
		if trips == 0 || echoes == 0 {
			return fmt.Sprintf("%.1f ms", ms)
		}
		return fmt.Sprintf("%.1f ms (%.1f round trips, %.1f from program to program)", ms, trips, echoes)
	}
	return "median " + show(ms.Median, trips.Median, echoes.Median) + ", p99 " + show(ms.P99, trips.P99, echoes.P99)
}
