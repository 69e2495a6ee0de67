package pair

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
)

const (
	selfHost, peerHost = HostID(10), HostID(11)
	selfInc, peerInc   = uint64(0x5e1f), uint64(0xbee5)
)

// subject is a machine that is driven by hand.
type subject struct {
	m    *Machine
	now  time.Duration
	seq  uint64
	last []Output
}

func (s *subject) step(in Input) {
	s.last = s.m.Step(in)
}

func (s *subject) tick(d time.Duration) {
	for end := s.now + d; s.now < end; {
		s.now += 25 * time.Millisecond
		s.m.Step(Tick{s.now})
	}
}

// hear gives it a message of the peer.
func (s *subject) hear(role Role, seed Seed, epoch uint64) {
	s.seq++
	s.step(Received{Management, Message{
		VM: UUID{1}, From: peerHost, Incarnation: peerInc, Seq: s.seq, Role: role, Seed: seed, Epoch: epoch,
		Received: 100, Verified: 100, Ready: true, Successor: 7,
	}})
}

// answer answers the newest arbiter operation.
func (s *subject) answer(a Answer, b Block) {
	s.step(ArbiterDone{Op: s.m.ops, Answer: a, Block: b, Err: errors.New("no answer")})
}

func block(kind BlockKind, epoch uint64, owner HostID) Block {
	b := Block{VM: UUID{1}, Kind: kind, Epoch: epoch, Owner: owner, Nonce: Nonce{N: 1}}
	if kind == Pair {
		b.Secondary, b.Seed = selfHost+peerHost-owner, theirSeed
	}
	return b
}

var (
	ourSeed   = Seed{selfInc, 1}
	theirSeed = Seed{peerInc, 1}
)

// reach returns a machine in a role.
func reach(t *testing.T, role Role, level Level) *subject {
	m, err := New(Config{Self: selfHost, Peer: peerHost, VM: UUID{1}, Level: level}, selfInc)
	if err != nil {
		t.Fatal(err)
	}
	s := &subject{m: m}
	s.step(Tick{0})
	switch role {
	case Receiving, Secondary, Diverged, Consuming, Claiming:
		s.asSecondary(role)
	case Fencing:
		s.asSecondary(Claiming)
		s.answer(Current, block(Pair, 8, peerHost))
		s.answer(Swapped, Block{})
	default:
		s.answer(Current, block(Free, 1, 0))
		s.asLive(role)
	}
	if m.role != role {
		t.Fatalf("reached %v, want %v", m.role, role)
	}
	return s
}

func (s *subject) asSecondary(role Role) {
	s.answer(Current, block(Solo, 7, peerHost))
	s.step(LinkUp{peerInc})
	s.hear(Seeding, theirSeed, 7)
	s.step(SeedBegin{theirSeed})
	if role == Receiving {
		return
	}
	s.step(Seeded{theirSeed})
	s.hear(Primary, theirSeed, 8)
	switch role {
	case Diverged:
		s.step(Faulted{Diverge})
	case Consuming, Claiming:
		s.tick(200 * time.Millisecond)
		if role == Claiming {
			s.step(Consumed{100})
		}
	}
}

func (s *subject) asLive(role Role) {
	if role == Standby {
		s.step(LinkUp{peerInc})
		return
	}
	s.step(Command{Start})
	if role == Starting {
		return
	}
	s.answer(Swapped, Block{})
	s.step(FenceDone{})
	switch role {
	case Alone:
		return
	case Stopping:
		s.step(Command{Stop})
		return
	}
	s.step(LinkUp{peerInc})
	s.hear(Standby, Seed{}, 2)
	if role == Seeding {
		return
	}
	s.hear(Secondary, ourSeed, 2)
	if role == Gating {
		return
	}
	s.step(Gated{100})
	if role == Pairing {
		return
	}
	s.answer(Swapped, Block{})
	switch role {
	case Resolving:
		s.step(LinkDown{})
	case Pausing, Yielding:
		s.hear(Secondary, ourSeed, 3)
		s.step(Command{Switchover})
		if role == Yielding {
			s.step(Paused{s.m.ops, 100})
		}
	}
}

// moves are the inputs that a role is shown.
func moves() []struct {
	name string
	do   func(s *subject)
} {
	type move = struct {
		name string
		do   func(s *subject)
	}
	in := func(in Input) move {
		return move{strings.TrimPrefix(fmt.Sprintf("%T%v", in, in), "pair."), func(s *subject) { s.step(in) }}
	}
	list := []move{
		{"silence of 200 ms", func(s *subject) {
			var all []Output
			for range 8 {
				s.now += 25 * time.Millisecond
				all = append(all, s.m.Step(Tick{s.now})...)
			}
			s.last = all
		}},
		in(LinkUp{peerInc}), in(LinkDown{}),
		{"LinkUp of a new process", func(s *subject) {
			s.step(LinkDown{})
			first := s.last
			s.step(LinkUp{99})
			s.last = append(first, s.last...)
		}},
		{"answer: swapped", func(s *subject) { s.answer(Swapped, Block{}) }},
		{"answer: unknown", func(s *subject) { s.answer(Unknown, Block{}) }},
		{"answer: SOLO of the peer", func(s *subject) { s.answer(Current, block(Solo, 20, peerHost)) }},
		{"answer: PAIR of this seeding", func(s *subject) { s.answer(Current, block(Pair, 20, peerHost)) }},
		in(FenceDone{}), in(FenceDone{errors.New("failed")}),
		in(SeedBegin{Seed{peerInc, 2}}), in(Seeded{theirSeed}), in(Gated{200}), in(Progress{300, 300}), in(Consumed{100}),
		{"Registered", func(s *subject) { s.step(Registered{Op: s.m.ops}) }},
		{"Paused at 100", func(s *subject) { s.step(Paused{s.m.ops, 100}) }},
		{"Paused at 200", func(s *subject) { s.step(Paused{s.m.ops, 200}) }},
		{"answer: PAIR given to this copy", func(s *subject) {
			b := block(Pair, 20, selfHost)
			b.Seed = Seed{selfInc, 1}
			s.answer(Current, b)
		}},
	}
	for f := Crashed; f <= Unbootable; f++ {
		list = append(list, in(Faulted{f}))
	}
	for v := Start; v <= Protect; v++ {
		list = append(list, move{fmt.Sprintf("Command %s", [...]string{"", "start", "stop", "force", "switchover", "test-failover", "drain", "undrain", "unprotect", "protect"}[v]), func(s *subject) { s.step(Command{v}) }})
	}
	for _, r := range []Role{Standby, Secondary, Diverged, Claiming, Alone, Primary, Pausing, Yielding} {
		list = append(list, move{"peer is " + r.String(), func(s *subject) {
			seed := theirSeed
			if s.m.role.Live() {
				seed = ourSeed
			}
			s.hear(r, seed, s.m.block.Epoch)
		}})
	}
	return append(list, move{"peer owns a later epoch", func(s *subject) { s.hear(Alone, theirSeed, 20) }})
}

// TestMatrix shows each role each input and compares what happens with
// testdata/matrix.
func TestMatrix(t *testing.T) {
	datadriven.RunTest(t, "testdata/matrix", func(t *testing.T, d *datadriven.TestData) string {
		role := Role(slices.Index(roleNames[:], d.Cmd))
		level := LevelVerified
		if d.HasArg("received") {
			level = LevelReceived
		}
		var b strings.Builder
		var nothing []string
		for _, move := range moves() {
			s := reach(t, role, level)
			move.do(s)
			var outs []string
			for _, o := range s.last {
				switch o.(type) {
				case Send, Event:
				default:
					outs = append(outs, o.String())
				}
			}
			if s.m.role == role && len(outs) == 0 {
				nothing = append(nothing, move.name)
				continue
			}
			fmt.Fprintf(&b, "%s -> %v: %s\n", move.name, s.m.role, strings.Join(outs, "; "))
		}
		fmt.Fprintf(&b, "nothing: %s\n", strings.Join(nothing, ", "))
		return b.String()
	})
}
