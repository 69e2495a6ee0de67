// Package pairlab makes a fault-tolerant pair out of nothing: two hosts that booted the built image in QEMU, cabled to
// each other, an iSCSI target with a volume for both, and a Debian guest with Redis on it.
//
// # Place
//
// The demo and the nested tests of the pair use it. Of ours it imports image/{disk,guest,lab,target,target/proxy}, hvd/{api,hostcfg,
// hostkey,iscsi,nexus,volume} and appliance/agent/wire.
//
//	a  station 11, core 0     --+                                  +-- TargetIP: istgt on 127.0.0.1, with CHAP
//	b  station 12, core 1     --+-- management network (image/lab) +   or a proxy before it, one for each host
//	                            |                                  +-- gateway: this process
//	guest, station 50, on either
//	a === direct cable === b
//
// # Life
//
//	Start       volume, target, hosts that have booted and found the volume   (no guest yet)
//	StartGuest  the VM runs on one of them and Redis answers
//	Kill, Restart, WaitProtected, ...
//	Shutdown    the guest switches itself off
//	Fsck        the hosts and the target are gone; the guest's file system is checked
//	Close       everything is gone, but for the files in Dir
//
// All that waits, waits for a condition, at most for a time, and says what it waited for when it fails.
package pairlab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/image/disk"
	"github.com/duet-ft/duet/image/guest"
	"github.com/duet-ft/duet/image/lab"
	"github.com/duet-ft/duet/image/target"
	"github.com/duet-ft/duet/image/target/proxy"
)

const (
	// Guest is the VM's name.
	Guest = "guest"
	// GuestNumber is the guest's station number: its MAC address is lab.MAC(GuestNumber).
	GuestNumber = 50
	// RedisPort is where the guest's Redis listens.
	RedisPort = 6379
	// GuestMemoryMiB is the guest's memory.
	GuestMemoryMiB = 384
	// defaultMemoryMiB is a host's memory.
	defaultMemoryMiB = 1024
)

// Names are the hosts' names, in the order of their station numbers.
var Names = [2]string{"a", "b"}

// numbers are the hosts' station numbers.
var numbers = map[string]int{"a": 11, "b": 12}

// GuestIP is the guest's address on the management network.
func GuestIP() string { return lab.IP(GuestNumber) }

// Config says how to make a pair.
type Config struct {
	// Dir gets all its files; it is made if it is missing. Its path must not have blanks (istgt).
	Dir string
	// Cache is where images and guests are kept; empty means .cache of the module and guest.CacheDir.
	Cache string
	// MemoryMiB is each host's memory; 0 means 1024.
	MemoryMiB int
	// Output is the VM's level of the output rule; empty means verified.
	Output string
	// Cmdline is added to the command line of the hosts' kernels, Extra to QEMU's.
	Cmdline string
	Extra   []string
	// HostExtra are arguments for the QEMU of one host, by its name, behind Extra.
	HostExtra map[string][]string
	// Proxied puts a proxy between each host and the volume, which can lose it to one host: see Proxy.
	Proxied bool
	// Log gets a line for each step that takes long; nil means none.
	Log func(line string)
}

// Pair is a pair of hosts.
type Pair struct {
	// Lab has the hosts and the networks.
	Lab *lab.Lab
	// Cable is the direct link.
	Cable *lab.Cable
	// Target serves the volume.
	Target *target.Target

	cfg     Config
	keys    keys
	volume  string // the file
	hosts   map[string]*lab.Host
	proxies map[string]*proxy.Proxy

	mu      sync.Mutex
	clients map[string]*api.Client
	closing sync.Once
	closed  error // what closing came to
}

// Start makes a pair of hosts that are up and see the volume, on which the guest is defined but doesn't run.
func Start(ctx context.Context, cfg Config) (*Pair, error) {
	if cfg.Log == nil {
		cfg.Log = func(string) {}
	}
	if cfg.MemoryMiB == 0 {
		cfg.MemoryMiB = defaultMemoryMiB
	}
	var err error
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, err
	}
	p := &Pair{cfg: cfg, hosts: map[string]*lab.Host{}, proxies: map[string]*proxy.Proxy{}, clients: map[string]*api.Client{}}
	if err := p.start(ctx); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *Pair) start(ctx context.Context) error {
	img, guestImage, err := p.images(ctx)
	if err != nil {
		return err
	}
	begin := time.Now()
	p.volume = filepath.Join(p.cfg.Dir, "volume.img")
	if err := makeVolume(ctx, p.volume, guestImage, p.cfg.Output); err != nil {
		return fmt.Errorf("volume: %w", err)
	}
	p.keys = makeKeys()
	p.Target, err = target.Start(ctx, target.Config{
		Dir: filepath.Join(p.cfg.Dir, "target"), File: p.volume, User: chapUser, Secret: p.keys.secret,
	})
	if err != nil {
		return err
	}
	p.log(begin, "volume made with the guest's disk on it; istgt serves it on %s", p.Target.Portal())

	if p.cfg.Proxied {
		for _, name := range Names {
			if p.proxies[name], err = proxy.New(p.Target.Portal()); err != nil {
				return err
			}
		}
	}

	begin = time.Now()
	if p.Lab, err = lab.New(p.cfg.Dir, img); err != nil {
		return err
	}
	p.Lab.Report = p.cfg.Log
	if p.Cable, err = p.Lab.NewCable("direct"); err != nil {
		return err
	}
	for i, name := range Names {
		if err := p.newHost(ctx, i, name); err != nil {
			return err
		}
	}
	for _, name := range Names { // they boot at the same time
		if err := p.hosts[name].Boot(); err != nil {
			return err
		}
	}
	for _, name := range Names {
		if err := p.WaitHost(ctx, name); err != nil {
			return err
		}
	}
	p.log(begin, "hosts a and b booted the image; both see the volume and each other's key")
	return nil
}

// images builds or finds the hosts' image and the guest's.
func (p *Pair) images(ctx context.Context) (*disk.Image, string, error) {
	b, err := disk.NewBuilder(".")
	if err != nil {
		return nil, "", err
	}
	if p.cfg.Cache != "" {
		b.Cache = filepath.Join(p.cfg.Cache, "image")
	}
	begin := time.Now()
	img, err := b.Build(ctx)
	if err != nil {
		return nil, "", err
	}
	p.log(begin, "host image %s", map[bool]string{true: "unchanged, from the cache", false: "packed"}[img.Cached])
	begin = time.Now()
	guestImage, err := guest.Build(ctx, p.cfg.Cache, p.cfg.Log)
	if err != nil {
		return nil, "", err
	}
	p.log(begin, "guest image %s", filepath.Base(guestImage))
	return img, guestImage, nil
}

func (p *Pair) log(begin time.Time, format string, args ...any) {
	p.cfg.Log(fmt.Sprintf(format, args...) + fmt.Sprintf(" (%.1f s)", time.Since(begin).Seconds()))
}

// Close kills the hosts and the target. The files in Dir stay. Only the first call does something.
func (p *Pair) Close() error {
	p.closing.Do(func() {
		if p.Lab != nil {
			p.closed = p.Lab.Close()
		}
		for _, x := range p.proxies {
			p.closed = errors.Join(p.closed, x.Close())
		}
		if p.Target != nil {
			p.Target.Stop()
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, c := range p.clients {
			c.Close()
		}
	})
	return p.closed
}
