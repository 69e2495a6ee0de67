// Package partner finds the other host on the direct cable and pairs with it: the rim of ftlink/pairing.
//
// # Place
//
// hvd/daemon runs one Host, and is told by Pin whom to trust. It imports ftlink/nic, ftlink/pairing with its spake2, and hvd/hostkey.
//
// # Threads
//
//	Run: each second -> NICs -> for each: a UDP socket (beacons out, and in) and a TCP listener (runs)
//	                 -> the window's clock
//	Join: dials the neighbour that shows a code
//
// A NIC that comes or goes is noticed within a second. Sockets are bound to their NIC, so one on the management network
// neither hears nor answers what isn't on the cable.
package partner

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/duet-ft/duet/ftlink/pairing"
	"github.com/duet-ft/duet/ftlink/pairing/spake2"
	"github.com/duet-ft/duet/hvd/hostkey"
)

const (
	// runLimit bounds a run, from the connection on.
	runLimit = 20 * time.Second
	// maxRuns is how many connections may be in a run; more are closed. One of them holds the code at a time.
	maxRuns = 4
)

// NIC is a network interface on which a partner may be.
type NIC struct {
	// Name is the interface that sockets are bound to; empty: none.
	Name string
	// Listen is the address to listen on; the zero Addr means any.
	Listen netip.Addr
}

// Config is what a Host needs.
type Config struct {
	Name string
	Key  ed25519.PrivateKey
	// NICs are looked at each second.
	NICs func() []NIC
	// HasPeer says whether this host is paired.
	HasPeer func() bool
	// Forbidden says in a line why this host can't be paired now; nil: it can.
	Forbidden func() error
	// Settings are what the partner is given, once it is proven to be the right one.
	Settings func() []byte
	// Pin keeps a partner, for good. The host at which the code was typed calls it once. The one that showed it calls it
	// without settings first, and with them when they have arrived.
	Pin func(peer pairing.Side, nic string, settings []byte) error
	// Log is told what happens, line by line.
	Log func(line string)
	// Port is where runs are accepted; pairing.Port.
	Port int
}

// Host is this host in search of a partner.
type Host struct {
	cfg  Config
	tls  *tls.Config
	runs chan struct{}

	mu         sync.Mutex
	window     pairing.Window
	neighbours pairing.Neighbours
	ears       map[NIC]context.CancelFunc
}

// State is what a Host knows.
type State struct {
	// Code is shown until Until; Why says in a line why there is none, if there should be one.
	Code  pairing.Code
	Until time.Time
	Why   string
	Heard []pairing.Neighbour
}

// New makes a Host. One without a partner shows a code from the start.
func New(cfg Config) (*Host, error) {
	if cfg.Port == 0 {
		cfg.Port = pairing.Port
	}
	cert, err := hostkey.Certificate(cfg.Key)
	if err != nil {
		return nil, err
	}
	h := &Host{cfg: cfg, tls: tlsConfig(cert), runs: make(chan struct{}, maxRuns), ears: map[NIC]context.CancelFunc{}}
	if !cfg.HasPeer() {
		h.Open()
	}
	return h, nil
}

func (h *Host) self() pairing.Side {
	return pairing.Side{Name: h.cfg.Name, Key: h.cfg.Key.Public().(ed25519.PublicKey)}
}

// random8 and random48 are fresh random bytes; crypto/rand.Read never fails.
func random8() (b [8]byte) {
	rand.Read(b[:])
	return b
}

func random48() (b [spake2.SecretSize]byte) {
	rand.Read(b[:])
	return b
}

// Open shows a new code. A host without a partner goes on showing codes until it has one.
func (h *Host) Open() {
	renews := !h.cfg.HasPeer()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.window.Open(time.Now(), random8(), renews)
}

// Close shows no code any more.
func (h *Host) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.window.Close()
}

// State returns what is shown and who was heard.
func (h *Host) State() State {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	s := State{Heard: h.neighbours.List(now)}
	var err error
	if s.Code, s.Until, err = h.window.Code(now); err == pairing.ErrGuesses {
		s.Why = err.Error()
	}
	return s
}

// Run looks for other hosts, and lets them pair, until ctx ends.
func (h *Host) Run(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	tick := time.NewTicker(pairing.BeaconEvery)
	defer tick.Stop()
	for {
		h.listen(ctx, &all)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		h.mu.Lock()
		h.window.Tick(time.Now(), random8())
		h.mu.Unlock()
	}
}

// listen has each NIC served, and none that is gone.
func (h *Host) listen(ctx context.Context, all *sync.WaitGroup) {
	wanted := map[NIC]bool{}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, nic := range h.cfg.NICs() {
		wanted[nic] = true
		if h.ears[nic] != nil {
			continue
		}
		ear, cancel := context.WithCancel(ctx)
		h.ears[nic] = cancel
		all.Go(func() { h.accept(ear, nic) })
		if nic.Name != "" {
			all.Go(func() { h.beacons(ear, nic) })
		}
	}
	for nic, cancel := range h.ears {
		if !wanted[nic] {
			cancel()
			delete(h.ears, nic)
		}
	}
}

// hear notes a beacon.
func (h *Host) hear(b pairing.Beacon, nic string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !b.Key.Equal(h.cfg.Key.Public()) {
		h.neighbours.Heard(b, nic, time.Now())
	}
}

// beacon is what this host says of itself.
func (h *Host) beacon(address netip.Addr) []byte {
	h.mu.Lock()
	_, _, err := h.window.Code(time.Now())
	h.mu.Unlock()
	b := pairing.Beacon{Side: h.self(), Address: address, Shows: err == nil, HasPeer: h.cfg.HasPeer()}
	return b.Sign(h.cfg.Key)
}

// candidate is the one neighbour that shows a code.
func (h *Host) candidate() (pairing.Neighbour, error) {
	heard := h.State().Heard
	var shows []pairing.Neighbour
	for _, n := range heard {
		if n.Shows {
			shows = append(shows, n)
		}
	}
	switch {
	case len(shows) == 1:
		return shows[0], nil
	case len(shows) > 1:
		names := ""
		for _, n := range shows {
			names += fmt.Sprintf(" %s on %s", n.Name, n.NIC)
		}
		return pairing.Neighbour{}, fmt.Errorf("several hosts show a pairing code:%s; leave only one of them cabled to this host", names)
	case len(heard) > 0:
		return pairing.Neighbour{}, fmt.Errorf("host %s on %s shows no pairing code: ask it for one, by duet host pair", heard[0].Name, heard[0].NIC)
	}
	nics := ""
	for _, n := range h.cfg.NICs() {
		nics += " " + n.Name
	}
	if nics == "" {
		return pairing.Neighbour{}, fmt.Errorf("this host has no NIC for the direct cable: it needs a second one")
	}
	return pairing.Neighbour{}, fmt.Errorf("no other host is heard on%s: is it on, and the direct cable in?", nics)
}
