package vmproc

import (
	"testing"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
)

// TestFailoverCause times a failover from the outputs of its steps.
func TestFailoverCause(t *testing.T) {
	p := &Process{}
	step := func(before, after pair.Role, out ...pair.Output) { p.time(before, after, suspicion(out)) }
	step(pair.Receiving, pair.Secondary, pair.Event{Role: pair.Secondary, What: "holds the full state"})
	step(pair.Secondary, pair.Consuming, pair.Event{Role: pair.Consuming, What: "the primary is silent"}, pair.Consume{})
	step(pair.Consuming, pair.Secondary, pair.Event{Role: pair.Secondary, What: "the primary is heard again"})
	if p.failed != nil || p.timing {
		t.Fatalf("a suspicion that was none is a failover: %+v", p.failed)
	}
	step(pair.Secondary, pair.Consuming, pair.Event{Role: pair.Secondary, What: "the stream broke"},
		pair.Event{Role: pair.Consuming, What: "the primary was restarted"}, pair.Consume{})
	step(pair.Consuming, pair.Claiming, pair.Event{Role: pair.Claiming, What: "asks for the block"})
	step(pair.Claiming, pair.Fencing)
	step(pair.Fencing, pair.Alone, pair.Event{Role: pair.Alone, What: "live"})
	if p.failed == nil || p.failed.Cause != "the primary was restarted" {
		t.Errorf("failover %+v, want the cause of the step that began it", p.failed)
	}
}

// TestFailoverOfDiverged times one whose secondary passes through Consuming within a step, as ftlink/pair has it.
func TestFailoverOfDiverged(t *testing.T) {
	p := &Process{heard: time.Now().Add(-time.Second)}
	step := func(before, after pair.Role, out ...pair.Output) { p.time(before, after, suspicion(out)) }
	step(pair.Secondary, pair.Diverged, pair.Event{Role: pair.Diverged, What: "execution diverged"})
	if p.timing {
		t.Fatal("a divergence alone is a failover")
	}
	step(pair.Diverged, pair.Claiming, pair.Event{Role: pair.Consuming, What: "the primary is silent"},
		pair.Event{Role: pair.Claiming, What: "executes no further; asks for the block"}, pair.Seal{})
	step(pair.Claiming, pair.Fencing)
	step(pair.Fencing, pair.Alone, pair.Event{Role: pair.Alone, What: "live"})
	f := p.failed
	if f == nil || f.Cause != "the primary is silent" || f.DetectionMS < 1000 || f.ClaimMS < f.DetectionMS || f.LiveMS < f.ClaimMS {
		t.Errorf("failover %+v, want each of its times, from the last heartbeat on", f)
	}
}
