package pair

import (
	"testing"
	"time"
)

// lone drives one machine whose peer is silent, on a volume of its own.
type lone struct {
	m     *Machine
	block Block
	now   time.Duration
	outs  []Output
}

func newLone(t *testing.T, self, peer HostID, block Block) *lone {
	t.Helper()
	m, err := New(Config{Self: self, Peer: peer, VM: UUID{1}}, uint64(self)+100)
	if err != nil {
		t.Fatal(err)
	}
	return &lone{m: m, block: block}
}

// run lets time pass, and carries out what the machine asks of the volume.
func (l *lone) run(d time.Duration) {
	for end := l.now + d; l.now < end; l.now += 10 * time.Millisecond {
		l.step(Tick{l.now})
	}
}

func (l *lone) step(in Input) {
	l.outs = l.m.Step(in)
	for _, o := range l.outs {
		switch o := o.(type) {
		case Arbiter:
			answer := ArbiterDone{Op: o.Op, Answer: Current, Block: l.block}
			if o.Kind == Swap && o.Old == l.block {
				l.block = o.New
				answer.Answer, answer.Block = Swapped, o.New
			}
			l.step(answer)
		case Fence:
			l.step(FenceDone{})
		}
	}
}

// TestReplacedHostStaysOff is about a host whose place another one has taken: the block says PAIR with two others.
func TestReplacedHostStaysOff(t *testing.T) {
	const a, old, fresh = 1, 2, 3
	for self, starts := range map[HostID]bool{a: true, old: false, fresh: true} {
		peer := HostID(a)
		if self == a {
			peer = fresh
		}
		l := newLone(t, self, peer, Block{VM: UUID{1}, Kind: Pair, Epoch: 5, Owner: a, Secondary: fresh, Seed: Seed{9, 1}})
		l.run(time.Minute)
		if got := l.m.Role() != Standby; got != starts {
			t.Errorf("host %v starts the VM of hosts %v and %v: %v, want %v", self, HostID(a), HostID(fresh), got, starts)
		}
	}
	l := newLone(t, old, a, Block{VM: UUID{1}, Kind: Pair, Epoch: 5, Owner: a, Secondary: fresh, Seed: Seed{9, 1}})
	l.run(5 * time.Second)
	l.step(Command{ForceStart})
	l.run(time.Second)
	if l.m.Role() != Alone {
		t.Errorf("a user who knows that both are off can't start the VM: %v", l.m.Role())
	}
}

// TestReplace has a guest that runs alone meet another peer, which it seeds then.
func TestReplace(t *testing.T) {
	const a, old, fresh = 1, 2, 3
	l := newLone(t, a, old, Block{VM: UUID{1}, Kind: Solo, Epoch: 5, Owner: a})
	if err := l.m.Replace(fresh); err == nil {
		t.Error("a copy that isn't live was given another peer")
	}
	l.run(5 * time.Second)
	if l.m.Role() != Alone {
		t.Fatalf("role %v", l.m.Role())
	}
	for _, bad := range []HostID{0, a} {
		if err := l.m.Replace(bad); err == nil {
			t.Errorf("host %v became the peer of host %v", bad, HostID(a))
		}
	}
	if err := l.m.Replace(fresh); err != nil {
		t.Fatal(err)
	}
	standby := func(from HostID, seq uint64) Received {
		return Received{Direct, Message{VM: UUID{1}, From: from, Incarnation: uint64(from), Seq: seq, Role: Standby, Epoch: 5}}
	}
	l.step(LinkUp{Incarnation: old})
	for seq := range uint64(20) {
		l.run(10 * time.Millisecond)
		l.step(standby(old, seq+1))
	}
	if l.m.Role() != Alone {
		t.Fatalf("the old peer still counts: %v", l.m.Role())
	}
	l.step(LinkUp{Incarnation: fresh})
	l.step(standby(fresh, 1))
	if l.m.Role() != Seeding {
		t.Errorf("the new peer isn't seeded: %v", l.m.Role())
	}
	if err := l.m.Replace(old); err == nil {
		t.Error("a copy that seeds its peer was given another one")
	}
}
