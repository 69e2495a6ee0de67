package sim

import (
	"strings"
	"testing"
)

// TestMutations breaks one rule at a time and wants the checks to find it.
func TestMutations(t *testing.T) {
	for _, m := range []struct {
		name  string
		bugs  bugs
		finds string // part of what broke
	}{
		{"ack before receipt", bugs{ackBeforeReceipt: true}, "can't explain effect"},
		{"no read-back after a lost arbiter reply", bugs{noReadBack: true}, ""},
		{"fence after going live", bugs{fenceAfterLive: true}, "lands"},
		{"gate open before SOLO is won", bugs{gateBeforeSolo: true}, ""},
		{"half a seeding promoted", bugs{promoteHalf: true}, "half seeded"},
		{"PAIR written before the gate's barrier", bugs{noBarrier: true}, "can't explain effect"},
		{"acknowledged after the seal", bugs{ackAfterSeal: true}, "effect"},
		{"pending disk requests forgotten", bugs{forgetPending: true}, ""},
		{"fence without abort", bugs{fenceKeepsTasks: true}, "lands"},
		{"disk requests of a halted guest go on", bugs{keepSession: true}, "lands"},
		{"switchover with disk requests under way", bugs{pauseWithTasks: true}, "lands"},
		{"switchover before the log is executed", bugs{pauseUnexecuted: true}, ""},
		{"guest that runs on after its log has ended", bugs{runOn: true}, ""},
		{"switchover to a host that may not write", bugs{neverRegistered: true}, ""},
		{"reads answered past the gate", bugs{readsAtOnce: true}, "can't be explained by any order"},
		{"swap without compare", bugs{blindSwap: true}, ""},
		{"a reference although a write to it was released", bugs{refRaced: true}, "isn't what its primary read"},
		{"a reference while effects leave at once", bugs{refUngated: true}, "other bytes than its primary"},
		{"effects leave at once when a user wants no secondary", bugs{openUnprotected: true}, "effect"},
		{"a new process isn't told that a user wants no secondary", bugs{forgetsUser: true}, "a user wants none"},
		{"a secondary that never says that it has executed all", bugs{neverConsumed: true}, "could go on"},
		{"log acknowledged as executed when it is held", bugs{ackUnexecuted: true}, "has not executed with the same outcome"},
		{"a disk error that isn't in the log", bugs{errorUnlogged: true}, "diverged by itself"},
		{"log acknowledged without what it refers to", bugs{ackUnheld: true}, "isn't what its primary read"},
	} {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			const most = 10000
			for seed := uint64(1); seed <= most; seed++ {
				_, err := Run(seed, Options{bugs: m.bugs})
				if err == nil || !strings.Contains(err.Error(), m.finds) {
					continue // or found by something else first
				}
				t.Logf("%v", err)
				return
			}
			t.Fatalf("not found in %d seeds", most)
		})
	}
}
