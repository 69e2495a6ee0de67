package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/boot"
	"github.com/duet-ft/duet/hvd/boot/ext4"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/kvm/kvmtest"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/trapset"
)

var (
	soakRuns   = flag.String("soak.runs", "", "what TestSoak runs: WORKLOAD:SEED, joined by +; with :fault behind it, a bit of the replica is changed")
	soakKernel = flag.String("soak.kernel", "", "how the version of the guest's kernel begins; default: the kernel that its disk names")
	soakFor    = flag.Duration("soak.for", 0, "begin no further run after that; 0: make all of them")
	soakTimers = flag.String("soak.timers", "periodic", "the guest's timer: periodic, oneshot or tickless")
)

const (
	soakMemory = 256 << 20
	soakBoot   = "boot"
	// A run is cut off then; what was recorded until then counts.
	soakLimit, soakBootLimit = time.Minute, 5 * time.Minute
	// Boots without a recording, and what comes before the first workload.
	prepareLimit = 2 * time.Minute
)

// timerModes are arguments of the guest's kernel.
var timerModes = map[string]string{
	"periodic": "highres=off nohz=off", "oneshot": "highres=on nohz=off", "tickless": "highres=on nohz=on",
}

// TestSoak records unmodified guests while they work, replays each recording on
// another machine and compares all of both, as often and with such workloads as
// image/soak says. A boot is recorded from the first instruction; all other runs
// begin at one state, behind a login, so that each can be repeated by itself.
func TestSoak(t *testing.T) {
	if *soakRuns == "" {
		t.Skip("image/soak says what this test runs")
	}
	s, begun := newSoak(t), time.Now()
	for _, r := range strings.Split(*soakRuns, "+") {
		if *soakFor > 0 && time.Since(begun) > *soakFor {
			return
		}
		workload, number, _ := strings.Cut(r, ":")
		number, fault := strings.CutSuffix(number, ":fault")
		seed, err := strconv.ParseUint(number, 0, 64)
		if err != nil {
			t.Fatalf("-soak.runs: %q has no seed: %v", r, err)
		}
		s.run(workload, seed, fault)
		if t.Failed() {
			return
		}
	}
}

// soak is a series of runs.
type soak struct {
	t     *testing.T
	sys   *kvm.System
	rim   *soakRim
	image *boot.Image
	peer  *peer
	base  *soakBase
	// Memory of the recorded machine and of its replica, kept for the next run.
	memory [2]*mem.Memory
}

// soakBase is the state at which runs begin.
type soakBase struct {
	snapshot []byte
	memory   []byte
	written  map[uint64][]byte // to the disk
}

func newSoak(t *testing.T) *soak {
	t.Helper()
	s := &soak{t: t, sys: kvmtest.Open(t)}
	runtime.GOMAXPROCS(4)
	var err error
	if s.image, err = soakImage(*soakKernel); err != nil {
		t.Fatal(err)
	}
	s.rim = newSoakRim(t)
	s.peer = &peer{}
	t.Cleanup(func() {
		for _, m := range s.memory {
			if m != nil {
				m.Close()
			}
		}
	})
	return s
}

// soakImage is a kernel on the guest's disk with its initrd.
func soakImage(version string) (*boot.Image, error) {
	disk, err := os.Open(guestDisk)
	if err != nil {
		return nil, err
	}
	defer disk.Close()
	size, err := disk.Seek(0, 2)
	if err != nil {
		return nil, err
	}
	image, err := boot.Find(disk, size)
	if err != nil || version == "" {
		return image, err
	}
	fs, err := ext4.Open(disk, size)
	if err != nil {
		return nil, err
	}
	names, err := fs.ReadDir("/boot")
	if err != nil {
		return nil, err
	}
	for _, e := range names {
		v, ok := strings.CutPrefix(e.Name, "vmlinuz-")
		if !ok || !strings.HasPrefix(v, version) {
			continue
		}
		image.Path, image.Version = path.Join("/boot", e.Name), v
		var err [2]error
		image.Kernel, err[0] = fs.ReadFile(image.Path, boot.MaxKernel)
		image.Initrd, err[1] = fs.ReadFile("/boot/initrd.img-"+v, boot.MaxInitrd)
		return image, errors.Join(err[:]...)
	}
	return nil, fmt.Errorf("no kernel %s on the guest's disk", version)
}

// machine makes a machine on what is left of memory n.
func (s *soak) machine(n int) *machine.Machine {
	s.t.Helper()
	cfg := guestConfig(s.t)
	cfg.MemoryBytes, cfg.Memory = soakMemory, s.memory[n]
	m, err := machine.New(s.sys, cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.memory[n] = nil
	return m
}

// booted makes a machine at its kernel's first instruction.
func (s *soak) booted(n int, seed uint64) *machine.Machine {
	s.t.Helper()
	if m := s.memory[n]; m != nil { // a kernel is loaded into fresh memory
		s.memory[n] = nil
		if err := m.Close(); err != nil {
			s.t.Fatal(err)
		}
	}
	m := s.machine(n)
	o := boot.Options{Quiet: !*loud, Cmdline: timerModes[*soakTimers]}
	o.Seed[0] = byte(seed)
	entry, err := boot.Load(m.Memory, s.image, o)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := m.Boot(entry); err != nil {
		s.t.Fatal(err)
	}
	return m
}

// restored makes a machine in the state at which runs begin.
func (s *soak) restored(n int) *machine.Machine {
	s.t.Helper()
	m := s.machine(n)
	for p := range m.Memory.Pages() {
		if page, was := m.Memory.Page(p), s.base.memory[p*mem.PageSize:(p+1)*mem.PageSize]; !bytes.Equal(page, was) {
			copy(page, was)
		}
	}
	var snapshot machine.Snapshot
	if err := json.Unmarshal(s.base.snapshot, &snapshot); err != nil {
		s.t.Fatal(err)
	}
	if err := m.Restore(&snapshot); err != nil {
		s.t.Fatal(err)
	}
	return m
}

// keep ends a machine but for its memory, which is memory n.
func (s *soak) keep(n int, m *machine.Machine) {
	s.t.Helper()
	memory, err := m.CloseButMemory()
	if err != nil {
		s.t.Fatal(err)
	}
	s.memory[n] = memory
}

// prepare logs in to a guest that was booted, and makes the state that it is in
// then the one at which runs begin.
func (s *soak) prepare(m *machine.Machine) {
	s.t.Helper()
	begun := time.Now()
	plan := soakPlan{Config: tcgConfig()}
	ctx, cancel := context.WithTimeout(s.t.Context(), prepareLimit)
	defer cancel()
	e := New(m, s.rim, plan.Config)
	s.rim.begin(e, plan, rand.New(rand.NewPCG(1, 1)))
	e.Reissue()
	s.live(ctx, e, func(ctx context.Context) error {
		sh, err := login(ctx, e, s.rim.testRim)
		if err != nil {
			return err
		}
		return sh("/soak/prepare")
	})
	m.SetTraps(trapset.Initial) // as a log begins
	snapshot, err := m.Snapshot()
	if err != nil {
		s.t.Fatal(err)
	}
	s.base = &soakBase{memory: bytes.Clone(m.Memory.Bytes()), written: s.rim.written()}
	if s.base.snapshot, err = json.Marshal(snapshot); err != nil {
		s.t.Fatal(err)
	}
	s.keep(0, m)
	fmt.Printf("soak: %s with %s timers, logged in to after %.1f s\n", s.image.Version, *soakTimers, time.Since(begun).Seconds())
}

// maxConsole is how much of the console is shown when a guest fails, in bytes.
const maxConsole = 16 << 10

// live runs a machine until what is to be done in it is done.
func (s *soak) live(ctx context.Context, e *Engine, todo func(context.Context) error) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended, done := make(chan error, 1), make(chan error, 1)
	go func() { ended <- e.Live(ctx) }()
	go func() { done <- todo(ctx) }()
	select {
	case err := <-done:
		if err != nil {
			s.t.Errorf("%v\nconsole:\n%s", err, s.rim.said(-maxConsole))
		}
	case err := <-ended:
		s.t.Fatalf("the guest ended: %v\nconsole:\n%s", err, s.rim.said(-maxConsole))
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		s.t.Fatalf("the guest ended: %v\nconsole:\n%s", err, s.rim.said(-maxConsole))
	}
	s.rim.end()
	if s.t.Failed() {
		s.t.FailNow()
	}
}
