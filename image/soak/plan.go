package main

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// boot is the workload that has no script: the guest's boot to its login.
const boot = "boot"

// workloads are what guests do, each the name of a script in the directory workloads, and how often one is drawn.
var workloads = []struct {
	name   string
	weight int
}{
	{boot, 1}, {"redis", 4}, {"sqlite", 4}, {"compile", 3}, {"prime", 4}, {"gospin", 4}, {"network", 4}, {"pressure", 3},
}

var (
	// kernels are how the versions of the guest's kernels begin: the distribution's own, and its backport.
	kernels = []string{"6.1.", "6.12."}
	// timers are how a guest has its ticks made; hvd/vm's test knows their kernel arguments.
	timers = []string{"periodic", "oneshot", "tickless"}
)

// run is what a seed stands for; what else it decides, hvd/vm's test draws from it.
type run struct {
	seed                     uint64
	workload, kernel, timers string
	fault                    bool // something is changed, and has to be found
}

// runOf draws the run of a seed. fixed has what isn't to be drawn.
func runOf(seed uint64, fixed run) run {
	r := rand.New(rand.NewPCG(seed, 1))
	all := 0
	for _, w := range workloads {
		all += w.weight
	}
	at, workload := r.IntN(all), ""
	for _, w := range workloads {
		if at -= w.weight; at < 0 {
			workload = w.name
			break
		}
	}
	kernel, timer := kernels[r.IntN(len(kernels))], timers[r.IntN(len(timers))]
	return run{
		seed: seed, workload: cmp.Or(fixed.workload, workload), kernel: cmp.Or(fixed.kernel, kernel), timers: cmp.Or(fixed.timers, timer),
	}
}

// maxBatch is how many runs one emulated host makes.
const maxBatch = 50

// batch is what one emulated host runs: guests that differ in nothing that is decided before their boot.
type batch []run

// batches sorts runs into batches, boots first: what follows a boot begins where it ended.
func batches(runs []run) []batch {
	var list []batch
	for _, kernel := range kernels {
		for _, timer := range timers {
			var b batch
			for _, r := range runs {
				if r.kernel == kernel && r.timers == timer {
					b = append(b, r)
				}
			}
			slices.SortStableFunc(b, func(x, y run) int { return cmp.Compare(rank(x), rank(y)) })
			for part := range slices.Chunk(b, maxBatch) {
				list = append(list, part)
			}
		}
	}
	return list
}

func rank(r run) int {
	if r.workload == boot {
		return 0
	}
	return 1
}

// args are the arguments that have hvd/vm's TestSoak make the batch.
func (b batch) args() []string {
	var list []string
	for _, r := range b {
		s := fmt.Sprintf("%s:%d", r.workload, r.seed)
		if r.fault {
			s += ":fault"
		}
		list = append(list, s)
	}
	return []string{"-soak.kernel=" + b[0].kernel, "-soak.timers=" + b[0].timers, "-soak.runs=" + strings.Join(list, "+")}
}
