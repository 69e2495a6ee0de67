package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/duet-ft/duet/ftlink/session"
	"github.com/duet-ft/duet/ftlink/wire"
	"github.com/duet-ft/duet/hvd/api"
)

const (
	// usualDirect is the NIC to the partner where nothing says otherwise.
	usualDirect = "eth1"
	// hostsLink stands for a VM's UUID on the hosts' own link.
	hostsLink = "hosts"
)

// hostLink is the hosts' own session, beside those of their VMs: it says that the partner is there and is the right one. No
// frames travel on it.
type hostLink struct {
	d    *instance
	peer string
	key  string // its fingerprint
}

// runLink is how a link is run.
func runLink(ctx context.Context, cfg session.Config) error {
	l, err := session.New(cfg)
	if err != nil {
		return err
	}
	l.Run(ctx)
	return nil
}

// keepLink keeps the session to whoever is the partner.
func (d *instance) keepLink(ctx context.Context) {
	for ctx.Err() == nil {
		cfg := d.config()
		if cfg.Peer == nil {
			d.setSession("")
			select {
			case <-ctx.Done():
			case <-d.relink:
			}
			continue
		}
		d.setSession(fmt.Sprintf("no session yet to host %s", cfg.Peer.Name))
		direct := cfg.Direct
		if direct == "" {
			direct = usualDirect
		}
		life, end := context.WithCancel(ctx)
		var running sync.WaitGroup
		running.Go(func() {
			err := d.opt.Link(life, session.Config{
				Self: session.Identity{Name: d.name, Key: d.key},
				Peer: session.Peer{Name: cfg.Peer.Name, Key: publicOf(cfg.Peer)},
				Slot: session.HostSlot, VM: hostsLink, Direct: session.PathConfig{Interface: direct},
				Handler: &hostLink{d: d, peer: cfg.Peer.Name, key: session.Fingerprint(publicOf(cfg.Peer))},
			})
			if err != nil {
				d.setSession(api.OneLine(err.Error()))
			}
		})
		select {
		case <-ctx.Done():
		case <-d.relink:
		}
		end()
		running.Wait()
	}
}

func (d *instance) setSession(state string) {
	d.mu.Lock()
	d.session = state
	d.mu.Unlock()
	if state != "" && state != "ok" {
		d.say("session", "session: "+state)
	}
}

// sessionState is "ok", what is wrong, or empty without a partner.
func (d *instance) sessionState() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.session
}

// Up implements session.Handler.
func (h *hostLink) Up(*session.Conn) {
	h.d.setSession("ok")
	h.d.event(api.EventPartner, "", fmt.Sprintf("in session with host %s, key fingerprint %s", h.peer, h.key))
}

// Frame implements session.Handler: there are none.
func (h *hostLink) Frame(c *session.Conn, f wire.Frame) {
	c.Abort(fmt.Errorf("%w: the hosts' own session carries none", wire.ErrFrame))
}

// Down implements session.Handler.
func (h *hostLink) Down(_ *session.Conn, err error) {
	if errors.Is(err, session.ErrClosed) {
		return
	}
	h.d.setSession(api.OneLine(err.Error()))
	h.d.event(api.EventPartner, "", fmt.Sprintf("no longer in session with host %s: %v", h.peer, err))
}

// Heartbeat implements session.Handler: liveness is the stream's.
func (h *hostLink) Heartbeat(session.Path, []byte) {}

// Trouble implements session.Handler.
func (h *hostLink) Trouble(err error) { h.d.setSession(api.OneLine(err.Error())) }
