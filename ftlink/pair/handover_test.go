package pair

import (
	"errors"
	"testing"
	"time"
)

// An answer to a Pause that was given up is none to the next one: disk requests
// may have been made between the two.
func TestLatePaused(t *testing.T) {
	s := reach(t, Pausing, LevelVerified)
	late := s.m.pausing
	s.m.resume("for the test")
	s.step(Command{Switchover})
	s.step(Paused{late, 100})
	if s.m.role != Pausing || s.m.paused {
		t.Fatalf("role %v, paused %t after the answer to another Pause", s.m.role, s.m.paused)
	}
	s.step(Paused{s.m.pausing, 100})
	if s.m.role != Yielding {
		t.Fatalf("role %v", s.m.role)
	}
}

// The block is given away only when the secondary has executed all of the log,
// at level received, too, and is ready.
func TestYieldWaits(t *testing.T) {
	for _, c := range []struct {
		name  string
		msg   Message
		level Level
		want  Role
	}{
		{"all is well", Message{Role: Secondary, Ready: true, Successor: 7, Verified: 200}, LevelReceived, Yielding},
		{"received only", Message{Role: Secondary, Ready: true, Successor: 7, Received: 200}, LevelReceived, Pausing},
		{"not all of it", Message{Role: Secondary, Ready: true, Successor: 7, Verified: 199}, LevelVerified, Pausing},
		{"not ready", Message{Role: Secondary, Successor: 7, Verified: 200}, LevelVerified, Pausing},
		{"about to claim", Message{Role: Consuming, Ready: true, Successor: 7, Verified: 200}, LevelVerified, Pausing},
	} {
		s := reach(t, Pausing, c.level)
		s.step(Paused{s.m.pausing, 200})
		s.seq++
		c.msg.VM, c.msg.From, c.msg.Incarnation, c.msg.Seq, c.msg.Seed = UUID{1}, peerHost, peerInc, s.seq, ourSeed
		s.step(Received{Direct, c.msg})
		if s.m.role != c.want {
			t.Errorf("%s: %v, want %v", c.name, s.m.role, c.want)
		}
	}
}

// A block that gave the VM to this copy while it held an earlier seeding is
// nothing to the copy that holds the present one, however late it is read.
func TestGivenForAnEarlierSeeding(t *testing.T) {
	s := reach(t, Secondary, LevelVerified)
	given := block(Pair, 9, selfHost)
	given.Seed = Seed{selfInc, s.m.successor}
	s.step(Faulted{Crashed})
	s.step(LinkUp{peerInc})
	s.hear(Seeding, Seed{peerInc, 2}, 10)
	s.step(SeedBegin{Seed{peerInc, 2}})
	s.step(Seeded{Seed{peerInc, 2}})
	s.hear(Primary, Seed{peerInc, 2}, 11)
	s.step(ArbiterDone{Op: 1, Answer: Current, Block: given})
	if s.m.role != Secondary || has[TakeOver](s.last) {
		t.Fatalf("role %v, %v", s.m.role, s.last)
	}
	given.Seed.N = s.m.successor
	s.step(ArbiterDone{Op: 1, Answer: Current, Block: given})
	if s.m.role != Primary || !has[TakeOver](s.last) {
		t.Fatalf("role %v, %v", s.m.role, s.last)
	}
}

// Who can't register tells so, and tries again; the answer to an earlier
// request doesn't count.
func TestRegisterAgain(t *testing.T) {
	s := reach(t, Secondary, LevelVerified)
	s.hear(Pausing, theirSeed, 8)
	if !has[Register](s.last) {
		t.Fatalf("%v", s.last)
	}
	first := s.m.registering
	s.step(Registered{first, errors.New("the volume is busy")})
	var again int
	for range 6 {
		s.now += 25 * time.Millisecond
		s.step(Tick{s.now})
		if has[Register](s.last) {
			again++
		}
	}
	if again != 1 || s.m.ready {
		t.Fatalf("registered %d more times, ready %t", again, s.m.ready)
	}
	s.step(Registered{first, nil})
	if s.m.ready {
		t.Fatal("ready by an answer to an earlier request")
	}
	s.step(Registered{s.m.registering, nil})
	if !s.m.ready {
		t.Fatal("not ready")
	}
}

// Why a VM can't be moved is said for each role.
func TestUnmovable(t *testing.T) {
	for role := Standby; role < roles; role++ {
		why := reach(t, role, LevelVerified).m.Unmovable()
		if (why == "") != (role == Primary) {
			t.Errorf("%v: %q", role, why)
		}
	}
	s := reach(t, Primary, LevelVerified)
	if why := s.m.Unmovable(); why != "" {
		t.Errorf("primary: %q", why)
	}
	s.step(Received{Direct, Message{
		VM: UUID{1}, From: peerHost, Incarnation: peerInc, Seq: 100, Role: Secondary, Seed: ourSeed, VolumeLost: true,
	}})
	if why := s.m.Unmovable(); why != "the volume doesn't answer on both hosts" {
		t.Errorf("a secondary without the volume: %q", why)
	}
}
