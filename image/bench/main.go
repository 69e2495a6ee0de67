// Command bench measures Duet inside an emulated host: what an exit costs, and
// what a request and a tick of an unmodified Debian guest cost its host, alone
// and recorded. Under emulation times mean nothing by themselves: compare those
// of one run. Counts of exits and bytes hold as they are.
//
// It runs the benchmarks of hvd/machine and hvd/vm by image/nested, on the
// guest of image/guest. -bench Traps runs the one that shows, for each kind of
// load and each set of counted traps, how inputs found their positions; with
// -instructions its CPU times are instructions of the host.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"github.com/duet-ft/duet/image/guest"
	"github.com/duet-ft/duet/image/lab"
	"github.com/duet-ft/duet/image/nested"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	which := flag.String("bench", ".", "which benchmarks, a regular expression")
	count := flag.Bool("instructions", false, "count the emulated host's instructions, 1 ns each, instead of its time")
	flag.Parse()
	err := run(ctx, *which, *count)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, which string, instructions bool) error {
	say := func(line string) { fmt.Println(line) }
	if err := lab.Install(ctx, say); err != nil {
		return err
	}
	image, err := guest.Build(ctx, "", say)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "duet-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, pkg := range []string{"./hvd/machine", "./hvd/vm"} {
		err = errors.Join(err, nested.Run(ctx, dir, nested.Config{
			Kernel: "image/kernel/vmlinuz", Package: pkg, Disks: []string{image}, MemoryMiB: 2000, Instructions: instructions,
			Args: []string{"-test.run=^$", "-test.bench=" + which, "-test.timeout=30m"}, Log: os.Stdout,
		}))
	}
	return err
}
