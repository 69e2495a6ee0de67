package iscsi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/duet-ft/duet/image/target"
)

// races is how many races for a block each target is put through.
const races = 10_000

// ownSecret is what a target proves itself with.
const ownSecret = "correct-horse-2"

// TestIstgt and TestTgtLikeIstgt put targets that others wrote
// through the same: races, fences, restarts and cuts.
func TestIstgt(t *testing.T) {
	start := func(t *testing.T) *target.Target { return startTarget(t, target.Config{}) }
	configOf := func(t *testing.T) func(string) Config {
		tg := start(t)
		return func(name string) Config { return testConfig(tg, name) }
	}
	t.Run("races", func(t *testing.T) { t.Parallel(); raceForBlock(t, configOf(t)) })
	t.Run("fence", func(t *testing.T) { t.Parallel(); fenceUnderLoad(t, configOf(t)) })
	t.Run("late writes", func(t *testing.T) { t.Parallel(); fenceLateWrites(t, configOf(t)) })
	t.Run("restart", func(t *testing.T) {
		t.Parallel()
		tg := start(t)
		restartUnderLoad(t, testConfig(tg, "host"), restarter(t, tg))
	})
	t.Run("cuts", func(t *testing.T) {
		t.Parallel()
		var cfgs []Config
		for range 16 { // a login takes a second, one at a time
			cfgs = append(cfgs, testConfig(start(t), "cut"))
		}
		cutEverywhere(t, cfgs, true)
	})
	t.Run("login", func(t *testing.T) {
		t.Parallel()
		tg := startTarget(t, target.Config{Second: true, User: "duet", Secret: testSecret, OwnUser: "box", OwnSecret: ownSecret})
		loginWays(t, testConfig(tg, "host"), tg.SecondPortal(), true)
	})
}

func TestTgtLikeIstgt(t *testing.T) {
	start := func(t *testing.T) *target.Target { return startTgt(t, target.Config{}) }
	configOf := func(t *testing.T) func(string) Config {
		tg := start(t)
		return func(name string) Config { return testConfig(tg, name) }
	}
	t.Run("fence", func(t *testing.T) { t.Parallel(); fenceUnderLoad(t, configOf(t)) })
	t.Run("late writes", func(t *testing.T) { t.Parallel(); fenceLateWrites(t, configOf(t)) })
	t.Run("restart", func(t *testing.T) {
		t.Parallel()
		tg := start(t)
		restartUnderLoad(t, testConfig(tg, "host"), restarter(t, tg))
	})
	t.Run("cuts", func(t *testing.T) {
		t.Parallel()
		cfg := testConfig(start(t), "cut")
		cutEverywhere(t, []Config{cfg, cfg, cfg, cfg}, false)
	})
	t.Run("login", func(t *testing.T) {
		t.Parallel()
		tg := startTgt(t, target.Config{Second: true, User: "duet", Secret: testSecret, OwnUser: "box", OwnSecret: ownSecret})
		loginWays(t, testConfig(tg, "host"), tg.SecondPortal(), false)
	})
}

// restarter kills a target and starts it again.
func restarter(t *testing.T, tg *target.Target) func(context.Context) error {
	return func(ctx context.Context) error {
		next, err := tg.Restart(ctx)
		if err == nil {
			tg = next
			t.Cleanup(next.Kill)
		}
		return err
	}
}

// raceForBlock: sessions try to swap the same block from round r to their own value
// of round r+1; exactly one of them may win each round.
func raceForBlock(t *testing.T, configOf func(string) Config) {
	const sessions = 4
	value := func(round, who int) []byte {
		p := make([]byte, 512)
		copy(p, fmt.Sprintf("round %d won by %d", round, who))
		return p
	}
	var all []*Session
	for i := range sessions {
		all = append(all, dialTest(t, configOf(fmt.Sprintf("host-%d", i))))
	}
	now := value(0, 0)
	mustDo(t, "write", all[0].Write(t.Context(), 40, now))
	wins := make([]int, sessions)
	for round := 1; round <= races; round++ {
		var winners, winner atomic.Int32
		var wg sync.WaitGroup
		for i, s := range all {
			wg.Go(func() {
				swapped, err := s.CompareAndWrite(t.Context(), 40, now, value(round, i))
				if err != nil {
					t.Errorf("round %d: %v", round, err)
				}
				if swapped {
					winners.Add(1)
					winner.Store(int32(i))
				}
			})
		}
		wg.Wait()
		if winners.Load() != 1 || t.Failed() {
			t.Fatalf("round %d has %d winners", round, winners.Load())
		}
		wins[winner.Load()]++
		now = value(round, int(winner.Load()))
	}
	got := make([]byte, 512)
	if err := all[3].Read(t.Context(), 40, got); err != nil || !bytes.Equal(got, now) {
		t.Fatalf("the last winner's value isn't there (%v)", err)
	}
	t.Logf("%d races among %d sessions, one winner each; wins %v", races, sessions, wins)
}

// restartUnderLoad kills the target again and again while workers write and verify:
// nothing that was acknowledged may be lost, and all workers go on.
func restartUnderLoad(t *testing.T, cfg Config, restart func(context.Context) error) {
	cfg.DataDigest = true
	var hooks atomic.Int32
	cfg.OnReconnect = func(ctx context.Context, s *Session) error {
		hooks.Add(1)
		_, _, err := s.Keys(ctx) // on the new connection, or it would hang here
		return err
	}
	s := dialTest(t, cfg)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var done atomic.Int64
	const workers, region = 6, 2 << 20
	for w := range workers {
		wg.Go(func() {
			for seed := uint64(w); ; seed += workers {
				select {
				case <-stop:
					return
				default:
					hammer(t, s, uint64(w)*region/512, region, seed)
					done.Add(1)
				}
			}
		})
	}
	for range 3 {
		before := done.Load()
		waitFor(t, func() bool { return done.Load() >= before+workers || t.Failed() })
		if err := restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	before := done.Load()
	waitFor(t, func() bool { return done.Load() >= before+workers || t.Failed() })
	close(stop)
	wg.Wait()
	if s.Logins() < 4 || hooks.Load() < 3 {
		t.Errorf("%d logins, %d calls of OnReconnect after 3 restarts", s.Logins(), hooks.Load())
	}
	t.Logf("%d rounds of 60 requests, %d logins", done.Load(), s.Logins())
}

const fencedWriters = 32

// writeUntilFenced writes with many commands in flight until the target refuses
// them. It returns when each writer has written, and what to wait with for their
// end.
func writeUntilFenced(t *testing.T, s *Session, round int) (wait func()) {
	var wg, started sync.WaitGroup
	started.Add(fencedWriters)
	for w := range fencedWriters {
		wg.Go(func() {
			p := make([]byte, 8192)
			for i := 0; ; i++ {
				p[0], p[1], p[2] = byte(i), byte(i>>8), byte(round)
				err := s.Write(t.Context(), uint64(w)*16, p)
				if i == 0 {
					started.Done()
				}
				if errors.Is(err, ErrReservationConflict) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	started.Wait()
	return wg.Wait
}

// fenceUnderLoad: a host that writes with many commands in flight is fenced; after
// Fence returns, not one more of its writes may land.
func fenceUnderLoad(t *testing.T, configOf func(string) Config) {
	a, b := dialTest(t, configOf("a")), dialTest(t, configOf("b"))
	for round := range 20 {
		mustDo(t, "join a", a.Join(t.Context()))
		mustDo(t, "join b", b.Join(t.Context()))
		wait := writeUntilFenced(t, a, round)
		fenceAndCompare(t, b, a.Port(), wait)
	}
	leave(t, a, b)
}

// fenceAndCompare fences and compares what is on the blocks right then with what is
// there when the victim is through.
func fenceAndCompare(t *testing.T, b *Session, victim Port, wait func()) {
	t.Helper()
	mustDo(t, "fence", b.Fence(t.Context(), victim))
	before := make([]byte, fencedWriters*8192)
	after := make([]byte, len(before))
	mustDo(t, "read", b.Read(t.Context(), 0, before))
	wait()
	mustDo(t, "read", b.Read(t.Context(), 0, after))
	if !bytes.Equal(before, after) {
		t.Fatalf("byte %d changed after the fence", firstDifference(before, after))
	}
}

// fenceLateWrites: a host is cut off in the middle of its writes and fenced; the
// commands that were on the way arrive afterwards, and must not land.
func fenceLateWrites(t *testing.T, configOf func(string) Config) {
	for round := range 3 {
		cfg := configOf(fmt.Sprintf("late-%d", round))
		r := newRelay(t, cfg.Portal)
		var held atomic.Int32
		var frozen atomic.Bool
		thaw := make(chan struct{})
		r.meddle = func(_ int, fromTarget, _ bool, pdu []byte) ([]byte, bool) {
			if !fromTarget && frozen.Load() {
				held.Add(1)
				<-thaw
			}
			return pdu, false
		}
		cfg.Portal = r.ln.Addr().String()
		a, b := dialTest(t, cfg), dialTest(t, configOf("b"))
		mustDo(t, "join a", a.Join(t.Context()))
		mustDo(t, "join b", b.Join(t.Context()))
		wait := writeUntilFenced(t, a, round)
		frozen.Store(true)
		waitFor(t, func() bool { return held.Load() > 0 })
		fenceAndCompare(t, b, a.Port(), func() { close(thaw); wait() })
		leave(t, a, b)
		a.Close()
		b.Close()
	}
}

func leave(t *testing.T, all ...*Session) {
	t.Helper()
	for _, s := range all {
		mustDo(t, "leave", s.Leave(t.Context()))
	}
}

// loginWays logs in with everything that there is: mutual CHAP, a second portal that
// takes over, discovery, and, unless the target is tgt (full), digests and a list of
// both portals.
func loginWays(t *testing.T, cfg Config, second string, full bool) {
	cfg.User, cfg.Secret, cfg.TargetUser, cfg.TargetSecret = "duet", testSecret, "box", ownSecret
	cfg.HeaderDigest, cfg.DataDigest, cfg.InsistOnDigests = full, full, full
	bad := cfg
	bad.TargetSecret = "correct-horse-9"
	if _, err := Dial(t.Context(), bad); !errors.Is(err, ErrImpostor) {
		t.Errorf("another secret of the target: %v", err)
	}
	bad.Secret = "correct-horse-8"
	if _, err := Dial(t.Context(), bad); !errors.Is(err, ErrAuth) {
		t.Errorf("another secret of ours: %v", err)
	}
	r := newRelay(t, cfg.Portal)
	r.digests = full
	var dead atomic.Bool
	r.meddle = func(_ int, _, _ bool, pdu []byte) ([]byte, bool) { return pdu, dead.Load() }
	cfg.Portal, cfg.Second = r.ln.Addr().String(), second
	s := dialTest(t, cfg)
	hammer(t, s, 0, 1<<20, 1)
	dead.Store(true)
	hammer(t, s, 0, 1<<20, 2)
	if got := s.usedPortal(); got != second || s.Logins() < 2 {
		t.Errorf("%d logins, now by %s; want %s", s.Logins(), got, second)
	}
	cfg.Portal = second
	cfg.Second = ""
	// LIO and tgt have accounts of their own for discovery.
	cfg.User, cfg.Secret, cfg.TargetUser, cfg.TargetSecret = "", "", "", ""
	cfg.HeaderDigest, cfg.DataDigest, cfg.InsistOnDigests = false, false, false
	list, err := Discover(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		last := f.Portals[len(f.Portals)-1]
		if f.Target == cfg.Target && (!full || len(f.Portals) > 1 && last.Group == f.Portals[0].Group) {
			return
		}
	}
	t.Errorf("%s with its portals, of one group, isn't in %+v", cfg.Target, list)
}

// TestIPv6 logs in by an IPv6 address.
func TestIPv6(t *testing.T) {
	t.Parallel()
	tg := startTarget(t, target.Config{Address: "::1"})
	s := dialTest(t, testConfig(tg, "six"))
	hammer(t, s, 0, 1<<20, 6)
}
