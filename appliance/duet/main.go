// Program duet is the command line of a pair of hosts: it shows what a host and its VMs do, and tells them what to do.
//
// # Place
//
// It talks to a host's API by hvd/api, and to the agent in a guest by appliance/agent/wire over the API's vsock streams.
// Tables go to standard output; an error is one line on standard error, and the exit status 1.
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
	"time"

	"github.com/duet-ft/duet/hvd/api"
)

const usage = `usage: duet [--host ADDRESS[:PORT]] [--token TOKEN] [--fingerprint HEX] [--timeout DURATION] COMMAND

  host                         the host's own state
  vms                          its VMs
  vm NAME                      all about one VM
  vm record NAME --out FILE [--for 60s]
                               record a running VM; hvd replay executes the file again
  create FILE                  define a VM, from a file of JSON ("-": standard input)
  delete NAME                  remove a VM that is stopped, and its disks
  start NAME                   start a VM that is stopped
  stop NAME                    switch a VM off, now
  shutdown NAME                press a VM's power button
  force-start NAME             start a VM here although it was the peer's, which you know to be off
  console NAME                 its last console output
  events [NAME]                what happened on the host, or to one VM
  agent NAME ping|info|shutdown|reboot
                               talk to the agent in the guest
  vsock NAME PORT              connect standard input and output to a port of the guest

The flags' defaults are in the environment: DUET_HOST, DUET_TOKEN, DUET_FINGERPRINT.
`

// errUsage says that the command line isn't understood.
var errUsage = errors.New("wrong use")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout)
	switch {
	case errors.Is(err, errUsage):
		fmt.Fprintf(os.Stderr, "duet: %s\n%s", api.OneLine(err.Error()), usage)
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "duet:", api.OneLine(err.Error()))
		os.Exit(1)
	}
}

// env is what a command works with.
type env struct {
	client *api.Client
	args   []string // after the command's name
	in     io.Reader
	out    io.Writer
}

type command struct {
	min, max int // number of arguments
	endless  bool
	run      func(ctx context.Context, e env) error
}

var commands = map[string]command{
	"host":        {0, 0, false, showHost},
	"vms":         {0, 0, false, showVMs},
	"vm":          {1, 1, false, showVM},
	"vm record":   {2, 6, true, record},
	"create":      {1, 1, false, create},
	"delete":      {1, 1, false, remove},
	"start":       {1, 1, false, tell((*api.Client).Start, "starts")},
	"stop":        {1, 1, false, tell((*api.Client).Stop, "is switched off")},
	"shutdown":    {1, 1, false, tell((*api.Client).Shutdown, "was told to shut down")},
	"force-start": {1, 1, false, tell((*api.Client).ForceStart, "starts")},
	"console":     {1, 1, false, console},
	"events":      {0, 1, false, showEvents},
	"agent":       {2, 2, false, agent},
	"vsock":       {2, 2, true, vsock},
}

// run carries out a command line.
func run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	var cfg api.Config
	var timeout time.Duration
	f := flag.NewFlagSet("duet", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&cfg.Address, "host", os.Getenv("DUET_HOST"), "")
	f.StringVar(&cfg.Token, "token", os.Getenv("DUET_TOKEN"), "")
	f.StringVar(&cfg.Fingerprint, "fingerprint", os.Getenv("DUET_FINGERPRINT"), "")
	f.DurationVar(&timeout, "timeout", 2*time.Minute, "")
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		_, err := io.WriteString(out, usage)
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", errUsage, err)
	case f.NArg() == 0:
		return fmt.Errorf("%w: no command", errUsage)
	case cfg.Address == "":
		return fmt.Errorf("%w: which host? Give --host, or DUET_HOST in the environment", errUsage)
	}
	cfg.Fingerprint = strings.ReplaceAll(cfg.Fingerprint, ":", "")
	name, rest := f.Arg(0), f.Args()[1:]
	if name == "vm" && len(rest) > 1 && rest[0] == "record" {
		name, rest = "vm record", rest[1:]
	}
	c, ok := commands[name]
	if !ok {
		return fmt.Errorf("%w: there is no command %.40q", errUsage, name)
	}
	if len(rest) < c.min || len(rest) > c.max {
		return fmt.Errorf("%w: %s with %d arguments", errUsage, name, len(rest))
	}
	if !c.endless {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	client := api.Dial(cfg)
	defer client.Close()
	return c.run(ctx, env{client, rest, in, out})
}
