package vmproc

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/hostcfg"
	"github.com/duet-ft/duet/hvd/hostkey"
	"github.com/duet-ft/duet/hvd/volume"
)

// lonely is a copy whose guest runs alone, as far as the protocol knows, on a host that is paired with what file says.
func lonely(t *testing.T, file string) *Process {
	t.Helper()
	p := &Process{
		opt: Options{HostConfig: filepath.Join(filepath.Dir(file), "host.json")}, key: hostkey.New(),
		def: volume.Definition{Name: "db", UUID: "01000000-0000-0000-0000-000000000000"}, incarnation: 7,
		inputs: make(chan pair.Input, 64), later: make(chan func(context.Context), 1),
	}
	var err error
	if p.host, err = hostcfg.Load(p.opt.HostConfig); err != nil {
		t.Fatal(err)
	}
	first, err := p.newTie(p.host)
	if err != nil {
		t.Fatal(err)
	}
	p.tie.Store(first)
	self, vm := hostID(public(p.key)), pair.UUID{1}
	if p.pair, err = pair.New(pair.Config{Self: self, Peer: hostID(first.with.Key), VM: vm}, 7); err != nil {
		t.Fatal(err)
	}
	block := pair.Block{VM: vm, Kind: pair.Solo, Epoch: 1, Owner: self}
	var give func(in pair.Input)
	give = func(in pair.Input) {
		for _, o := range p.pair.Step(in) {
			switch o := o.(type) {
			case pair.Arbiter:
				done := pair.ArbiterDone{Op: o.Op, Answer: pair.Current, Block: block}
				if o.Kind == pair.Swap {
					block = o.New
					done.Answer, done.Block = pair.Swapped, block
				}
				give(done)
			case pair.Fence:
				give(pair.FenceDone{})
			}
		}
	}
	for now := time.Duration(0); now < 5*time.Second; now += 20 * time.Millisecond {
		give(pair.Tick{Now: now})
	}
	if p.pair.Role() != pair.Alone {
		t.Fatalf("role %v", p.pair.Role())
	}
	return p
}

func public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

// TestMeet has a copy whose guest runs alone look who its host is paired with: with nobody, then with another host, then
// with the same, and at last while it has something under way.
func TestMeet(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pair.json")
	paired := func(name string) *hostcfg.Peer {
		p := hostcfg.Pairing{Name: "a", Direct: "none0"}
		if name != "" {
			p.Peer = &hostcfg.Peer{Name: name, Key: hex.EncodeToString(public(hostkey.New()))}
		}
		if err := p.Store(file); err != nil {
			t.Fatal(err)
		}
		return p.Peer
	}
	paired("")
	p := lonely(t, file)
	ctx, cancel := context.WithCancel(t.Context())
	first := p.tie.Load()
	first.run(ctx)
	defer func() { cancel(); <-p.tie.Load().done }()
	if first.peer != nil {
		t.Fatalf("the peer is %+v", first.peer)
	}
	if err := p.meet(ctx); err != nil || p.tie.Load() != first {
		t.Errorf("nothing has changed: %v", err)
	}
	b := paired("b")
	if err := p.meet(ctx); err != nil {
		t.Fatal(err)
	}
	second := p.tie.Load()
	if second.peer == nil || *second.peer != *b {
		t.Errorf("the peer is %+v, want %+v", second.peer, b)
	}
	select {
	case <-first.done:
	default:
		t.Error("the link to the old peer still runs")
	}
	// The protocol listens to the new one.
	key, _ := b.PublicKey()
	p.pair.Step(pair.LinkUp{Incarnation: 9})
	p.pair.Step(pair.Received{Path: pair.Direct, Msg: pair.Message{VM: pair.UUID{1}, From: hostID(key), Incarnation: 9, Seq: 1, Role: pair.Standby, Epoch: 2}})
	if p.pair.Role() != pair.Seeding {
		t.Errorf("the new peer isn't seeded: %v", p.pair.Role())
	}
	paired("c")
	if err := p.meet(ctx); err == nil || !strings.Contains(err.Error(), "VM db can't have another peer now") {
		t.Errorf("another peer in the middle of a state transfer: %v", err)
	}
	if p.tie.Load() != second {
		t.Error("the link was replaced all the same")
	}
}
