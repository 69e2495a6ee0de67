package daemon

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/daemon/journal"
	"github.com/duet-ft/duet/hvd/daemon/server"
	"github.com/duet-ft/duet/hvd/hostcfg"
	"github.com/duet-ft/duet/hvd/hostkey"
	"github.com/duet-ft/duet/hvd/volume"
)

const (
	// collectEvery is how often the VMs' processes are asked for events.
	collectEvery = 2 * time.Second
	// askLimit bounds a question to a VM's process.
	askLimit = 2 * time.Second
	// readLimit bounds a look at the definitions on the volume.
	readLimit = 15 * time.Second
)

// instance is the daemon with one host.json.
type instance struct {
	opt        Options
	cfg        *hostcfg.Config
	problem    string // of host.json, or empty
	configText []byte
	name       string
	key        ed25519.PrivateKey
	keyPath    string
	keyProblem string
	events     *journal.Journal
	fleet      *fleet
	jobs       *jobs

	// refreshing is held while definitions are read and carried out, so that an older list never follows a newer one.
	refreshing sync.Mutex
	wake       chan struct{} // look at the volume now

	// Why a volume that isn't Duet's can't be formatted, and when that was looked at; keepVolume's.
	vacant   error
	vacantAt time.Time

	// When the metadata was last looked at for damage; tend's.
	tended time.Time

	mu       sync.Mutex
	said     map[string]string // the last line, by topic
	hardware Hardware
	kvm      string // "ok", or what is wrong
	volume   *volume.Volume
	volState string        // "ok", or what is wrong
	blocks   volume.Blocks // of the session, also where the volume isn't Duet's
	online   func() error  // of the session, see Store.Err
	join     func(ctx context.Context) (string, error)
	shutOut  func(ctx context.Context, keeper pair.HostID) error
	warning  string // what the volume lacks
	seen     bool   // the definitions have been read
}

func newInstance(o Options, events *journal.Journal) *instance {
	d := &instance{
		opt: o, events: events, wake: make(chan struct{}, 1), said: map[string]string{},
		kvm: "not looked at yet", volState: "no volume: not logged in yet",
	}
	d.configText, _ = os.ReadFile(o.Config) // not there: empty
	d.cfg, d.problem = readConfig(o.Config)
	if d.name = d.cfg.Name; d.name == "" {
		d.name, _ = os.Hostname() // then it has none
	}
	d.loadKey()
	d.fleet = newFleet(d)
	d.jobs = newJobs()
	return d
}

// loadKey finds or makes the host's key.
func (d *instance) loadKey() {
	var err error
	var made bool
	d.keyPath = d.opt.Key
	if d.key, made, err = hostkey.LoadOrMake(d.keyPath); err == nil {
		if made {
			d.log("made a host key: " + d.keyPath)
		}
		return
	}
	d.keyProblem = "host key: " + api.OneLine(err.Error()) + "; using one that doesn't last"
	d.keyPath = filepath.Join(d.opt.RunDir, "host.key")
	if d.key, _, err = hostkey.LoadOrMake(d.keyPath); err != nil {
		d.keyProblem += " (" + api.OneLine(err.Error()) + ")"
		d.key = hostkey.New()
	}
}

func (d *instance) publicKey() ed25519.PublicKey { return d.key.Public().(ed25519.PublicKey) }

// log says a line about the host.
func (d *instance) log(line string) { d.opt.Log(api.OneLine(line)) }

// say logs a line about a topic, unless it is the same as last time.
func (d *instance) say(topic, line string) {
	d.mu.Lock()
	same := d.said[topic] == line
	d.said[topic] = line
	d.mu.Unlock()
	if !same {
		d.log(line)
	}
}

// event keeps a line and logs it. vm is empty for the host.
func (d *instance) event(vm, what string) {
	d.keep(api.Event{At: time.Now(), VM: vm, What: what})
	if vm != "" {
		what = "VM " + vm + ": " + what
	}
	d.log(what)
}

func (d *instance) keep(list ...api.Event) {
	if err := d.events.Add(list...); err != nil {
		d.log(fmt.Sprintf("events are kept in memory only from now on: %v", err))
	}
}

// run serves until ctx ends; then all VM processes are gone.
func (d *instance) run(ctx context.Context) {
	d.log(fmt.Sprintf("host %s, version %s, key %s", d.name, d.opt.Version, hex.EncodeToString(d.publicKey())))
	d.log("API key fingerprint " + api.Fingerprint(d.publicKey()))
	for _, p := range []string{d.problem, d.keyProblem} {
		if p != "" {
			d.log(p)
		}
	}
	d.event("", "hvd started, version "+d.opt.Version)
	var all sync.WaitGroup
	all.Go(func() { d.serve(ctx) })
	if !d.checkHardware() {
		all.Go(func() { d.keepHardware(ctx) })
	}
	all.Go(func() { d.keepVolume(ctx) })
	all.Go(func() {
		for sleep(ctx, collectEvery, nil) {
			d.collect(ctx)
		}
	})
	all.Wait()
	d.jobs.cancelAll(true)
	d.fleet.close()
}

// serve serves the API, and tries again when it can't.
func (d *instance) serve(ctx context.Context) {
	cert, err := hostkey.Certificate(d.key)
	if err != nil {
		d.log(err.Error())
		return
	}
	local := d.cfg.Token == ""
	for {
		l, err := d.opt.Listen(local)
		if err == nil {
			line := "API on " + l.Addr().String()
			if local {
				line += " only, because host.json names no token"
			}
			d.say("api", line)
			err = server.Serve(ctx, l, server.Config{Certificate: cert, Token: d.cfg.Token, Backend: d, Log: d.log})
		}
		if ctx.Err() != nil {
			return
		}
		d.say("api", fmt.Sprintf("no API: %v", err))
		if !sleep(ctx, d.opt.Retry, nil) {
			return
		}
	}
}

// collect takes over the events of the VMs' processes.
func (d *instance) collect(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	var all sync.WaitGroup
	for _, v := range d.fleet.list() {
		all.Go(func() {
			list, err := v.sock.Events(ctx)
			if err != nil {
				return // it isn't up, or its state says what is wrong
			}
			list = list[max(0, len(list)-journal.Capacity):]
			for i := range list {
				list[i].VM = v.name
			}
			d.keep(list...)
		})
	}
	all.Wait()
}

// kick makes keepVolume look at the definitions now.
func (d *instance) kick() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}
