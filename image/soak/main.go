// Command soak records unmodified guests while they work and replays each recording, until something differs:
//
//	go run ./image/soak [-runs n] [-seed s] [-workload w] [-kernel k] [-timers t] [-for d] [-fault]
//
// A run's seed decides all that is decided about it: workload, kernel, the guest's timers, when its inputs arrive and
// how long they may wait, what is counted as traps, how busy the host is. Not decided is what the host does meanwhile:
// the same seed makes a run of the same kind, never the same one. Runs have the seeds s, s+1 and so on; each prints a line.
// Everything is compared: fingerprints, all of memory, CPU, devices. The first difference ends it with status 1, and is
// explained: the first exit that differs as both made it, what the log has there, and whether further replays agree. The
// recording is kept for hvd replay and a debugger.
//
// # Place
//
// The runs themselves are hvd/vm's TestSoak, in hosts that image/nested emulates; image/workload builds the guest's
// disk, with the scripts and what they need. plan.go decides, tally.go reads what is printed; both are pure.
//
// -fault changes one bit of the last replica's memory: that run must fail then.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"time"

	"github.com/duet-ft/duet/hvd/recording"
	"github.com/duet-ft/duet/image/guest"
	"github.com/duet-ft/duet/image/lab"
	"github.com/duet-ft/duet/image/nested"
	"github.com/duet-ft/duet/image/workload"
)

// hostMemoryMiB holds two guests of 256 MiB, the state they begin at, and a recording of 100 MB with its trail, twice
// over for the collector. With 1800 a host ended at its second recording of that size.
const hostMemoryMiB = 3000

// options are the command line's.
type options struct {
	runs  int
	seed  uint64
	fixed run
	core  int
	mib   int
	limit time.Duration
	fault bool
	loud  bool
	keep  string // where a recording goes that isn't replayed equally
	root  string // of the source tree
}

func main() {
	var o options
	flag.IntVar(&o.runs, "runs", 20, "how many runs")
	flag.Uint64Var(&o.seed, "seed", 0, "of the first run; 0: at random")
	flag.StringVar(&o.fixed.workload, "workload", "", "run this one only: boot, or a script in image/workload/scripts")
	flag.StringVar(&o.fixed.kernel, "kernel", "", "run with this one only: 6.1. or 6.12.")
	flag.StringVar(&o.fixed.timers, "timers", "", "run with these only: periodic, oneshot or tickless")
	flag.IntVar(&o.core, "core", 0, "the core that the emulated host is pinned to")
	flag.IntVar(&o.mib, "mib", 2, "how many MiB the workload network receives, and sends")
	flag.DurationVar(&o.limit, "for", 0, "begin no further run after that; 0: make all of them")
	flag.BoolVar(&o.fault, "fault", false, "change a bit of the last replica's memory, which must be found")
	flag.BoolVar(&o.loud, "console", false, "print what the guests print, and have their kernels print all")
	flag.StringVar(&o.keep, "keep", "soak.recording", "where a recording goes that isn't replayed equally")
	flag.Parse()
	if o.seed == 0 {
		o.seed = 1 + rand.Uint64N(1_000_000_000)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := soak(ctx, o, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

// soak makes the runs, host by host, until one fails.
func soak(ctx context.Context, o options, out io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	say := func(line string) { fmt.Fprintln(out, line) }
	if err := lab.Install(ctx, say); err != nil {
		return err
	}
	image, err := workload.BuildGuest(ctx, say)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "duet-soak-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var runs []run
	for n := range o.runs {
		runs = append(runs, runOf(o.seed+uint64(n), o.fixed))
	}
	list := batches(runs)
	if o.fault {
		last := list[len(list)-1]
		last[len(last)-1].fault = true
	}
	say(fmt.Sprintf("%d runs from seed %d", o.runs, o.seed))
	kept := filepath.Join(dir, "kept")
	if err := errors.Join(os.WriteFile(kept, nil, 0o600), os.Truncate(kept, maxKept)); err != nil {
		return err
	}
	begun, seen := time.Now(), newTally(out)
	for _, b := range list {
		args := []string{"-test.run=^TestSoak$", "-test.timeout=10h", fmt.Sprintf("-soak.mib=%d", o.mib)}
		if o.loud {
			args = append(args, "-test.v", "-loud")
		}
		if left := o.limit - time.Since(begun); o.limit > 0 {
			if left <= 0 {
				break
			}
			args = append(args, "-soak.for="+left.String())
		}
		err = nested.Run(ctx, dir, nested.Config{
			Kernel: filepath.Join(o.root, "image/kernel/vmlinuz"), Package: "github.com/duet-ft/duet/hvd/vm", Disks: []string{image},
			Kept: []string{kept}, MemoryMiB: hostMemoryMiB, Core: o.core, Args: append(args, b.args()...), Log: seen,
		})
		if err != nil {
			err = errors.Join(err, keep(kept, o.keep, say))
			break
		}
	}
	say(fmt.Sprintf("\n%s%d of %d runs equal, in %v", seen.summary(), seen.runs, o.runs, time.Since(begun).Round(time.Second)))
	if err == nil && seen.runs != o.runs && o.limit == 0 {
		err = errors.New("some runs are missing")
	}
	return err
}

// maxKept is the room for a recording that wasn't replayed equally.
const maxKept = 4 << 30

// keep copies the recording that the host has left on a disk, if there is one.
func keep(disk, to string, say func(string)) error {
	f, err := os.Open(disk)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := recording.NewReader(f); err != nil {
		return nil // none
	}
	if err := guest.Copy(to, disk); err != nil {
		return err
	}
	say("the recording is kept: go run ./image replay " + to)
	return nil
}

func (o options) check() error {
	known := func(name string, list []string) bool { return name == "" || slices.Contains(list, name) }
	var names []string
	for _, w := range workloads {
		names = append(names, w.name)
	}
	switch {
	case o.runs < 1:
		return errors.New("at least one run")
	case !known(o.fixed.workload, names):
		return fmt.Errorf("no workload %q: %v", o.fixed.workload, names)
	case !known(o.fixed.kernel, kernels):
		return fmt.Errorf("no kernel %q: %v", o.fixed.kernel, kernels)
	case !known(o.fixed.timers, timers):
		return fmt.Errorf("no timers %q: %v", o.fixed.timers, timers)
	}
	return nil
}
