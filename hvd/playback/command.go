package playback

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/kvm"
)

// Usage is how the commands are called.
const Usage = `  hvd replay FILE [--to POSITION] [--core FILE] [--console] [--gdb ADDRESS]
                                            execute a recording again and compare all of it
  hvd log FILE [--summary]                  print a recording's log
`

// ErrUsage says that a command line isn't understood.
var ErrUsage = errors.New("wrong use")

// parse reads flags before and after one file name.
func parse(f *flag.FlagSet, args []string) (file string, err error) {
	f.SetOutput(io.Discard)
	for {
		if err := f.Parse(args); err != nil {
			return "", fmt.Errorf("%w: %w", ErrUsage, err)
		}
		if f.NArg() == 0 {
			break
		}
		if file != "" {
			return "", fmt.Errorf("%w: one recording at a time", ErrUsage)
		}
		file, args = f.Arg(0), f.Args()[1:]
	}
	if file == "" {
		return "", fmt.Errorf("%w: which recording?", ErrUsage)
	}
	return file, nil
}

// Replay is the command of that name: args are what comes behind it.
func Replay(ctx context.Context, args []string, out io.Writer) error {
	f := flag.NewFlagSet("replay", flag.ContinueOnError)
	to := f.Uint64("to", ^uint64(0), "")
	core := f.String("core", "", "")
	console := f.Bool("console", false, "")
	address := f.String("gdb", "", "")
	name, err := parse(f, args)
	if err != nil {
		return err
	}
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	sys, err := kvm.Open()
	if err != nil {
		return err
	}
	defer sys.Close()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, err := Open(sys, file)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer p.Close()
	if *console {
		p.Console = func(b []byte) { _, _ = out.Write(printable(b)) }
	}
	h := p.Head()
	fmt.Fprintf(out, "VM %s, recorded on host %s at %s, %d MiB of memory, from position %d on\n",
		h.VM, h.Host, h.Started.Format(time.RFC3339), h.Memory>>20, p.Start)
	if *to < p.Start {
		return fmt.Errorf("%w: the recording starts at position %d, behind %d", ErrUsage, p.Start, *to)
	}
	defer p.Machine.KickWhen(ctx)()
	if *address != "" {
		return serveDebugger(ctx, p, *address, *to, out)
	}
	err = p.To(ctx, *to)
	p.summary(out)
	if err != nil && !errors.Is(err, ErrEnd) {
		return err
	}
	if *core != "" {
		if err := p.WriteCore(*core); err != nil {
			return err
		}
		fmt.Fprintf(out, "%s has the guest at position %d\n", *core, p.Machine.Position())
	}
	switch {
	case err == nil:
		return nil
	case p.Damage() != nil:
		return fmt.Errorf("%s: %w; everything before that is replayed", name, p.Damage())
	case *to != ^uint64(0) && p.Machine.Position() < *to:
		return fmt.Errorf("the recording ends at position %d, before %d", p.Machine.Position(), *to)
	}
	return nil
}

// To executes up to a position: behind that exit, before the inputs that came
// there. ErrEnd says that the recording ended first.
func (p *Player) To(ctx context.Context, position uint64) error {
	for p.Machine.Position() < position {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := p.Next(); err != nil {
			if ctx.Err() != nil { // a point that was sought
				return ctx.Err()
			}
			return err
		}
	}
	return nil
}

// summary says how far a replay got, and what was compared.
func (p *Player) summary(out io.Writer) {
	fmt.Fprintf(out, "replayed to position %d: %d exits, %d entries of the log, %d fingerprints compared; the fingerprint is %016x\n",
		p.Machine.Position(), p.Machine.Position()-p.Start, p.entries, p.marks, p.Machine.Fingerprint())
	if p.ended != nil {
		fmt.Fprintf(out, "the guest ended: %v\n", p.ended)
	}
	if end := p.End(); end != nil {
		fmt.Fprintf(out, "the recording ends at position %d: %s\n", end.Position, printable([]byte(end.Why)))
	}
}

// printable leaves out what could harm the terminal that shows it.
func printable(b []byte) []byte {
	out := make([]byte, 0, len(b))
	for _, c := range b {
		if c >= ' ' && c != 0x7f || c == '\n' || c == '\t' {
			out = append(out, c)
		}
	}
	return out
}

// Log is the command of that name.
func Log(args []string, out io.Writer) error {
	f := flag.NewFlagSet("log", flag.ContinueOnError)
	short := f.Bool("summary", false, "")
	name, err := parse(f, args)
	if err != nil {
		return err
	}
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	line := func(e event.Entry, size int) error {
		_, err := fmt.Fprintln(out, describe(e, size))
		return err
	}
	if *short {
		line = nil
	}
	t, err := readLog(file, line)
	if t != nil {
		t.print(out)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
