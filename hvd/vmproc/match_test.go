package vmproc

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/hostcfg"
	"github.com/duet-ft/duet/hvd/volume"
)

var good = traits{Log: event.Version, Image: "0123456789ab", CPU: "AMD EPYC 7313P", Leaves: "aabbccddeeff"}

func TestMismatch(t *testing.T) {
	for _, c := range []struct {
		name string
		peer func(*traits)
		want string
	}{
		{"equal", func(*traits) {}, ""},
		{
			"another model", func(p *traits) { p.CPU, p.Leaves = "Intel Xeon 8370C", "112233445566" },
			"host b can't protect the VM: its CPU is AMD EPYC 7313P, host a's is Intel Xeon 8370C; a pair needs two of the same model",
		},
		{
			"the same model with other features", func(p *traits) { p.Leaves = "112233445566" },
			"host b can't protect the VM: its CPU has other features (aabbccddeeff) than host a's (112233445566), though both are AMD EPYC 7313P; " +
				"give both the same firmware and settings",
		},
		{
			"another image", func(p *traits) { p.Image = "ffffffffffff" },
			"host b can't protect the VM: its image is version 0123456789ab, host a's is ffffffffffff; flash both hosts with the same image",
		},
		{
			"another log format", func(p *traits) { p.Log = event.Version + 7 },
			"host b can't protect the VM: its log format is version 3, host a's is 10; flash both hosts with the same image",
		},
		{
			"an image from before there were traits", func(p *traits) { *p = traits{Log: event.Version} },
			"host b can't protect the VM: its image is version 0123456789ab, host a's is unknown; flash both hosts with the same image",
		},
		{
			"hostile text", func(p *traits) { p.CPU, p.Leaves = "evil\n\x1b[2J"+strings.Repeat("x", 1<<16), "0" },
			"host b can't protect the VM: its CPU is AMD EPYC 7313P, host a's is evil??[2J" + strings.Repeat("x", 39) + "; a pair needs two of the same model",
		},
	} {
		peer := good
		c.peer(&peer)
		if got := mismatch("b", good, "a", peer); got != c.want {
			t.Errorf("%s:\n got %q\nwant %q", c.name, got, c.want)
		}
	}
}

// The traits reach the other side in the header.
func TestHeaderCarriesTraits(t *testing.T) {
	sent := seedHeader{Seed: pair.Seed{Incarnation: 7, N: 1}, Memory: 64 << 20, Host: good}
	var got seedHeader
	if err := json.Unmarshal(sent.encode(), &got); err != nil || got != sent {
		t.Errorf("%+v became %+v (%v)", sent, got, err)
	}
}

func TestRefusalRepeats(t *testing.T) {
	now := time.Now()
	r := refusal{peer: 7, line: "no", at: now}
	for _, c := range []struct {
		peer  uint64
		line  string
		after time.Duration
		told  bool
		wait  time.Duration
	}{
		{7, "no", 0, true, refuseAgain},
		{7, "no", refuseAgain - time.Second, true, time.Second},
		{7, "no", refuseAgain, false, 0},
		{7, "no", 2 * refuseAgain, false, 0},
		{7, "still no", time.Second, false, refuseAgain - time.Second},
		{8, "no", time.Second, false, 0},
	} {
		at := now.Add(c.after)
		if told, wait := r.repeats(c.peer, c.line, at), r.wait(c.peer, at); told != c.told || wait != c.wait {
			t.Errorf("incarnation %d, %q, after %v: told already %v, wait %v; want %v, %v", c.peer, c.line, c.after, told, wait, c.told, c.wait)
		}
	}
	if wait := (refusal{}).wait(7, now); wait != 0 {
		t.Errorf("a peer that never refused waits %v", wait)
	}
}

// A transfer that doesn't fit harms nothing: no copy is made, the protocol isn't
// told, and people are told once, where they look.
func TestBeginSeedRefuses(t *testing.T) {
	p := &Process{
		host: &hostcfg.Config{Name: "b", Peer: &hostcfg.Peer{Name: "a"}},
		def:  volume.Definition{Name: "db", MemoryMiB: 64},
		own:  good, inputs: make(chan pair.Input, 8),
	}
	other := good
	other.CPU, other.Leaves = "Intel Xeon 8370C", "112233445566"
	const line = "host b can't protect the VM: its CPU is AMD EPYC 7313P, host a's is Intel Xeon 8370C; a pair needs two of the same model"
	for range 3 {
		err := p.beginSeed(7, nil, seedHeader{Memory: 64 << 20, Host: other})
		if no := refusedError(""); !errors.As(err, &no) || string(no) != line {
			t.Fatalf("error %v, want %q", err, line)
		}
	}
	if p.trouble != line || p.refused.peer != 7 || p.incoming != nil || p.guest != nil || len(p.inputs) != 0 {
		t.Errorf("trouble %q, refused %+v, %d inputs", p.trouble, p.refused, len(p.inputs))
	}
	if s := p.status(); s.Error != line || s.Live || s.Protected {
		t.Errorf("status %+v", s)
	}
	err := p.beginSeed(7, nil, seedHeader{Memory: 128 << 20, Host: good})
	if err == nil || !strings.Contains(err.Error(), "its copy has 67108864 bytes of memory, host a's has 134217728") {
		t.Errorf("other memory: %v", err)
	}
}

// A peer that refused is left alone for a while, and only that one.
func TestTurnedDown(t *testing.T) {
	p := &Process{}
	p.turnedDown(7, errors.New("the peer closed the stream"))
	if hold := p.holdSeed(7); hold <= refuseAgain/2 || hold > refuseAgain {
		t.Errorf("the next transfer waits %v", hold)
	}
	if hold := p.holdSeed(8); hold != 0 {
		t.Errorf("a transfer to another process waits %v", hold)
	}
	if p.trouble != "state transfer: the peer closed the stream" {
		t.Errorf("trouble %q", p.trouble)
	}
}

func TestProgramFingerprint(t *testing.T) {
	one, err := programFingerprint()
	if err != nil || len(one) != 12 {
		t.Fatalf("%q, %v", one, err)
	}
	if again, err := programFingerprint(); again != one {
		t.Errorf("%q, then %q (%v)", one, again, err)
	}
}
