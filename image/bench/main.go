// Command bench measures Duet inside an emulated host: what an exit costs, and
// what a request and a tick of an unmodified Debian guest cost its host, alone
// and recorded.
//
//	go run ./image/bench [-time] [-traps]
//
// The emulated host's clock counts instructions, one a nanosecond, so what is
// printed as ns are instructions: figures that mean something, and that hold on
// every computer. With -time it is the emulator's time instead, which says
// nothing by itself: compare figures of one run.
//
// It runs benchmarks of hvd/machine, hvd/vm (on the guest of image/guest) and
// ftlink/session by image/nested; table.go, which is pure, compares what they
// print. With -traps it shows, for each kind of load and each set of counted traps,
// how inputs found their positions.
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
	traps := flag.Bool("traps", false, "compare sets of counted traps under several loads")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, *traps, !*emulated)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// what names the benchmarks of one package, and how often each is done.
type what struct{ pkg, benchmarks, times string }

var (
	costs    = []what{{"./hvd/machine", ".", "1000x"}, {"./ftlink/session", "RoundTrip", "1000x"}, {"./hvd/vm", "Guest", "100x"}}
	locators = []what{{"./hvd/vm", "Traps", "1x"}}
)

func run(ctx context.Context, traps, count bool) error {
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
	chosen := costs
	if traps {
		chosen = locators
	}
	for _, of := range chosen {
		err = errors.Join(err, nested.Run(ctx, dir, nested.Config{
			Kernel: "image/kernel/vmlinuz", Package: of.pkg, Disks: []string{image}, MemoryMiB: 2000,
			Args: []string{"-test.run=^$", "-test.bench=" + of.benchmarks, "-test.benchtime=" + of.times, "-test.timeout=30m"},
			Log:  io.MultiWriter(os.Stdout, &printed), CountInstructions: count,
		}))
	}
	if err != nil || traps {
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
