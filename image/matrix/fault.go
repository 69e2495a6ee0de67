package matrix

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/duet-ft/duet/image/lab"
	"github.com/duet-ft/duet/image/lab/ether"
	"github.com/duet-ft/duet/image/pairlab"
	"github.com/duet-ft/duet/image/target/proxy"
)

// Fault is one thing that breaks on a host.
type Fault struct {
	// Name is a word or two without blanks, for a cell's name. Text says it to people; %s is the host.
	Name, Text string
	// lasts is how long it stays before it is healed; 0: until the outcome was seen.
	lasts time.Duration
	// reboots says that the host boots anew, freezes that it does nothing at all meanwhile.
	reboots, freezes bool

	apply func(ctx context.Context, r *rig, host string) error
	heal  func(ctx context.Context, r *rig, host string) error
}

// rig is a pair under faults.
type rig struct {
	*pairlab.Pair
	mu        sync.Mutex
	throttled map[string]func() // ends it
}

// port is a host's end of the direct link.
func (r *rig) port(host string) *ether.Port {
	if host == pairlab.Names[0] {
		return r.Cable.A
	}
	return r.Cable.B
}

// span is a time for people.
func span(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.0f s", d.Seconds())
}

func nothing(context.Context, *rig, string) error { return nil }

// back waits until a host is up again, by itself.
func back(ctx context.Context, r *rig, host string) error { return r.WaitHost(ctx, host) }

// What happens to a host.
var (
	killed = Fault{
		Name: "host-killed", Text: "%s loses its power", reboots: true,
		apply: func(_ context.Context, r *rig, host string) error { return r.Kill(host) },
		heal:  func(ctx context.Context, r *rig, host string) error { return r.Restart(ctx, host) },
	}
	panicked = Fault{
		Name: "host-panics", Text: "the kernel of %s panics, and boots again", reboots: true,
		apply: func(ctx context.Context, r *rig, host string) error { return r.Host(host).Panic(ctx) }, heal: back,
	}
	reset = Fault{
		Name: "host-reset", Text: "the reset button of %s is pressed", reboots: true,
		apply: func(ctx context.Context, r *rig, host string) error { return r.Host(host).Reset(ctx) }, heal: back,
	}
	daemonKilled = Fault{
		Name: "daemon-killed", Text: "the daemon of %s is killed, and with it its VMs' processes",
		apply: func(ctx context.Context, r *rig, host string) error {
			return r.Host(host).KillProgram(ctx, "/user/hvd")
		},
		heal: back,
	}
	processKilled = Fault{
		Name: "process-killed", Text: "the VM's process on %s is killed",
		apply: func(ctx context.Context, r *rig, host string) error { return r.Host(host).KillLargest(ctx) }, heal: nothing,
	}
)

// frozen stops a host for a while; when it wakes up, its clock has gone on.
func frozen(d time.Duration) Fault {
	return Fault{
		Name: "host-frozen-" + d.String(), Text: "%s hangs for " + span(d), lasts: d, freezes: true,
		apply: func(ctx context.Context, r *rig, host string) error { return r.Host(host).Freeze(ctx) },
		heal:  func(ctx context.Context, r *rig, host string) error { return r.Host(host).Thaw(ctx) },
	}
}

// suspended stops a host and its clock for a while: it doesn't know when it wakes up.
func suspended(d time.Duration) Fault {
	return Fault{
		Name: "host-suspended-" + d.String(), Text: "%s stands still for " + span(d) + " and doesn't notice", lasts: d, freezes: true,
		apply: func(ctx context.Context, r *rig, host string) error { return r.Host(host).Stop(ctx) },
		heal:  func(ctx context.Context, r *rig, host string) error { return r.Host(host).Cont(ctx) },
	}
}

// slowed lets a host run for a share of the time only.
func slowed(share float64, d time.Duration) Fault {
	return Fault{
		Name: fmt.Sprintf("host-slowed-%g", share), Text: fmt.Sprintf("%%s has %.0f %% of its speed for %s", share*100, span(d)), lasts: d,
		apply: func(_ context.Context, r *rig, host string) error {
			ctx, cancel := context.WithCancel(context.Background())
			m, done := r.Host(host).Machine(), make(chan struct{})
			go func() {
				defer close(done)
				_ = m.Throttle(ctx, share) // ends with the machine at the latest
			}()
			r.mu.Lock()
			defer r.mu.Unlock()
			r.throttled[host] = func() { cancel(); <-done }
			return nil
		},
		heal: func(_ context.Context, r *rig, host string) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			if end := r.throttled[host]; end != nil {
				end()
				delete(r.throttled, host)
			}
			return nil
		},
	}
}

// link is a fault of the direct link, or of one direction, as seen from a host.
func link(name, text string, set func(p *ether.Port, on bool)) Fault {
	return Fault{
		Name: name, Text: text,
		apply: func(_ context.Context, r *rig, host string) error { set(r.port(host), true); return nil },
		heal:  func(_ context.Context, r *rig, host string) error { set(r.port(host), false); return nil },
	}
}

const (
	linkDelay = 20 * time.Millisecond
	linkLoss  = 20 // of a thousand
)

var (
	linkCut = link("link-cut", "the direct link is cut", func(p *ether.Port, on bool) {
		for _, d := range ether.Both {
			p.Cut(d, on)
		}
	})
	linkCutFrom = link("link-cut-one-way", "the direct link loses all that %s sends", func(p *ether.Port, on bool) {
		p.Cut(ether.FromMachine, on)
	})
	linkSlow = lasting(5*time.Second, link("link-slow", "the direct link takes "+span(linkDelay)+" longer each way", func(p *ether.Port, on bool) {
		p.SetDelay(ether.FromMachine, linkDelay*time.Duration(one(on)))
	}))
	linkLossy = lasting(5*time.Second, link("link-lossy", fmt.Sprintf("the direct link loses %d %% of the packets", linkLoss/10), func(p *ether.Port, on bool) {
		p.SetLoss(ether.FromMachine, linkLoss*one(on))
	}))
	clientsCut = Fault{
		Name: "clients-cut", Text: "%s is cut from the network, but not from the volume",
		apply: func(_ context.Context, r *rig, host string) error {
			return r.passOnly(host, func(f []byte) bool { return ether.Concerns(f, targetIP) })
		},
		heal: func(_ context.Context, r *rig, host string) error { return r.passOnly(host, nil) },
	}
	networkCut = Fault{
		Name: "network-cut", Text: "%s is cut from the network, and so from clients and volume",
		apply: func(_ context.Context, r *rig, host string) error { return cutNetwork(r, host, true) },
		heal:  func(_ context.Context, r *rig, host string) error { return cutNetwork(r, host, false) },
	}
)

// targetIP is where the volume is.
var targetIP = netip.MustParseAddr(lab.TargetIP).As4()

func (r *rig) passOnly(host string, pass func(frame []byte) bool) error {
	for _, d := range ether.Both {
		r.Host(host).Port.Only(d, pass)
	}
	return nil
}

func cutNetwork(r *rig, host string, cut bool) error {
	for _, d := range ether.Both {
		r.Host(host).Port.Cut(d, cut)
	}
	return nil
}

func one(on bool) int {
	if on {
		return 1
	}
	return 0
}

func lasting(d time.Duration, f Fault) Fault {
	f.lasts = d
	return f
}

// volume is what becomes of a host's way to the volume.
func volume(name, text string, m proxy.Mode) Fault {
	set := func(m proxy.Mode) func(context.Context, *rig, string) error {
		return func(_ context.Context, r *rig, host string) error {
			p := r.Proxy(host)
			if p == nil {
				return errors.New("the pair has no proxies before its volume")
			}
			p.Set(m)
			return nil
		}
	}
	return Fault{Name: name, Text: text, apply: set(m), heal: set(proxy.Mode{})}
}

var (
	volumeStalled = volume("volume-stalled", "the volume doesn't answer %s any more", proxy.Mode{Stall: true})
	volumeCut     = volume("volume-cut", "the volume refuses connections of %s", proxy.Mode{Cut: true})
	volumeBusy    = volume("volume-busy", "the volume says BUSY to all commands of %s", proxy.Mode{Refuse: proxy.Busy})
	volumeBroken  = volume("volume-broken", "the volume answers all commands of %s with an I/O error", proxy.Mode{Refuse: proxy.Broken})
	volumeFull    = lasting(5*time.Second, volume("volume-full", "the volume has no space for writes of %s", proxy.Mode{Refuse: proxy.Full}))
	volumeSlow    = lasting(5*time.Second, volume("volume-slow", "the volume takes 100 ms longer for %s", proxy.Mode{Delay: 100 * time.Millisecond}))
)
