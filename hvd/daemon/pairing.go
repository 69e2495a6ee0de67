package daemon

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"github.com/duet-ft/duet/ftlink/pairing"
	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/daemon/partner"
	"github.com/duet-ft/duet/hvd/hostcfg"
)

// settings are what a host gives its new partner, as JSON.
type settings struct {
	Volume *hostcfg.Volume `json:"volume,omitempty"`
}

// config is host.json with what pairing added, as of now.
func (d *instance) config() *hostcfg.Config {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cfg
}

func (d *instance) hasPeer() bool { return d.config().Peer != nil }

// newPartner makes what looks for the other host.
func (d *instance) newPartner() (*partner.Host, error) {
	return partner.New(partner.Config{
		Name: d.name, Key: d.key, NICs: d.cabled, HasPeer: d.hasPeer, Forbidden: d.forbidden,
		Settings: d.settings, Pin: d.pin, Log: func(line string) { d.event(api.EventPartner, "", line) },
	})
}

// cabled are the NICs on which the partner may be: all but the management network's.
func (d *instance) cabled() (list []partner.NIC) {
	for _, n := range d.opt.NICs() {
		if n.Use != useManagement {
			list = append(list, partner.NIC{Name: n.Name})
		}
	}
	return list
}

func (d *instance) settings() []byte {
	b, err := json.Marshal(settings{Volume: d.config().Volume})
	if err != nil || len(b) > pairing.MaxPayload {
		return nil // then the partner's user names the volume
	}
	return b
}

// forbidden says why this host can't get another partner now.
func (d *instance) forbidden() error {
	if d.keyProblem != "" {
		return fmt.Errorf("host %s can't keep a partner: %s", d.name, d.keyProblem)
	}
	peer := d.config().Peer
	if peer == nil {
		return nil
	}
	if d.sessionState() == "ok" {
		return fmt.Errorf("host %s has a partner, host %s, which is alive and in session; to part them, say duet host unpair to both", d.name, peer.Name)
	}
	return d.guarded()
}

// guarded says which VM is in lockstep with the partner, as an error.
func (d *instance) guarded() error {
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	for _, v := range d.fleet.list() {
		state := d.look(ctx, v)
		if state.Protected || holding(state) {
			return fmt.Errorf("VM %s is in lockstep between this host and its partner (%s here): stop it, or drain this host first", v.name, state.Role)
		}
	}
	return nil
}

// holding says that this host's copy follows the partner's, or is about to take over from it.
func holding(v api.VM) bool {
	switch v.Role {
	case "receiving", "secondary", "diverged", "consuming", "claiming", "fencing", "seeding", "gating", "pairing", "resolving", "pausing", "yielding":
		return true
	}
	return false
}

// pin keeps a partner that has proven who it is. Settings, if they have come, fill what this host doesn't know.
func (d *instance) pin(peer pairing.Side, nic string, raw []byte) error {
	d.pinning.Lock()
	defer d.pinning.Unlock()
	key := hex.EncodeToString(peer.Key)
	cfg := d.config()
	known := cfg.Peer != nil && cfg.Peer.Key == key && cfg.Peer.Name == peer.Name
	if !known {
		if err := d.forbidden(); err != nil {
			return err
		}
	}
	path := hostcfg.PairingPath(d.opt.Config)
	p := hostcfg.Pairing{Name: d.name, Peer: &hostcfg.Peer{Name: peer.Name, Key: key}, Direct: nic}
	for _, n := range d.opt.NICs() {
		if n.Name == nic {
			p.DirectMAC = n.MAC
		}
	}
	if old, err := hostcfg.LoadPairing(path); err == nil && old != nil {
		p.Volume = old.Volume // a damaged file tells none
	}
	var theirs settings
	if len(raw) > 0 && cfg.Volume == nil {
		if err := json.Unmarshal(raw, &theirs); err != nil {
			return errors.New("the partner's settings can't be read: give both hosts the same image")
		}
		p.Volume = theirs.Volume
	}
	if err := p.Store(path); err != nil {
		return fmt.Errorf("host %s can't keep its partner: %w", d.name, err)
	}
	if !known {
		d.event(api.EventPartner, "", fmt.Sprintf("paired with host %s on %s, key %s", peer.Name, nic, key))
	}
	if theirs.Volume != nil {
		d.event(api.EventPartner, "", fmt.Sprintf("took over the volume from host %s: %s at %s", peer.Name, theirs.Volume.Target, theirs.Volume.Portal))
	}
	d.adopt(!known)
	return nil
}

// adopt makes the configuration on disk count. A new partner is met at once: by the hosts' own session, and by the VMs'
// processes. Those of VMs that don't run here begin anew.
func (d *instance) adopt(parted bool) {
	cfg, err := hostcfg.Load(d.opt.Config)
	if err != nil {
		d.log("host.json: " + api.OneLine(err.Error()))
		return
	}
	d.mu.Lock()
	d.cfg = cfg
	if strings.HasPrefix(d.problem, noConfig) {
		d.problem = ""
	}
	d.pairProblem = ""
	d.mu.Unlock()
	if !parted {
		d.kick()
		return
	}
	select {
	case d.relink <- struct{}{}:
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	var all sync.WaitGroup
	for _, v := range d.fleet.list() {
		all.Go(func() { d.introduce(ctx, v) })
	}
	all.Wait()
	d.kick()
}

// introduce lets a VM's process know of the new partner. One whose guest runs is told, another is replaced.
func (d *instance) introduce(ctx context.Context, v *vm) {
	if !d.look(ctx, v).Live {
		d.fleet.replace(v)
		return
	}
	if reply, err := v.sock.Do(ctx, http.MethodPost, "/peer"); err != nil || reply.Status/100 != 2 {
		d.event(api.EventPartner, v.name, "the guest runs on alone, and meets the new partner when it is started the next time")
	}
}

// Pair implements server.Backend.
func (d *instance) Pair(ctx context.Context, text string) (api.Host, error) {
	if text == "" {
		if err := d.forbidden(); err != nil {
			return api.Host{}, api.Errorf(http.StatusConflict, "%v", err)
		}
		d.partner.Open()
		return d.Host(ctx), nil
	}
	code, err := pairing.ParseCode(text)
	if err != nil {
		return api.Host{}, api.Errorf(http.StatusBadRequest, "%v", err)
	}
	if _, err := d.partner.Join(ctx, code); err != nil {
		return api.Host{}, api.Errorf(http.StatusConflict, "%v", err)
	}
	return d.Host(ctx), nil
}

// Unpair implements server.Backend.
func (d *instance) Unpair(ctx context.Context) (api.Host, error) {
	d.pinning.Lock()
	defer d.pinning.Unlock()
	peer := d.config().Peer
	if peer == nil {
		return api.Host{}, api.Errorf(http.StatusConflict, "host %s has no partner", d.name)
	}
	if err := d.guarded(); err != nil {
		return api.Host{}, api.Errorf(http.StatusConflict, "%v", err)
	}
	path := hostcfg.PairingPath(d.opt.Config)
	p := hostcfg.Pairing{Name: d.name}
	if old, err := hostcfg.LoadPairing(path); err == nil && old != nil {
		p.Volume = old.Volume
	}
	if err := p.Store(path); err != nil {
		return api.Host{}, api.Errorf(http.StatusInternalServerError, "host %s can't forget its partner: %v", d.name, err)
	}
	d.event(api.EventPartner, "", fmt.Sprintf("unpaired from host %s", peer.Name))
	d.adopt(true)
	d.partner.Open()
	return d.Host(ctx), nil
}

// pairingState adds what is known of pairing to the host's state.
func (d *instance) pairingState(h *api.Host) {
	s := d.partner.State()
	if s.Code != "" {
		until := s.Until.UTC()
		h.Code, h.CodeUntil = s.Code.String(), &until
	}
	for _, n := range s.Heard {
		h.Heard = append(h.Heard, api.Heard{Name: n.Name, NIC: n.NIC, Shows: n.Shows})
	}
}

func publicOf(p *hostcfg.Peer) ed25519.PublicKey {
	key, err := p.PublicKey()
	if err != nil {
		panic(err) // hostcfg has checked it
	}
	return key
}
