// Command bench measures Duet inside an emulated host: what an exit costs, and
// what a request and a tick of an unmodified Debian guest cost its host, alone
// and recorded.
//
//	go run ./image/bench [-time]
//
// The emulated host's clock counts instructions, one a nanosecond, so what is
// printed as ns are instructions: figures that mean something, and that hold on
// every computer. With -time it is the emulator's time instead, which says
// nothing by itself: compare figures of one run.
//
// It runs the benchmarks of hvd/machine and hvd/vm by image/nested, on the
// guest of image/guest; table.go, which is pure, compares what they print.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/duet-ft/duet/image/guest"
	"github.com/duet-ft/duet/image/lab"
	"github.com/duet-ft/duet/image/nested"
)

func main() {
	emulated := flag.Bool("time", false, "measure the emulator's time instead of counting instructions")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, !*emulated)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, count bool) error {
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
	var printed bytes.Buffer
	for _, of := range []struct{ pkg, iterations string }{{"./hvd/machine", "1000x"}, {"./hvd/vm", "100x"}} {
		err = errors.Join(err, nested.Run(ctx, dir, nested.Config{
			Kernel: "image/kernel/vmlinuz", Package: of.pkg, Disks: []string{image}, MemoryMiB: 2000,
			Args: []string{"-test.run=^$", "-test.bench=.", "-test.benchtime=" + of.iterations, "-test.timeout=30m"},
			Log:  io.MultiWriter(os.Stdout, &printed), CountInstructions: count,
		}))
	}
	if err != nil {
		return err
	}
	rows := compare(parse(&printed))
	if len(rows) == 0 {
		return errors.New("the benchmarks printed nothing to compare")
	}
	unit := "instructions"
	if !count {
		unit = "ns, emulated"
	}
	fmt.Print(table(rows, unit))
	return nil
}
