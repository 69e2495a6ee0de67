package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/iscsi"
	"github.com/duet-ft/duet/hvd/nexus"
	"github.com/duet-ft/duet/hvd/volume"
)

// maxOffline is how long the daemon's own commands wait for a lost target: the API should answer meanwhile.
const maxOffline = 10 * time.Second

// login opens the daemon's own session. It joins those that may write: the VMs' sessions reserve the volume, and the
// daemon changes definitions.
func login(ctx context.Context, l Login) (Store, error) {
	var st Store
	s, err := iscsi.Dial(ctx, iscsi.Config{
		Portal: l.Volume.Portal, Target: l.Volume.Target, LUN: uint64(l.Volume.LUN),
		Initiator: nexus.Initiator(l.Host), ISID: nexus.ISID(nexus.Daemon),
		User: l.Volume.User, Secret: l.Volume.Secret,
		HeaderDigest: true, DataDigest: true, MaxOffline: maxOffline,
		OnReconnect: func(ctx context.Context, s *iscsi.Session) error {
			if err := s.Join(ctx); !errors.Is(err, iscsi.ErrUnsupported) {
				return err
			}
			return nil
		},
		Notify: l.Notify,
	})
	if err != nil {
		return st, err
	}
	if err := s.Join(ctx); errors.Is(err, iscsi.ErrUnsupported) {
		st.Warning = "the volume's target has no persistent reservations, so no VM can be protected"
	} else if err != nil {
		s.Close()
		return st, fmt.Errorf("persistent reservation: %w", err)
	}
	st.Blocks, st.Close = s, s.Close
	st.Gone = func() bool { return errors.Is(s.Err(), iscsi.ErrClosed) }
	return st, nil
}

// keepVolume logs in, opens the volume and watches it, and begins anew when that fails.
func (d *instance) keepVolume(ctx context.Context) {
	switch {
	case d.cfg.Volume == nil:
		d.setVolume(nil, "no volume: host.json names none", "")
		<-ctx.Done()
		return
	case d.cfg.Name == "":
		d.setVolume(nil, "no volume: host.json has no name, and the peer would log in by the same one; add a \"name\"", "")
		<-ctx.Done()
		return
	}
	for ctx.Err() == nil {
		store, v, err := d.open(ctx)
		if err != nil {
			d.setVolume(nil, "no volume: "+api.OneLine(err.Error()), "")
			sleep(ctx, d.opt.Retry, nil)
			continue
		}
		d.setVolume(v, "ok", store.Warning)
		d.watch(ctx, store, v)
		d.setVolume(nil, "no volume: the session was closed", "")
		store.Close()
	}
}

func (d *instance) open(ctx context.Context) (Store, *volume.Volume, error) {
	store, err := d.opt.Open(ctx, Login{*d.cfg.Volume, d.cfg.Name, func(line string) { d.log("volume: " + line) }})
	if err != nil {
		return store, nil, err
	}
	v, err := volume.Open(ctx, store.Blocks)
	if err == nil {
		return store, v, nil
	}
	store.Close()
	if errors.Is(err, volume.ErrNotDuet) {
		err = fmt.Errorf("%w; if it's meant for Duet and empty, do so: hvd volume format", err)
	}
	return store, nil, err
}

// watch carries out what the definitions say, until ctx ends or the session is closed.
func (d *instance) watch(ctx context.Context, store Store, v *volume.Volume) {
	for {
		state := "ok"
		if err := d.refresh(ctx, v); err != nil {
			state = "no volume: " + api.OneLine(err.Error())
		}
		if ctx.Err() != nil || store.Gone() {
			return
		}
		d.setVolume(v, state, store.Warning)
		if !sleep(ctx, d.opt.Poll, d.wake) {
			return
		}
	}
}

// refresh reads the definitions and makes the VMs' processes follow them.
func (d *instance) refresh(ctx context.Context, v *volume.Volume) error {
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	d.refreshing.Lock()
	defer d.refreshing.Unlock()
	list, err := v.Definitions(ctx)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.seen = true
	d.mu.Unlock()
	d.fleet.follow(list)
	return nil
}

func (d *instance) setVolume(v *volume.Volume, state, warning string) {
	d.mu.Lock()
	d.volume, d.volState, d.warning = v, state, warning
	d.mu.Unlock()
	if state == "ok" {
		d.say("volume", "volume "+v.ID().String()+" is there")
	} else {
		d.say("volume", state)
	}
	if warning != "" {
		d.say("warning", warning)
	}
}

// opened returns the volume, or why there is none.
func (d *instance) opened() (*volume.Volume, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.volume == nil {
		return nil, api.Errorf(503, "%s", d.volState)
	}
	return d.volume, nil
}
