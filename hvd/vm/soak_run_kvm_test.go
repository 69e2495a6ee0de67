package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/mem"
)

// soakRecord is one recorded run and where it ended.
type soakRecord struct {
	plan    soakPlan
	base    event.Base
	log     bytes.Buffer
	steps   []machine.Step // the first maxSoakSteps
	stats   *Stats
	took    time.Duration
	cut     bool // the workload had no time to end
	final   *machine.Snapshot
	machine *machine.Machine
}

// maxSoakSteps bounds the exits that are kept, 200 bytes each.
const maxSoakSteps = 1 << 19

// run records one run, replays it and compares. fault changes a bit of the
// replica, which must be found.
func (s *soak) run(workload string, seed uint64, fault bool) {
	s.t.Helper()
	rng := rand.New(rand.NewPCG(seed, 0x50a4))
	plan := planOf(rng)
	fresh := func(n int) *machine.Machine { return s.restored(n) }
	todo, limit := func(ctx context.Context) error { return s.work(ctx, workload, plan) }, soakLimit
	switch {
	case workload == soakBoot:
		fresh = func(n int) *machine.Machine { return s.booted(n, seed) }
		todo = func(ctx context.Context) error { return s.rim.expect(ctx, 0, "login: ") }
		limit = soakBootLimit
		s.rim.rewrite(nil)
	case s.base == nil:
		s.unrecorded()
		fallthrough
	default:
		s.rim.rewrite(s.base.written)
	}
	r := s.record(fresh(0), plan, rng, todo, limit)
	replica := fresh(1)
	if fault {
		flipABit(replica.Memory, rng)
	}
	begun := time.Now()
	differ := s.replay(r, replica)
	line := fmt.Sprintf("run: %s seed %d kernel %s timers %s: %s, replayed in %.1f s: ",
		workload, seed, s.image.Version, *soakTimers, r, time.Since(begun).Seconds())
	if len(differ) == 0 {
		fmt.Println(line + "equal")
	} else {
		s.explain(r, func() *machine.Machine { s.keep(1, replica); replica = fresh(1); return replica })
		s.t.Errorf("%s%s\nthe plan: %v", line, strings.Join(differ, "; "), plan)
	}
	s.keep(1, replica)
	if workload == soakBoot && s.base == nil && len(differ) == 0 {
		s.prepare(r.machine)
		return
	}
	s.keep(0, r.machine)
}

// unrecorded boots a guest for the runs that don't begin with a boot.
func (s *soak) unrecorded() {
	s.t.Helper()
	m := s.booted(0, 0)
	plan := soakPlan{Config: tcgConfig()}
	e := New(m, s.rim, plan.Config)
	s.rim.rewrite(nil)
	s.rim.forget()
	s.rim.begin(e, plan, rand.New(rand.NewPCG(1, 1)))
	ctx, cancel := context.WithTimeout(s.t.Context(), prepareLimit)
	defer cancel()
	s.live(ctx, e, func(ctx context.Context) error { return s.rim.expect(ctx, 0, "login: ") })
	s.prepare(m)
}

// work has the guest's shell run a workload to its end.
func (s *soak) work(ctx context.Context, workload string, plan soakPlan) error {
	command, check := "/soak/"+workload, func(string) error { return nil }
	if workload == "network" {
		var args string
		args, check = s.peer.begin(ctx)
		command += args
	}
	if plan.sleeper != "" {
		command = plan.sleeper + command + "; S=$?; kill $!; ( exit $S )"
	}
	if err := s.rim.say(ctx, command+"; echo soak-''ended $? soak-''over"); err != nil {
		return err
	}
	if err := s.rim.expect(ctx, 0, "soak-over"); err != nil {
		return err
	}
	said := s.rim.said(0)
	if !strings.Contains(said, "soak-ended 0 soak-over") {
		return fmt.Errorf("the workload %s failed:\n%s", workload, s.rim.tail())
	}
	return check(said)
}

// record runs m with the plan until the workload has ended, or for limit.
func (s *soak) record(m *machine.Machine, plan soakPlan, rng *rand.Rand, todo func(context.Context) error, limit time.Duration) *soakRecord {
	s.t.Helper()
	r := &soakRecord{plan: plan, base: m.Base(), machine: m}
	e := New(m, s.rim, plan.Config)
	r.stats = &e.Stats
	s.rim.forget()
	s.rim.begin(e, plan, rng)
	startLog(s.t, e, m, &r.log)
	m.Trace = func(step machine.Step) {
		if len(r.steps) < maxSoakSteps {
			r.steps = append(r.steps, step)
		}
	}
	e.Reissue()
	loaded, unload := context.WithCancel(s.t.Context())
	go plan.load(loaded)
	begun := time.Now()
	s.live(s.t.Context(), e, func(ctx context.Context) error {
		within, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		err := todo(within)
		if errors.Is(err, context.DeadlineExceeded) {
			r.cut, err = true, nil
		}
		return err
	})
	unload()
	r.took = time.Since(begun)
	m.Trace = nil
	if err := e.flush(time.Now(), true); err != nil {
		s.t.Fatal(err)
	}
	var err error
	if r.final, err = m.Snapshot(); err != nil {
		s.t.Fatal(err)
	}
	return r
}

// String says what was recorded.
func (r *soakRecord) String() string {
	s := r.stats
	exit, trap, resync := s.AtExit.Load(), s.AtTrap.Load(), s.AtResync.Load()
	share := 100 / float64(max(1, exit+trap+resync))
	text := fmt.Sprintf("%d exits, %d ticks, log %d bytes, %d resyncs of %d bytes, inputs at exits %.1f %%, traps %.1f %%, resyncs %.1f %%, recorded in %.1f s",
		s.Exits.Load(), s.Ticks.Load(), s.LogBytes.Load(), s.Resyncs.Load(), s.ResyncBytes.Load()/max(1, s.Resyncs.Load()),
		share*float64(exit), share*float64(trap), share*float64(resync), r.took.Seconds())
	if r.cut {
		text += " and cut off"
	}
	return text
}

// replay executes a recording on another machine and says what differs.
func (s *soak) replay(r *soakRecord, m *machine.Machine) (differ []string) {
	s.t.Helper()
	if err := m.Track(); err != nil {
		s.t.Fatal(err)
	}
	e := New(m, discard{}, r.plan.Config)
	if err := e.Feed(0, bytes.Clone(r.log.Bytes())); err != nil {
		s.t.Fatal(err)
	}
	e.Consume()
	var verified uint64
	err := e.Replay(s.t.Context(), r.base, func(_, v uint64) { verified = v })
	if err != nil {
		return []string{err.Error()}
	}
	if verified != uint64(r.log.Len()) {
		differ = append(differ, fmt.Sprintf("verified up to LSN %d of %d", verified, r.log.Len()))
	}
	return append(differ, s.compare(r, m)...)
}

// compare compares all that two machines are.
func (s *soak) compare(r *soakRecord, m *machine.Machine) (differ []string) {
	s.t.Helper()
	got, err := m.Snapshot()
	if err != nil {
		s.t.Fatal(err)
	}
	want := r.final
	if got.Position != want.Position || got.Fingerprint != want.Fingerprint {
		differ = append(differ, fmt.Sprintf("ended at exit %d with fingerprint %x, recorded %d with %x",
			got.Position, got.Fingerprint, want.Position, want.Fingerprint))
	}
	for _, part := range []struct{ name, got, want string }{
		{"CPU", fmt.Sprintf("%x", got.CPU), fmt.Sprintf("%x", want.CPU)},
		{"counters", fmt.Sprintf("%+v", got.Counters), fmt.Sprintf("%+v", want.Counters)},
		{"devices", string(got.Board), string(want.Board)},
	} {
		if part.got != part.want {
			differ = append(differ, fmt.Sprintf("the %s: %s, recorded %s", part.name, part.got, part.want))
		}
	}
	var pages []string
	for p := range m.Memory.Pages() {
		a, b := m.Memory.Page(p), r.machine.Memory.Page(p)
		if !bytes.Equal(a, b) && m.Memory.HashPage(p) != r.machine.Memory.HashPage(p) {
			pages = append(pages, fmt.Sprintf("%#x", p))
		}
	}
	if len(pages) > 0 {
		differ = append(differ, fmt.Sprintf("%d pages of memory differ: %s", len(pages), strings.Join(pages[:min(8, len(pages))], " ")))
	}
	return differ
}

// flipABit changes a page that isn't empty.
func flipABit(m *mem.Memory, rng *rand.Rand) {
	for {
		if p := rng.IntN(m.Pages()); !m.IsZero(p) && !m.MayBeTable(p) {
			m.Page(p)[rng.IntN(mem.PageSize)] ^= 1 << rng.IntN(8)
			return
		}
	}
}

// replaysAgain is how often a recording that wasn't replayed equally is tried
// once more: whether the attempts agree tells a wrong recording from a replay
// that isn't exact.
const replaysAgain = 3

// explain names the first exit that differs, with what came before and what
// arrived there, and tries again.
func (s *soak) explain(r *soakRecord, fresh func() *machine.Machine) {
	s.t.Helper()
	var firsts []string
	for n := range replaysAgain {
		m := fresh()
		if n == 0 {
			if err := s.save(r, m); err != nil {
				fmt.Printf("soak: the recording isn't kept: %v\n", err)
			}
		}
		first := -1
		var other machine.Step
		at := 0
		m.Trace = func(step machine.Step) {
			if first < 0 && at < len(r.steps) && step != r.steps[at] {
				first, other = at, step
			}
			at++
		}
		differ := s.replay(r, m)
		m.Trace = nil
		outcome := "equal"
		switch {
		case first >= 0:
			outcome = fmt.Sprintf("exit %d is the first that differs", r.steps[first].Position)
		case len(differ) > 0:
			outcome = strings.Join(differ, "; ")
		}
		fmt.Printf("soak: replayed again: %s\n", outcome)
		if first >= 0 && !slices.Contains(firsts, outcome) {
			s.describe(r, first, other)
		}
		firsts = append(firsts, outcome)
	}
}

// describe prints an exit that differs and its surroundings.
func (s *soak) describe(r *soakRecord, first int, other machine.Step) {
	for i := max(0, first-3); i < first; i++ {
		fmt.Printf("soak: equal    %+v\n", r.steps[i])
	}
	want := r.steps[first]
	fmt.Printf("soak: recorded %+v\nsoak: replayed %+v\n", want, other)
	dec := event.NewDecoder(r.base)
	for rest := r.log.Bytes(); len(rest) > 0; {
		e, n, err := dec.Next(rest)
		if err != nil {
			fmt.Printf("soak: the log: %v\n", err)
			return
		}
		rest = rest[n:]
		if e.Pos+3 >= want.Position && e.Pos <= want.Position {
			fmt.Printf("soak: the log at exit %d: %v, now %d, traps %d, disk %d request %d status %d, %d bytes\n",
				e.Pos, e.Kind, e.Now, e.Traps, e.Disk, e.ID, e.Status, len(e.Data))
		}
	}
}
