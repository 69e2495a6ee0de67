// Command bench measures Duet inside an emulated host: what an exit costs, and
// what a request and a tick of an unmodified Debian guest cost its host, alone
// and recorded. Under emulation times mean nothing by themselves: compare those
// of one run. Counts of exits and bytes hold as they are.
//
// It runs the benchmarks of hvd/machine and hvd/vm by image/nested, on the
// guest of image/guest.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"github.com/duet-ft/duet/image/guest"
	"github.com/duet-ft/duet/image/lab"
	"github.com/duet-ft/duet/image/nested"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
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
			Kernel: "image/kernel/vmlinuz", Package: pkg, Disks: []string{image}, MemoryMiB: 2000,
			Args: []string{"-test.run=^$", "-test.bench=.", "-test.timeout=30m"}, Log: os.Stdout,
		}))
	}
	return err
}
