package vmproc

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/ftlink/wire"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/hostcfg"
	"github.com/duet-ft/duet/hvd/volume"
)

var good = traits{
	Log: event.Version, Image: "0123456789ab", Kernel: "6.12.48 #1 SMP Mon", CPU: "AMD EPYC 7313P", Microcode: "0xa0011d5", Leaves: "aabbccddeeff",
}

func TestMismatch(t *testing.T) {
	for _, c := range []struct {
		name string
		peer func(*traits)
		want string
	}{
		{"equal", func(*traits) {}, ""},
		{
			"another model", func(p *traits) { p.CPU, p.Microcode, p.Leaves = "Intel Xeon 8370C", "0xd0003b9", "112233445566" },
			"host b can't protect the VM: its CPU is AMD EPYC 7313P, host a's is Intel Xeon 8370C; a pair needs two of the same model",
		},
		{
			"another model with the same features", func(p *traits) { p.CPU = "AMD EPYC 7343" },
			"host b can't protect the VM: its CPU is AMD EPYC 7313P, host a's is AMD EPYC 7343; a pair needs two of the same model",
		},
		{
			"other microcode", func(p *traits) { p.Microcode, p.Leaves = "0xa0011ff", "112233445566" },
			"host b can't protect the VM: its CPU's microcode is 0xa0011d5, host a's is 0xa0011ff; give both the same firmware",
		},
		{
			"the same model with other features", func(p *traits) { p.Leaves = "112233445566" },
			"host b can't protect the VM: its CPU's set of features is aabbccddeeff, host a's is 112233445566; give both the same firmware and settings",
		},
		{
			"another build of the kernel", func(p *traits) { p.Kernel = "6.12.48 #2 SMP Tue" },
			"host b can't protect the VM: its kernel is 6.12.48 #1 SMP Mon, host a's is 6.12.48 #2 SMP Tue; flash both hosts with the same image, and boot both",
		},
		{
			"another image", func(p *traits) { p.Image = "ffffffffffff" },
			"host b can't protect the VM: its image is version 0123456789ab, host a's is ffffffffffff; flash both hosts with the same image",
		},
		{
			"another log format", func(p *traits) { p.Log = event.Version + 7 },
			fmt.Sprintf("host b can't protect the VM: its log format is version %d, host a's is %d; flash both hosts with the same image", event.Version, event.Version+7),
		},
		{
			"an image from before there were traits", func(p *traits) { *p = traits{Log: event.Version} },
			"host b can't protect the VM: its image is version 0123456789ab, host a's is unknown; flash both hosts with the same image",
		},
		{
			"hostile text", func(p *traits) { p.CPU, p.Leaves = "evil\n\x1b[2J"+strings.Repeat("x", 1<<16), "0" },
			"host b can't protect the VM: its CPU is AMD EPYC 7313P, host a's is evil??[2J" + strings.Repeat("x", maxTrait-9) + "; a pair needs two of the same model",
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

// Each trait counts, whatever else is the same.
func TestMismatchSeesEachTrait(t *testing.T) {
	all := reflect.TypeFor[traits]()
	for i := range all.NumField() {
		peer := good
		if f := reflect.ValueOf(&peer).Elem().Field(i); f.Kind() == reflect.String {
			f.SetString(f.String() + "!")
		} else {
			f.SetInt(f.Int() + 1)
		}
		line := mismatch("b", good, "a", peer)
		if line == "" || strings.Contains(line, "\n") || len(line) > wire.TypeBye.Limit() {
			t.Errorf("another %s: %q", all.Field(i).Name, line)
		}
	}
}

func TestMicrocode(t *testing.T) {
	const cpu = "processor\t: %d\nmodel name\t: a microcode\nmicrocode\t: %s\nflags\t\t: fpu\n\n"
	for _, c := range []struct{ text, want string }{
		{fmt.Sprintf(cpu+cpu, 0, "0xa0011d5", 1, "0xa0011d5"), "0xa0011d5"},
		{fmt.Sprintf(cpu+cpu+cpu, 0, "0x2", 1, "0x1", 2, "0x2"), "0x1+0x2"},
		{"processor\t: 0\nmodel name\t: old\n", "none"},
		{"", "none"},
	} {
		if got := microcode(c.text); got != c.want {
			t.Errorf("%q: %q, want %q", c.text, got, c.want)
		}
	}
}

// The kernel is told by its build, too: its release alone stays when it is
// built anew with another patch.
func TestRunningKernel(t *testing.T) {
	got, err := runningKernel()
	if err != nil {
		t.Fatal(err)
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	build, err := os.ReadFile("/proc/sys/kernel/version")
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.TrimSpace(string(release)) + " " + strings.TrimSpace(string(build)); got != want {
		t.Errorf("%q, want %q", got, want)
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
	p.tie.Store(&tie{peer: p.host.Peer})
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
	err = p.beginSeed(7, nil, seedHeader{Memory: 64 << 20, Host: good, Disks: "2048+4096"})
	if err == nil || !strings.Contains(err.Error(), "its disks lie at blocks unknown, host a's at 2048+4096") {
		t.Errorf("other disks: %v", err)
	}
}

// A process that refused is no peer any more, and only that one: the protocol
// learns of no stream to it, so that the VM stays solo.
func TestTurnedDown(t *testing.T) {
	p := &Process{}
	if p.unwanted(7) {
		t.Error("a process that refused nothing is unwanted")
	}
	p.turnedDown(7, errors.New("the peer closed the stream"))
	if !p.unwanted(7) || p.unwanted(8) {
		t.Errorf("after a refusal by 7: 7 is unwanted: %v, 8: %v", p.unwanted(7), p.unwanted(8))
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
