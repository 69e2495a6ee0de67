// Program duet is the command line of a pair of hosts: it shows what a host and its VMs do, and tells them what to do.
//
// # Place
//
// It talks to a host's API by hvd/api, and to the agent in a guest by appliance/agent/wire over the API's vsock streams.
// A console is a stream of hvd/api/console that follows its guest from host to host.
// Tables go to standard output; an error is one line on standard error, and the exit status 1 (2 for a
// command line that isn't understood).
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

const usage = `usage: duet [--host ADDRESS[:PORT]] [--token TOKEN] [--fingerprint HEX]
            [--peer ADDRESS[:PORT]] [--peer-token TOKEN] [--peer-fingerprint HEX] [--timeout DURATION] COMMAND

  host                         the host's own state
  host drain                   have all VMs leave it, and keep every copy off it, over reboots, too
  host undrain                 let VMs come to it again
  host check                   what the host has and lacks; exit status 1 if something keeps it from working
  host pair [CODE]             pair it with the host that shows CODE; without CODE, have it show one
  host unpair                  have it forget its partner
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
  vm switchover NAME           have a protected VM change hosts, with nothing lost
  vm unprotect NAME            have a VM run without a copy on the other host, also after restarts
  vm protect NAME              let it have one again
  vm test-failover NAME        drop this host's copy of a protected VM, so that the other host takes over
  console NAME                 its last console output
  vm console NAME              type at its console; with --peer it goes on there when that host takes over. On a
                               terminal Ctrl-] ends it, a pipe's end when the guest is silent for a second
  disks [NAME]                 all disks, or one VM's
  disk create VM DISK SIZE     add a disk of zeros to a VM; this and what follows need VMs that are stopped
  disk grow VM DISK SIZE       make a disk larger
  disk delete VM DISK          remove a disk
  disk import VM DISK FILE     make a raw image its content, from a file or standard input ("-")
  disk export VM DISK FILE     write its content to a new file, or to standard output ("-")
  disk copy VM DISK TO-VM TO-DISK
                               copy a disk onto another one, which is made if it isn't there
  volume check                 a table of what the volume and its target are like; fails if no pair can work with it
  events [--vm NAME] [--since 90m|TIME] [--json] [--follow]
                               what happened on the host, or to one VM; with --peer on both hosts, in the order of
                               their clocks
  agent NAME ping|info|shutdown|reboot
                               talk to the agent in the guest
  vsock NAME PORT              connect standard input and output to a port of the guest
  help                         this text

The flags' defaults are in the environment: DUET_HOST, DUET_TOKEN, DUET_FINGERPRINT, DUET_PEER, DUET_PEER_TOKEN,
DUET_PEER_FINGERPRINT. The peer's token is the host's, if none is given.
`

// errUsage says that the command line isn't understood.
var errUsage = errors.New("wrong use")

// hint is where a line about wrong use sends its reader.
const hint = "duet help shows all commands"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, errUsage):
		fmt.Fprintf(os.Stderr, "duet: %s; %s\n", api.OneLine(err.Error()), hint)
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "duet:", api.OneLine(err.Error()))
		os.Exit(1)
	}
}

// env is what a command works with.
type env struct {
	client  *api.Client
	peer    *api.Client // of the other host, or nil
	args    []string    // after the command's name
	in      io.Reader
	out     io.Writer
	notes   io.Writer // for what isn't the command's output
	timeout time.Duration
}

type command struct {
	min, max int // number of arguments
	endless  bool
	run      func(ctx context.Context, e env) error
}

var commands = map[string]command{
	"host":             {0, 0, false, showHost},
	"host drain":       {1, 1, false, drain},
	"host undrain":     {1, 1, false, undrain},
	"host check":       {1, 1, false, check},
	"host pair":        {1, 2, false, pair},
	"host unpair":      {1, 1, false, unpair},
	"vms":              {0, 0, false, showVMs},
	"vm":               {1, 1, false, showVM},
	"vm console":       {2, 2, true, typeConsole},
	"vm record":        {3, 7, true, record},
	"vm switchover":    {2, 2, false, move((*api.Client).Switchover, "runs on the other host now, and is protected by this one")},
	"vm unprotect":     {2, 2, false, protect((*api.Client).Unprotect, "runs unprotected from now on: it ends with its host")},
	"vm protect":       {2, 2, false, protect((*api.Client).Protect, "gets a copy on the other host again; duet vms shows when it is protected")},
	"vm test-failover": {2, 2, false, move((*api.Client).TestFailover, "was dropped here; the other host takes over")},
	"create":           {1, 1, false, create},
	"delete":           {1, 1, false, remove},
	"start":            {1, 1, false, tell((*api.Client).Start, "starts")},
	"stop":             {1, 1, false, tell((*api.Client).Stop, "is switched off")},
	"shutdown":         {1, 1, false, tell((*api.Client).Shutdown, "was told to shut down")},
	"force-start":      {1, 1, false, tell((*api.Client).ForceStart, "starts")},
	"console":          {1, 1, false, showConsole},
	"disks":            {0, 1, false, showDisks},
	"disk create":      {4, 4, true, resize((*api.Client).AddDisk, "is there")},
	"disk grow":        {4, 4, true, resize((*api.Client).GrowDisk, "has grown")},
	"disk delete":      {3, 3, false, deleteDisk},
	"disk import":      {4, 4, true, importDisk},
	"disk export":      {4, 4, true, exportDisk},
	"disk copy":        {5, 5, true, copyDisk},
	"volume check":     {1, 1, false, checkVolume},
	"events":           {0, 8, true, showEvents},
	"agent":            {2, 2, false, agent},
	"vsock":            {2, 2, true, vsock},
}

// dest is one host, as the flags name it.
func dest(f *flag.FlagSet, name, prefix, env string) *api.Config {
	cfg := &api.Config{}
	f.StringVar(&cfg.Address, name, os.Getenv("DUET_"+strings.ToUpper(name)), "")
	f.StringVar(&cfg.Token, prefix+"token", os.Getenv("DUET_"+env+"TOKEN"), "")
	f.StringVar(&cfg.Fingerprint, prefix+"fingerprint", os.Getenv("DUET_"+env+"FINGERPRINT"), "")
	return cfg
}

// run carries out a command line.
func run(ctx context.Context, args []string, in io.Reader, out, notes io.Writer) error {
	e := env{in: in, out: out, notes: notes}
	f := flag.NewFlagSet("duet", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	host, peer := dest(f, "host", "", ""), dest(f, "peer", "peer-", "PEER_")
	f.DurationVar(&e.timeout, "timeout", 2*time.Minute, "")
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		_, err := io.WriteString(out, usage)
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", errUsage, err)
	case f.NArg() == 0:
		return fmt.Errorf("%w: no command", errUsage)
	case f.Arg(0) == "help":
		_, err := io.WriteString(out, usage)
		return err
	}
	c, err := find(f.Args())
	if err != nil {
		return err
	}
	if host.Address == "" {
		return fmt.Errorf("%w: which host? Give --host, or DUET_HOST in the environment", errUsage)
	}
	e.args = f.Args()[1:]
	if !c.endless {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, e.timeout)
		defer cancel()
	}
	e.client = connect(host)
	defer e.client.Close()
	if peer.Address != "" {
		if peer.Token == "" {
			peer.Token = host.Token
		}
		e.peer = connect(peer)
		defer e.peer.Close()
	}
	return c.run(ctx, e)
}

// find looks up the command of a line with at least one word.
func find(line []string) (command, error) {
	name, n := line[0], len(line)-1
	if name == "vm" && n >= 2 || n >= 1 && (name == "host" || name == "disk" || name == "volume") {
		name += " " + line[1]
	}
	c, ok := commands[name]
	switch {
	case !ok:
		return c, fmt.Errorf("%w: there is no command %.40q", errUsage, name)
	case n < c.min || n > c.max:
		return c, fmt.Errorf("%w: it is duet %s", errUsage, synopsis(name))
	}
	return c, nil
}

// synopsis is how the usage says that a command is called.
func synopsis(name string) string {
	_, rest, _ := strings.Cut(usage, "\n  "+name+" ")
	line, _, _ := strings.Cut(rest, "\n")
	arguments, _, _ := strings.Cut(line, "  ") // what the command does stands behind it
	return strings.TrimSpace(name + " " + arguments)
}

func connect(cfg *api.Config) *api.Client {
	cfg.Fingerprint = strings.ReplaceAll(cfg.Fingerprint, ":", "")
	return api.Dial(*cfg)
}
