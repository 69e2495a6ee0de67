package vmproc

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"net/http"

	"github.com/duet-ft/duet/ftlink/session"
	"github.com/duet-ft/duet/hvd/hostcfg"
)

// tie is who the peer is, and the link to it. It is replaced as a whole when the host is paired anew.
type tie struct {
	peer *hostcfg.Peer // nil: the host has none
	with session.Peer
	link *session.Link
	end  context.CancelFunc
	done chan struct{} // closed when the link has ended
}

// newTie makes a link that doesn't run yet.
func (p *Process) newTie(c *hostcfg.Config) (*tie, error) {
	t := &tie{peer: c.Peer, with: session.Peer{Name: "~none"}, done: make(chan struct{})}
	if c.Peer == nil {
		// A host without a peer runs its VMs alone: its peer is one that never answers, with a key that nobody has.
		nobody := sha256.Sum256(append([]byte("no peer of "), p.key.Public().(ed25519.PublicKey)...))
		t.with.Key = ed25519.NewKeyFromSeed(nobody[:]).Public().(ed25519.PublicKey)
	} else {
		t.with.Name = c.Peer.Name
		var err error
		if t.with.Key, err = c.Peer.PublicKey(); err != nil {
			return nil, err
		}
	}
	direct := session.PathConfig{Interface: c.Direct}
	if direct.Interface == "" {
		direct.Interface = "eth1"
	}
	var err error
	t.link, err = session.New(session.Config{
		Self: session.Identity{Name: c.Name, Key: p.key}, Peer: t.with,
		Slot: p.def.Slot, VM: p.def.UUID, Incarnation: p.incarnation,
		Direct: direct, Management: session.PathConfig{Interface: bridge},
		Handler: (*handler)(p),
	})
	return t, err
}

// run runs the link until ctx ends or cut is called.
func (t *tie) run(ctx context.Context) {
	ctx, t.end = context.WithCancel(ctx)
	go func() {
		defer close(t.done)
		t.link.Run(ctx)
	}()
}

// cut closes the link and waits until it has ended.
func (t *tie) cut() {
	t.end()
	<-t.done
}

// meet gives a guest that runs here alone the peer that the host is paired with now. The loop calls it.
func (p *Process) meet(ctx context.Context) error {
	c, err := hostcfg.Load(p.opt.HostConfig)
	if err != nil {
		return err
	}
	old := p.tie.Load()
	fresh, err := p.newTie(c)
	if err != nil {
		return err
	}
	if fresh.with.Name == old.with.Name && fresh.with.Key.Equal(old.with.Key) {
		return nil
	}
	if err := p.pair.Replace(hostID(fresh.with.Key)); err != nil {
		return fmt.Errorf("VM %s can't have another peer now: %w", p.def.Name, err)
	}
	p.say(fmt.Sprintf("link: the peer was host %s, and is host %s from now on", old.with.Name, fresh.with.Name))
	old.cut()
	p.tie.Store(fresh)
	fresh.run(ctx)
	return nil
}

// servePeer has the loop look who the host is paired with.
func (p *Process) servePeer(w http.ResponseWriter, r *http.Request) {
	done := make(chan error, 1)
	select {
	case p.later <- func(ctx context.Context) { done <- p.meet(ctx) }:
	case <-r.Context().Done():
		return
	}
	select {
	case err := <-done:
		if err != nil {
			refuse(w, http.StatusConflict, err.Error())
			return
		}
		answer(w, p.status())
	case <-r.Context().Done(): // it happens all the same
	}
}
