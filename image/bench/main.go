// Command bench measures Duet inside an emulated host: what an exit costs, and
// what requests, ticks and work of an unmodified Debian guest cost its host, alone
// and recorded.
//
//	go run ./image/bench [-time] [-traps] [-profile FILE]
//
// The emulated host's clock counts instructions, one a nanosecond, so what is
// printed as ns are instructions: figures that mean something, and that hold on
// every computer. With -time it is the emulator's time instead, which says
// nothing by itself: compare figures of one run.
//
// It runs benchmarks of hvd/machine, hvd/vm (on the guests of image/guest and
// image/workload) and ftlink/session by image/nested; table.go, which is pure,
// compares what they print. With -traps it shows, for each kind of load and each set
// of counted traps, how inputs found their positions. With -profile it measures
// recorded work alone, and writes where hvd spends it, for go tool pprof.
package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/duet-ft/duet/image/guest"
	"github.com/duet-ft/duet/image/lab"
	"github.com/duet-ft/duet/image/nested"
	"github.com/duet-ft/duet/image/workload"
)

func main() {
	emulated := flag.Bool("time", false, "measure the emulator's time instead of counting instructions")
	traps := flag.Bool("traps", false, "compare sets of counted traps under several loads")
	profile := flag.String("profile", "", "measure recorded work only, and write a profile of hvd's part to this file")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, *traps, !*emulated, *profile)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// what names the benchmarks of one package, how often each is done, and its guest.
type what struct {
	pkg, benchmarks, times string
	guest                  func(context.Context, func(string)) (string, error)
}

// vmPkg measures guests, which run the distribution's own kernel.
const vmPkg, kernel = "./hvd/vm", "6.1."

func plain(ctx context.Context, say func(string)) (string, error) { return guest.Build(ctx, "", say) }

var (
	costs = []what{
		{"./hvd/machine", ".", "1000x", plain},
		{"./ftlink/session", "RoundTrip", "1000x", plain},
		{vmPkg, "Guest", "100x", plain},
		{vmPkg, "Replay", "1x", plain},
		{vmPkg, "Work", "3x", workload.BuildGuest},
	}
	locators = []what{{vmPkg, "Traps", "1x", plain}}
	profiled = []what{{vmPkg, "Work/recorded", "6x", workload.BuildGuest}}
)

func run(ctx context.Context, traps, count bool, profile string) error {
	say := func(line string) { fmt.Println(line) }
	if err := lab.Install(ctx, say); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "duet-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := bench{dir: dir, say: say, count: count}
	switch {
	case profile != "":
		return b.profile(ctx, profile)
	case traps:
		return b.run(ctx, locators)
	}
	if err := b.run(ctx, costs); err != nil {
		return err
	}
	list := parse(&b.printed)
	rows := compare(list)
	if len(rows) == 0 {
		return errors.New("the benchmarks printed nothing to compare")
	}
	unit := "instructions"
	if !count {
		unit = "ns, emulated"
	}
	fmt.Print(table(rows, unit), replays(list, unit))
	return nil
}

// bench runs benchmarks in emulated hosts.
type bench struct {
	dir     string
	say     func(string)
	count   bool // instructions
	printed bytes.Buffer
	kept    []string // disks that the benchmarks write to
	args    []string // for the test binary, too
}

func (b *bench) run(ctx context.Context, list []what) (err error) {
	for _, of := range list {
		image, e := of.guest(ctx, b.say)
		if e != nil {
			return errors.Join(err, e)
		}
		args := append([]string{
			"-test.run=^$", "-test.bench=" + of.benchmarks, "-test.benchtime=" + of.times, "-test.timeout=30m",
		}, b.args...)
		if of.pkg == vmPkg {
			args = append(args, fmt.Sprintf("-counted=%t", b.count), "-soak.kernel="+kernel)
		}
		err = errors.Join(err, nested.Run(ctx, b.dir, nested.Config{
			Kernel: "image/kernel/vmlinuz", Package: of.pkg, Disks: []string{image}, Kept: b.kept, MemoryMiB: 2000, Args: args,
			Log: io.MultiWriter(os.Stdout, &b.printed), CountInstructions: b.count,
		}))
	}
	return err
}

// profileMiB is more than a profile takes.
const profileMiB = 16

// profile writes a profile of recorded work to a file. The host in which it is made
// has a disk for it, whose content begins with it.
func (b *bench) profile(ctx context.Context, to string) error {
	disk := filepath.Join(b.dir, "profile")
	if err := os.WriteFile(disk, make([]byte, profileMiB<<20), 0o600); err != nil {
		return err
	}
	b.kept, b.args = []string{disk}, []string{"-test.cpuprofile=/dev/vdb"}
	if err := b.run(ctx, profiled); err != nil {
		return err
	}
	f, err := os.Open(disk)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(bufio.NewReader(f))
	if err != nil {
		return fmt.Errorf("the benchmark left no profile: %w", err)
	}
	z.Multistream(false) // the rest of the disk is none of it
	proto, err := io.ReadAll(z)
	if err != nil {
		return fmt.Errorf("the profile is cut off: %w", err)
	}
	return os.WriteFile(to, proto, 0o644) // pprof takes it without gzip, too
}
