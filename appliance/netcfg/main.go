// Command netcfg sets up a host's network and keeps it so: loopback, the bridge br0 on the management NIC with its
// address from DHCP (or from host.json), and all other NICs, of which one is the direct link's, with IPv6 link-local
// addresses only.
//
// Supervised by gokrazy's init in place of gokrazy's own dhcp. What to do is decided in package plan (pure); this
// package finds interfaces, talks netlink and DHCP, and logs one line for each change. It tries for ever. hvd adds
// the VMs' taps to br0 by itself; IPv6 addresses on br0 come from the kernel (SLAAC).
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"time"

	"github.com/duet-ft/duet/appliance/netcfg/plan"
	"github.com/duet-ft/duet/hvd/hostcfg"
	"golang.org/x/sys/unix"
)

// resolvConf is where gokrazy's read-only /etc/resolv.conf points to.
const resolvConf = "/tmp/resolv.conf"

// checkEvery is how often the links are looked at when the kernel reports no change.
const checkEvery = 30 * time.Second

func main() {
	log.SetFlags(0)
	log.SetPrefix("netcfg: ")
	path := flag.String("config", hostcfg.DefaultPath, "the host's configuration `file`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()

	cfg, err := hostcfg.Load(*path)
	if err != nil {
		// A host that can't be reached can't be repaired either, so go on with what works nearly everywhere.
		log.Printf("%v; going on with the defaults (DHCP on the first interface)", err)
		cfg = &hostcfg.Config{}
	}
	run(ctx, cfg)
}

// run sets the links up, then configures the address, until ctx ends.
func run(ctx context.Context, cfg *hostcfg.Config) {
	ready := make(chan struct{})
	go keepLinks(ctx, cfg, ready)
	select {
	case <-ready:
	case <-ctx.Done():
		return
	}
	if cfg.Static != nil {
		keepStatic(ctx, plan.FromStatic(cfg.Static))
		return
	}
	client := &dhcpClient{hostname: cfg.Name}
	if client.hostname == "" {
		client.hostname, _ = os.Hostname()
	}
	client.run(ctx)
}

// keepLinks sets the links up and repairs them whenever one changes. It closes ready once they are up.
func keepLinks(ctx context.Context, cfg *hostcfg.Config, ready chan struct{}) {
	changed := watchLinks(ctx)
	say := changeLog{}
	failures := 0
	for {
		wait := checkEvery
		nics, err := physicalNICs()
		var roles plan.Roles
		if err == nil {
			roles, err = plan.Assign(nics, cfg)
		}
		if err == nil {
			err = ensureLinks(roles)
		}
		if err != nil {
			failures++
			wait = plan.Backoff(failures)
			say.printf("links: %v; trying again", err)
		} else {
			failures = 0
			say.printf("%s", describe(roles))
			if ready != nil {
				close(ready)
				ready = nil
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-time.After(wait):
		}
	}
}

func describe(r plan.Roles) string {
	direct := "no direct link"
	if r.Direct != nil {
		direct = "direct link on " + r.Direct.Name
		if l, err := net.InterfaceByName(r.Direct.Name); err == nil {
			direct += fmt.Sprintf(" (MTU %d)", l.MTU)
		}
	}
	return plan.Bridge + " on " + r.Management.Name + " (" + r.Management.MAC.String() + "), " + direct
}

// keepStatic applies s, and again should it fail.
func keepStatic(ctx context.Context, s plan.Settings) {
	say := changeLog{}
	for failures := 1; ; failures++ {
		if err := apply(s); err != nil {
			say.printf("static address: %v; trying again", err)
			if !pause(ctx, plan.Backoff(failures)) {
				return
			}
			continue
		}
		say.printf("static address %s", s.Line())
		<-ctx.Done()
		return
	}
}

// changeLog logs a line only when it differs from the one before, so that a fault that lasts fills no log.
type changeLog struct{ last string }

func (c *changeLog) printf(format string, args ...any) {
	if line := fmt.Sprintf(format, args...); line != c.last {
		c.last = line
		log.Print(line)
	}
}

// pause waits for d; it reports false when ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// bridgeInterface is br0 as package net sees it.
func bridgeInterface() (*net.Interface, error) { return net.InterfaceByName(plan.Bridge) }
