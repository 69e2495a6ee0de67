// Command demo shows a fault-tolerant pair at work: two hosts that booted the built image in QEMU, an iSCSI target, and
// a Debian guest with Redis that eight clients write to while first one host is killed and then the other.
//
//	go run ./image/demo [-seed N] [-keep] [-dir DIR]
//
// It prints what happens line by line, then a table, and as the last line RESULT with a JSON object. The exit code is
// 0 only if no connection was reset, no acknowledged write lost and no divergence seen in exactly two failovers. It
// needs root for nothing but to install Debian packages that are missing.
//
// It imports image/{pairlab,load,lab,guest} and hvd/{api,volume}. The steps are in scenario.go; report.go, measure.go
// and tally.go are pure.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// limit is how long all may take, the first time, with nothing in the caches.
const limit = 15 * time.Minute

// interrupted is the exit code after Ctrl-C, as shells have it.
const interrupted = 130

type options struct {
	seed uint64
	keep bool
	dir  string
}

func main() {
	var o options
	flag.Uint64Var(&o.seed, "seed", 0, "repeats the kill times of the run with this `number`; 0: a random one")
	flag.BoolVar(&o.keep, "keep", false, "leave the pair running until Ctrl-C")
	flag.StringVar(&o.dir, "dir", "", "keep all files in `DIR`, also afterwards")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "usage: go run ./image/demo [-seed N] [-keep] [-dir DIR]")
		os.Exit(2)
	}
	os.Exit(run(o))
}

// run is main with its deferred work done.
func run(o options) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends this process at once, and QEMU and istgt with it
	out := newProgress(os.Stdout, time.Now)
	if o.seed == 0 {
		o.seed = uint64(time.Now().UnixNano())%1_000_000 + 1
	}
	out.say("seed %d (make demo SEED=%d repeats the kill times)", o.seed, o.seed)
	if err := packages(ctx, out); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	dir, remove, err := workDir(o.dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	defer remove()

	s := &scenario{out: out, opt: o, dir: dir, result: newResult(o.seed)}
	defer s.close()
	limited, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the demo took more than %v", limit))
	err = s.run(limited)
	cancel()
	if ctx.Err() != nil {
		out.say("interrupted; cleaning up")
		return interrupted
	}
	if err != nil {
		s.result.Error = firstLine(err)
		out.say("FAILED: %v", err)
	}
	if o.keep && s.pair != nil {
		defer s.keep(ctx)
	}
	s.stopWatching()
	s.result.Seconds = out.elapsed().Seconds()
	out.print(s.result.table() + out.spent() + s.result.line())
	if !s.result.ok(o.keep) {
		return 1
	}
	return 0
}
