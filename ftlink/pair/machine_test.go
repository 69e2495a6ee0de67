package pair

import (
	"errors"
	"testing"
	"time"
)

func TestNewRefuses(t *testing.T) {
	good := Config{Self: 1, Peer: 2, VM: UUID{1}}
	for name, c := range map[string]struct {
		cfg Config
		inc uint64
	}{
		"one host":       {Config{Self: 1, Peer: 1, VM: UUID{1}}, 1},
		"no peer":        {Config{Self: 1, VM: UUID{1}}, 1},
		"no VM":          {Config{Self: 1, Peer: 2}, 1},
		"no incarnation": {good, 0},
	} {
		if _, err := New(c.cfg, c.inc); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := New(good, 1); err != nil {
		t.Error(err)
	}
}

func has[O Output](outs []Output) bool {
	for _, o := range outs {
		if _, ok := o.(O); ok {
			return true
		}
	}
	return false
}

// The order of going live: consumed, won, fenced, reissued, opened, announced.
func TestGoLiveOrder(t *testing.T) {
	s := reach(t, Consuming, LevelVerified)
	s.step(Consumed{100})
	if !has[Seal](s.last) || has[GoLive](s.last) {
		t.Fatalf("after Consumed: %v", s.last)
	}
	s.answer(Current, block(Pair, 8, peerHost))
	if has[Fence](s.last) {
		t.Fatalf("fenced before the block is won: %v", s.last)
	}
	s.answer(Swapped, Block{})
	if !has[Fence](s.last) || has[Gate](s.last) {
		t.Fatalf("after winning: %v", s.last)
	}
	s.step(FenceDone{errors.New("the volume is busy")})
	if has[GoLive](s.last) {
		t.Fatal("went live without a fence")
	}
	s.tick(200 * time.Millisecond)
	s.step(FenceDone{})
	var got []string
	for _, o := range s.last {
		switch o.(type) {
		case Reissue, Gate, GoLive, Announce:
			got = append(got, o.String())
		}
	}
	want := []string{"reissue", "gate open", "go live, epoch 9", "announce"}
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
}

// A swap whose reply was lost is repeated with the same nonce, and nothing else
// is asked for meanwhile, whatever happens.
func TestUnknownSwapIsRepeated(t *testing.T) {
	s := reach(t, Resolving, LevelVerified)
	first := s.m.pending.new
	s.answer(Unknown, Block{})
	s.hear(Standby, ourSeed, 3)
	s.step(Command{Stop})
	var again []Arbiter
	for range 40 {
		s.now += 25 * time.Millisecond
		for _, o := range s.m.Step(Tick{s.now}) {
			if a, ok := o.(Arbiter); ok && a.Kind == Swap {
				again = append(again, a)
			}
		}
	}
	if len(again) != 1 || again[0].New != first {
		t.Fatalf("asked for %v, want once %v", again, first)
	}
	// The volume still shows the old block: that proves nothing.
	s.answer(Unknown, Block{})
	s.step(ArbiterDone{Op: 1, Answer: Current, Block: s.m.block})
	if s.m.role != Resolving || s.m.pending == nil {
		t.Fatalf("gave up the swap on an old block: %v", s.m.role)
	}
	// A read that shows the new block settles it, before the swap's own answer.
	s.step(ArbiterDone{Op: 1, Answer: Current, Block: first})
	if s.m.role != Stopping { // the stop that was asked for comes next
		t.Fatalf("role %v after the block shows our nonce", s.m.role)
	}
}

// A reply that was overtaken by a newer one doesn't take the machine back.
func TestOvertakenReadIsIgnored(t *testing.T) {
	s := reach(t, Primary, LevelVerified)
	s.step(ArbiterDone{Op: 1, Answer: Current, Block: block(Free, 1, 0)})
	if s.m.role != Primary || s.m.block.Epoch != 3 {
		t.Fatalf("%v at %v", s.m.role, s.m.block)
	}
}

// The PAIR block waits for the secondary to know all that left.
func TestBarrier(t *testing.T) {
	for _, c := range []struct {
		level Level
		p     Progress
		want  Role
	}{
		{LevelVerified, Progress{500, 199}, Gating},
		{LevelVerified, Progress{500, 200}, Pairing},
		{LevelReceived, Progress{199, 0}, Gating},
		{LevelReceived, Progress{200, 0}, Pairing},
	} {
		s := reach(t, Gating, c.level)
		s.step(Gated{200})
		s.step(c.p)
		if s.m.role != c.want {
			t.Errorf("level %d, %+v: %v, want %v", c.level, c.p, s.m.role, c.want)
		}
	}
}

// A message that was long on its way isn't a restart.
func TestLateMessageOfAnEarlierProcess(t *testing.T) {
	s := reach(t, Primary, LevelVerified)
	s.hear(Secondary, ourSeed, 3)
	s.step(Received{Direct, Message{VM: UUID{1}, From: peerHost, Incarnation: 77, Seq: 1000, Role: Standby}})
	if s.m.role != Primary {
		t.Fatalf("role %v", s.m.role)
	}
	for _, msg := range []Message{
		{VM: UUID{2}, From: peerHost, Incarnation: 77, Seq: 1, Role: Standby},
		{VM: UUID{1}, From: selfHost, Incarnation: 77, Seq: 1, Role: Standby},
		{VM: UUID{1}, From: peerHost, Incarnation: peerInc, Seq: 1, Role: Standby},
		{VM: UUID{1}, From: peerHost, Incarnation: peerInc, Seq: 1 << 40},
	} {
		s.step(Received{Direct, msg})
		if s.m.role != Primary {
			t.Fatalf("took %+v", msg)
		}
	}
}

// Short stalls of its own don't add up to the peer's silence, and yet a host
// that stutters finds out that its peer is dead.
func TestOwnStutterIsNoSilence(t *testing.T) {
	s := reach(t, Primary, LevelVerified)
	stutter := func(times int) {
		for range times {
			s.now += 95 * time.Millisecond // the suspicion comes at 150 ms
			s.step(Tick{s.now})
		}
	}
	stutter(2)
	if s.m.role != Primary {
		t.Fatalf("role %v, for the peer's silence in two moments of 50 ms", s.m.role)
	}
	stutter(3)
	if s.m.role != Resolving {
		t.Fatalf("role %v, though nobody was heard in five", s.m.role)
	}
}

// A machine that slept doesn't blame its peer for the silence.
func TestOwnSleepIsNoSilence(t *testing.T) {
	s := reach(t, Primary, LevelVerified)
	s.now += time.Minute
	s.step(Tick{s.now})
	if s.m.role != Primary {
		t.Fatalf("role %v after sleeping", s.m.role)
	}
	s.tick(400 * time.Millisecond)
	if s.m.role != Resolving {
		t.Fatalf("role %v after silence", s.m.role)
	}
}
