// Program hvd is Duet's hypervisor: the daemon of a host, the process of each of its VMs, and the tool for volumes.
//
// Without arguments it is the daemon, as gokrazy's init starts it. See hvd/daemon, hvd/vmproc, hvd/playback and
// hvd/daemon/volumecmd, which do the work.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/duet-ft/duet/hvd/daemon"
	"github.com/duet-ft/duet/hvd/daemon/volumecmd"
	"github.com/duet-ft/duet/hvd/hostcfg"
	"github.com/duet-ft/duet/hvd/hostkey"
	"github.com/duet-ft/duet/hvd/playback"
	"github.com/duet-ft/duet/hvd/vmproc"
)

const usage = `usage:
  hvd                                       the daemon of a host
  hvd vm [--config FILE] [--key FILE] --run DIR NAME
                                            the process of one VM; the daemon starts it
  hvd version
  hvd help
` + playback.Usage + volumecmd.Usage

// hint is where a line about wrong use sends its reader.
const hint = "hvd help shows all command lines"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	switch {
	case errors.Is(err, volumecmd.ErrUsage), errors.Is(err, playback.ErrUsage):
		fmt.Fprintf(os.Stderr, "hvd: %s; %s\n", line(err), hint)
		os.Exit(2)
	case err != nil:
		// The daemon shows it with the VM's name in front.
		prefix := "hvd: "
		if len(os.Args) > 1 && os.Args[1] == "vm" {
			prefix = ""
		}
		fmt.Fprintf(os.Stderr, "%s%s\n", prefix, line(err))
		os.Exit(1)
	}
}

func line(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return daemon.Run(ctx, daemon.Options{Version: version()})
	}
	switch args[0] {
	case "vm":
		return runVM(ctx, args[1:])
	case "version":
		fmt.Println(version())
		return nil
	case "help", "-h", "--help":
		fmt.Print(usage)
		return nil
	case "replay":
		return playback.Replay(ctx, args[1:], os.Stdout)
	case "log":
		return playback.Log(args[1:], os.Stdout)
	case "volume", "disk":
		return volumecmd.Run(ctx, args[0], args[1:], os.Stdout, os.Stderr)
	}
	return fmt.Errorf("%w: there is no hvd %s", volumecmd.ErrUsage, args[0])
}

func runVM(ctx context.Context, args []string) error {
	var o vmproc.Options
	f := flag.NewFlagSet("vm", flag.ContinueOnError)
	f.SetOutput(io.Discard) // the error says it
	f.StringVar(&o.HostConfig, "config", hostcfg.DefaultPath, "host.json")
	f.StringVar(&o.KeyFile, "key", hostkey.DefaultPath, "the host's key")
	f.StringVar(&o.Locator, "locator", "auto", "how the guest is stopped between two exits: auto, pmu, step or none")
	f.StringVar(&o.RunDir, "run", "", "the VM's directory for sockets")
	if err := f.Parse(args); err != nil {
		return fmt.Errorf("%w: %w", volumecmd.ErrUsage, err)
	}
	if f.NArg() != 1 || o.RunDir == "" {
		return fmt.Errorf("%w: a VM's process takes --run and the VM's name", volumecmd.ErrUsage)
	}
	o.Name = f.Arg(0)
	return vmproc.Main(ctx, o)
}
