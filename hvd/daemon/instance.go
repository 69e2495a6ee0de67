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
	"github.com/duet-ft/duet/hvd/daemon/partner"
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
	configText []byte
	name       string
	key        ed25519.PrivateKey
	keyPath    string
	keyProblem string
	token      string // empty: the API is a local one
	events     *journal.Journal
	fleet      *fleet
	jobs       *jobs
	partner    *partner.Host

	pinning sync.Mutex    // held while a partner is kept or forgotten
	relink  chan struct{} // the partner is another

	// refreshing is held while definitions are read and carried out, so that an older list never follows a newer one.
	refreshing sync.Mutex
	wake       chan struct{} // look at the volume now

	// Why a volume that isn't Duet's can't be formatted, and when that was looked at; keepVolume's.
	vacant   error
	vacantAt time.Time

	// When the metadata was last looked at for damage; tend's.
	tended time.Time

	mu      sync.Mutex
	cfg     *hostcfg.Config   // replaced, never changed
	problem string            // of host.json, or empty
	session string            // to the partner: "ok", what is wrong, or empty without one
	said    map[string]string // the last line, by topic
	// pairProblem is what is wrong with pair.json, or empty.
	pairProblem string
	hardware    Hardware
	kvm         string // "ok", or what is wrong
	volume      *volume.Volume
	volState    string        // "ok", or what is wrong
	blocks      volume.Blocks // of the session, also where the volume isn't Duet's
	online      func() error  // of the session, see Store.Err
	join        func(ctx context.Context) (string, error)
	shutOut     func(ctx context.Context, keeper pair.HostID) error
	warning     string // what the volume lacks
	seen        bool   // the definitions have been read
}

func newInstance(o Options, events *journal.Journal) (*instance, error) {
	d := &instance{
		opt: o, events: events, wake: make(chan struct{}, 1), relink: make(chan struct{}, 1), said: map[string]string{},
		kvm: "not looked at yet", volState: "no volume: not logged in yet",
	}
	d.configText, _ = os.ReadFile(o.Config) // not there: empty
	d.cfg, d.problem = readConfig(o.Config)
	if _, err := hostcfg.LoadPairing(hostcfg.PairingPath(o.Config)); err != nil {
		d.pairProblem = "the file about this host's partner is damaged: " + api.OneLine(err.Error()) + "; pair the hosts again: duet host pair"
	}
	d.loadKey()
	if d.name = d.cfg.Name; d.name == "" {
		d.name = hostkey.Name(d.publicKey())
	}
	if d.token = d.cfg.Token; d.token == "" && d.keyProblem == "" {
		var err error
		if d.token, err = hostkey.LoadOrMakeToken(o.Token); err != nil {
			d.token = "" // one that doesn't last would be of no use
			d.log("no token of its own: " + err.Error())
		}
	}
	d.fleet = newFleet(d)
	d.jobs = newJobs()
	var err error
	d.partner, err = d.newPartner()
	return d, err
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
func (d *instance) event(kind, vm, what string) {
	d.keep(api.Event{At: time.Now(), VM: vm, Kind: kind, What: what})
	if vm != "" {
		what = "VM " + vm + ": " + what
	}
	d.log(what)
}

func (d *instance) keep(list ...api.Event) {
	for i := range list {
		list[i].Host = d.name
	}
	d.events.Add(list...)
}

// run serves until ctx ends; then all VM processes are gone.
func (d *instance) run(ctx context.Context) {
	d.log(fmt.Sprintf("host %s, version %s, key %s", d.name, d.opt.Version, hex.EncodeToString(d.publicKey())))
	d.log("API key fingerprint " + api.Fingerprint(d.publicKey()))
	for _, p := range []string{d.problem, d.keyProblem, d.pairProblem} {
		if p != "" {
			d.log(p)
		}
	}
	d.event(api.EventProcess, "", "hvd started, version "+d.opt.Version)
	var all sync.WaitGroup
	all.Go(func() { d.serve(ctx) })
	if !d.checkHardware() {
		all.Go(func() { d.keepHardware(ctx) })
	}
	all.Go(func() { d.partner.Run(ctx) })
	all.Go(func() { d.keepLink(ctx) })
	all.Go(func() { d.keepScreen(ctx) })
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
	local := d.token == ""
	for {
		l, err := d.opt.Listen(local)
		if err == nil {
			line := "API on " + l.Addr().String()
			if local {
				line += " only, because host.json names no token and there is none of its own"
			}
			d.say("api", line)
			err = server.Serve(ctx, l, server.Config{Certificate: cert, Token: d.token, Backend: d, Log: d.log})
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

// collect takes over the events of the VMs' processes, and tells those that don't know whether a user wants a secondary.
func (d *instance) collect(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	var all sync.WaitGroup
	for _, v := range d.fleet.list() {
		all.Go(func() {
			d.tellProtection(ctx, v)
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
