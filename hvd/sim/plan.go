package sim

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
)

// Step names something that is done to the world: a fault or a user's command.
// The same seed has the same steps whatever happens meanwhile, so one that isn't
// needed can be left out.
type Step struct {
	Class byte // f: a fault, u: a user's move, w: a fault at the worst moment, e: what a user wants in the end
	N     int  // counts within the class
}

// String is the class and the number, as in f12.
func (s Step) String() string { return string(rune(s.Class)) + strconv.Itoa(s.N) }

// ParseSteps reads a list of steps with commas between.
func ParseSteps(list string) ([]Step, error) {
	var steps []Step
	for _, word := range strings.Split(list, ",") {
		s := Step{}
		var err error
		if len(word) > 1 && strings.ContainsRune("fuwe", rune(word[0])) {
			s.Class = word[0]
			s.N, err = strconv.Atoi(word[1:])
		}
		if s.Class == 0 || err != nil {
			return nil, fmt.Errorf("%q isn't a step: want f, u, w or e and a number", word)
		}
		steps = append(steps, s)
	}
	return steps, nil
}

// plan is the steps of one history.
type plan struct {
	seed  uint64
	times map[byte]*rand.Rand // when the steps of a class come, and how many
	next  map[byte]int
	keep  map[Step]bool // nil: all
	done  []Step
	story []string // a line for each step, if wanted
	tell  bool
	now   *Step // the one that is being carried out
}

func newPlan(seed uint64, o Options) plan {
	p := plan{seed: seed, times: map[byte]*rand.Rand{}, next: map[byte]int{}, tell: o.Story}
	for _, class := range []byte("fuw") {
		p.times[class] = rand.New(rand.NewPCG(seed, uint64(class)))
	}
	if o.Keep != nil {
		p.keep = map[Step]bool{}
		for _, s := range o.Keep {
			p.keep[s] = true
		}
	}
	return p
}

// inject carries out a step, unless it is left out: do draws from a source of its
// own, so that no other step depends on it.
func (w *World) inject(class byte, do func()) {
	p := &w.plan
	s := Step{class, p.next[class]}
	p.next[class]++
	if p.keep != nil && !p.keep[s] {
		return
	}
	p.done = append(p.done, s)
	rng, now := w.rng, p.now
	w.rng, p.now = rand.New(rand.NewPCG(p.seed^uint64(class)<<56, uint64(s.N))), &s
	do()
	w.rng, p.now = rng, now
}

// did counts what a step did, and tells of it.
func (w *World) did(k faultKind, host int, format string, args ...any) {
	w.count.Coverage.add(k, w.roleAt(host))
	if w.plan.tell && w.plan.now != nil {
		w.plan.story = append(w.plan.story, fmt.Sprintf("%9.4f %-4v %s", w.now.Seconds(), *w.plan.now, fmt.Sprintf(format, args...)))
	}
	w.log(format, args...)
}

// Shrunk is a failing history with as few steps as were found to be needed.
type Shrunk struct {
	Steps []Step
	Vary  uint64 // Options.Vary
	Of    int    // steps of the whole history
	Runs  int
	Story []string // a line for each step, with its time
	Err   error
}

// variants is how many draws of what isn't a step are tried with fewer steps: a
// mistake that takes a race shows in some of them only.
const variants = 12

// Shrink looks for a subset of a failing history's steps that still fails: it
// leaves out large parts first, then smaller ones, down to single steps. It gives
// up after limit runs, with what it has.
func Shrink(seed uint64, o Options, limit int) Shrunk {
	o.Trace, o.Story, o.Keep, o.Vary = nil, false, nil, 0
	all, err := run(seed, o)
	s := Shrunk{Steps: all.plan.done, Of: len(all.plan.done), Err: err, Runs: 1}
	for part := max(1, len(s.Steps)/2); err != nil && s.Runs < limit; {
		shorter := false
		for from := 0; from < len(s.Steps) && s.Runs < limit; {
			less := append(append([]Step{}, s.Steps[:from]...), s.Steps[min(from+part, len(s.Steps)):]...)
			if s.without(seed, o, less) {
				shorter = true
			} else {
				from += part
			}
		}
		switch {
		case part > 1:
			part /= 2
		case !shorter:
			limit = 0
		}
	}
	o.Keep, o.Vary, o.Story = s.Steps, s.Vary, true
	w, _ := run(seed, o)
	s.Story = w.plan.story
	return s
}

// without plays a history with no more than these steps, and notes it if it fails.
func (s *Shrunk) without(seed uint64, o Options, steps []Step) bool {
	o.Keep = steps
	for v := range uint64(variants) {
		o.Vary = s.Vary + v
		w, err := run(seed, o)
		s.Runs++
		if err != nil {
			s.Steps, s.Vary, s.Err = w.plan.done, o.Vary, err
			return true
		}
	}
	return false
}

// String is the steps with their times, and how to play them.
func (s Shrunk) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "of %d steps, %d suffice (found in %d runs):\n", s.Of, len(s.Steps), s.Runs)
	names := make([]string, len(s.Steps))
	for i, step := range s.Steps {
		names[i] = step.String()
	}
	for _, line := range s.Story {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	fmt.Fprintf(&b, "  %v\nVARY=%d KEEP=%s", s.Err, s.Vary, strings.Join(names, ","))
	return b.String()
}
