// Package daemon is a host: it keeps the shared volume open, runs one process for each VM that is defined there, and
// serves the host's API.
//
// # Place
//
// The program hvd runs it, and starts itself again as "hvd vm NAME" for each VM, which is hvd/vmproc. The daemon
// decides nothing about VMs: the two processes of a VM, one on each host, do. It changes disks while their VM is stopped. It
// imports ftlink/nic, pair, pairing, session and wire, hvd/api, hostcfg, hostkey, iscsi, kvm, nexus and volume, and its own
// packages: checkup, define, journal, partner, server, supervise, survey and vmsock.
//
// # Life
//
//	host.json --> (Run) one instance: --> keepVolume: log in, open, read definitions --> fleet: a process per VM
//	     ^           |               |                                  ^ each 3 s, and after own changes
//	     |           |               |     +-> jobs: new disks are zeroed, holds of the dead released; and what users ask
//	     |           |               +-> server: API, TCP port 7443
//	     |           |               +-> checks: KVM, until it's there
//	     |           |               +-> partner: finds the other host and pairs with it --> pair.json, adopted at once
//	     |           |               +-> the hosts' own session to the partner
//	     |           |               +-> the text on the consoles
//	     |           |               +-> collects the VMs' events
//	     |           +-- the file was bad or missing and has changed: another instance
//	     +-------------- looked at each 3 s
//
// Nothing that is missing ends it: no /perm (a key in memory, an API on localhost), no or a bad host.json (a name from the
// key, a token of its own), no KVM, no volume. Each says so in one line in the log, once, and in the API, and is tried again.
//
// # Files
//
//	/perm/duet/host.json      see hvd/hostcfg
//	/perm/duet/pair.json      the same: the partner
//	/perm/duet/host.key       see hvd/hostkey
//	/perm/duet/token          the same: the API's, if host.json names none
//	/perm/duet/events.log     see journal
//	/run/duet/<vm>/           the VM's sockets, see vmsock
//	/run/duet/host.key        a key that is kept in memory
package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/ftlink/session"
	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/daemon/checkup"
	"github.com/duet-ft/duet/hvd/daemon/define"
	"github.com/duet-ft/duet/hvd/daemon/journal"
	"github.com/duet-ft/duet/hvd/hostcfg"
	"github.com/duet-ft/duet/hvd/hostkey"
	"github.com/duet-ft/duet/hvd/volume"
)

// DefaultEvents is where a host keeps its events.
const DefaultEvents = "/perm/duet/events.log"

// Options are where a daemon finds things. What is zero gets the default that is named.
type Options struct {
	Config  string // host.json; hostcfg.DefaultPath
	Key     string // host.key; hostkey.DefaultPath
	Token   string // the token that the host makes; hostkey.DefaultToken
	Events  string // DefaultEvents
	RunDir  string // /run/duet, or duet in the directory for temporary files where that isn't writable
	Version string // of the image, for Host.Version

	// Log is told what to tell people, line by line; standard error.
	Log func(line string)
	// Command is the program that runs a VM; this program with "vm NAME".
	Command func(c Child) (path string, args []string)
	// Listen opens the API's listener, on this host only if local; TCP port api.Port.
	Listen func(local bool) (net.Listener, error)
	// Hardware looks at the host; it opens /dev/kvm.
	Hardware func() (Hardware, error)
	// NICs are the host's network interfaces, looked at each second; physical ones.
	NICs func() []checkup.NIC
	// Link runs the hosts' own session until ctx ends; by ftlink/session.
	Link func(ctx context.Context, cfg session.Config) error
	// Screen shows a text to whoever stands before the host; on its consoles.
	Screen func(text string)
	// Open logs in to the volume; by iSCSI.
	Open func(ctx context.Context, l Login) (Store, error)

	// StaleAfter is how long a VM that is held must not have changed to be a dead host's; define.StaleAfter.
	StaleAfter time.Duration
	// Poll is how often definitions and host.json are looked at; 3 s. Retry is the pause after a failure; 5 s.
	Poll, Retry time.Duration
}

// Child says which VM a process is for, and where it finds its things.
type Child struct {
	Name   string // of the VM
	Config string // path of host.json
	Key    string // path of the host's key
	RunDir string // the VM's own directory, where it serves its sockets
}

// Login is what a daemon logs in to the volume with.
type Login struct {
	Volume hostcfg.Volume
	Host   string // its name
	Peer   string // the other host's, or empty
	// Notify is told when the connection is lost and when it is back.
	Notify func(line string)
}

// Store is a volume that is logged in to.
type Store struct {
	Blocks volume.Blocks
	// Join makes the session one of those that may write, as the VMs' sessions reserve the volume. It is called once
	// the volume has turned out to be Duet's. warning is what the volume lacks, one line, or empty.
	Join func(ctx context.Context) (warning string, err error)
	// ShutOut takes away a keeper's right to write (hvd/daemon/define), which is dead or doesn't know that it should be; nil: nobody's can be taken.
	ShutOut func(ctx context.Context, keeper pair.HostID) error
	// Err tells why the volume can't be reached right now, or nil. It wraps iscsi.ErrClosed once the session is closed
	// for good and another login is needed.
	Err func() error
	// Close logs out.
	Close func() error
}

func (o *Options) defaults() {
	set := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	set(&o.Config, hostcfg.DefaultPath)
	set(&o.Key, hostkey.DefaultPath)
	set(&o.Token, hostkey.DefaultToken)
	set(&o.Events, DefaultEvents)
	set(&o.Version, "unknown")
	if o.Log == nil {
		o.Log = func(line string) { fmt.Fprintln(os.Stderr, line) }
	}
	if o.Command == nil {
		o.Command = ownCommand
	}
	if o.Listen == nil {
		o.Listen = listen
	}
	if o.Hardware == nil {
		o.Hardware = measure
	}
	if o.NICs == nil {
		o.NICs = physicalNICs
	}
	if o.Link == nil {
		o.Link = runLink
	}
	if o.Screen == nil {
		o.Screen = showOnConsoles
	}
	if o.Open == nil {
		o.Open = login
	}
	if o.StaleAfter == 0 {
		o.StaleAfter = define.StaleAfter
	}
	if o.Poll == 0 {
		o.Poll = 3 * time.Second
	}
	if o.Retry == 0 {
		o.Retry = 5 * time.Second
	}
}

// ownCommand runs a VM by this very program.
func ownCommand(c Child) (string, []string) {
	path, err := os.Executable()
	if err != nil {
		path = os.Args[0]
	}
	return path, []string{"vm", "--config", c.Config, "--key", c.Key, "--run", c.RunDir, c.Name}
}

func listen(local bool) (net.Listener, error) {
	host := ""
	if local {
		host = "127.0.0.1"
	}
	return net.Listen("tcp", net.JoinHostPort(host, fmt.Sprint(api.Port)))
}

// Run is the daemon, until ctx ends. It fails only where nothing at all can work.
func Run(ctx context.Context, o Options) error {
	o.defaults()
	run, err := makeRunDir(o.RunDir)
	if err != nil {
		return fmt.Errorf("no directory for sockets: %w", err)
	}
	o.RunDir = run
	_ = os.Mkdir(filepath.Dir(o.Events), 0o700) // Open says what is wrong; a machine without /perm gets none
	events := journal.Open(o.Events, func(err error) {
		if err == nil {
			o.Log("events are kept in " + o.Events + " again")
			return
		}
		o.Log(fmt.Sprintf("events are kept in memory only, until %s can be written: %s", o.Events, api.OneLine(err.Error())))
	})
	defer events.Close()
	for ctx.Err() == nil {
		d, err := newInstance(o, events)
		if err != nil {
			return err
		}
		life, end := context.WithCancel(ctx)
		var both sync.WaitGroup
		both.Go(func() { d.watchConfig(life, end) })
		d.run(life)
		end()
		both.Wait()
	}
	return nil
}

// makeRunDir makes the directory for sockets. It must be ours alone: whoever reaches a socket controls a VM.
func makeRunDir(dir string) (string, error) {
	if dir != "" {
		return dir, ownDir(dir)
	}
	if err := ownDir("/run/duet"); err == nil {
		return "/run/duet", nil
	}
	dir = filepath.Join(os.TempDir(), "duet")
	return dir, ownDir(dir)
}

func ownDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !info.IsDir() || !ok || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to somebody else", dir)
	}
	return os.Chmod(dir, 0o700)
}

// readConfig loads host.json. problem is what is wrong with it, one line, or empty; then there are defaults.
func readConfig(path string) (cfg *hostcfg.Config, problem string) {
	cfg, err := hostcfg.Load(path)
	if err != nil {
		return &hostcfg.Config{}, "host.json: " + api.OneLine(err.Error())
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) && cfg.Peer == nil {
		return cfg, noConfig + "write " + path + " with this host's name, peer, volume and token, or pair it with a host that has one"
	}
	return cfg, ""
}

// noConfig begins the line about a missing host.json.
const noConfig = "no host.json: "

// watchConfig ends the instance when a host.json that was bad or missing has changed.
func (d *instance) watchConfig(ctx context.Context, end func()) {
	content := func() []byte {
		b, _ := os.ReadFile(d.opt.Config) // not there: empty
		return b
	}
	for last := d.configText; ; {
		if !sleep(ctx, d.opt.Poll, nil) {
			return
		}
		now := content()
		if bytes.Equal(now, last) {
			continue
		}
		last = now
		d.mu.Lock()
		anew := d.problem != ""
		d.mu.Unlock()
		if anew {
			end()
			return
		}
		d.log("host.json has changed: it counts from the next start of this host on")
	}
}

// sleep waits for d or for a value on wake; it reports false when ctx has ended.
func sleep(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
	case <-wake:
	}
	return ctx.Err() == nil
}
