package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/daemon/define"
	"github.com/duet-ft/duet/hvd/hostcfg"
	"github.com/duet-ft/duet/hvd/iscsi"
	"github.com/duet-ft/duet/hvd/nexus"
	"github.com/duet-ft/duet/hvd/volume"
)

// maxOffline is how long the daemon's own commands wait for a lost target: the API should answer meanwhile.
const maxOffline = 10 * time.Second

// login opens the daemon's own session.
func login(ctx context.Context, l Login) (Store, error) {
	// joined is set before the session is used by more than one goroutine, and read when it has to log in again.
	var joined atomic.Bool
	join := func(ctx context.Context, s *iscsi.Session) (warning string, err error) {
		if err := s.RequireCompareAndWrite(ctx); err != nil {
			return "", err
		}
		err = s.Join(ctx)
		if errors.Is(err, iscsi.ErrUnsupported) {
			return "the volume's target has no persistent reservations, so no VM can be protected", nil
		}
		if err != nil {
			return "", fmt.Errorf("persistent reservation: %w", err)
		}
		return "", nil
	}
	cfg := nexus.Config(l.Volume, nexus.Initiator(l.Host), nexus.ISID(nexus.Daemon))
	cfg.HeaderDigest, cfg.DataDigest, cfg.MaxOffline, cfg.Notify = true, true, maxOffline, l.Notify
	cfg.OnReconnect = func(ctx context.Context, s *iscsi.Session) error {
		if !joined.Load() {
			return nil
		}
		_, err := join(ctx, s) // the target may have forgotten it
		return err
	}
	s, err := iscsi.Dial(ctx, cfg)
	if err != nil {
		return Store{}, err
	}
	return Store{
		Blocks: s,
		Join: func(ctx context.Context) (string, error) {
			joined.Store(true)
			return join(ctx, s)
		},
		ShutOut: func(ctx context.Context, keeper pair.HostID) error { return shutOut(ctx, s, l.Peer, keeper) },
		Err:     s.Err,
		Close:   s.Close,
	}, nil
}

// shutOut fences the sessions by which a keeper changes disks: a host's daemon, or the program's volume commands. VMs of that
// host have sessions of their own, and go on.
func shutOut(ctx context.Context, s *iscsi.Session, peer string, keeper pair.HostID) error {
	list, _, err := s.Registrations(ctx)
	if errors.Is(err, iscsi.ErrUnsupported) {
		return nil // then nobody can be shut out
	}
	if err != nil {
		return err
	}
	victims := []iscsi.Port{{Initiator: nexus.Initiator(peer), ISID: nexus.ISID(nexus.Daemon)}} // also where the target tells no names
	for _, r := range list {
		if r.Port.ISID == nexus.ISID(nexus.Daemon) || strings.HasPrefix(r.Port.Initiator, nexus.Initiator(nexus.Tool)) {
			victims = append(victims, r.Port)
		}
	}
	for _, p := range victims {
		if define.Keeper(p.Initiator).ID() != keeper && define.SessionKeeper(p.Initiator, p.ISID).ID() != keeper {
			continue
		}
		if err := s.Fence(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// keepVolume logs in, opens the volume and watches it, and begins anew when that fails.
func (d *instance) keepVolume(ctx context.Context) {
	for ctx.Err() == nil {
		cfg := d.config()
		if why := unnamed(cfg); why != "" { // until the host is paired
			d.setVolume(nil, why, "")
			sleep(ctx, d.opt.Retry, d.wake)
			continue
		}
		store, v, warning, err := d.open(ctx, cfg)
		if err != nil {
			d.setVolume(nil, "no volume: "+api.OneLine(err.Error()), "")
			sleep(ctx, d.opt.Retry, nil)
			continue
		}
		d.mu.Lock()
		d.online, d.join, d.shutOut = store.Err, store.Join, store.ShutOut
		d.mu.Unlock()
		d.setVolume(v, "ok", warning)
		d.watch(ctx, store, v, warning)
		if ctx.Err() == nil {
			d.setVolume(nil, "no volume: the session was closed", "")
		}
		d.jobs.cancelAll(ctx.Err() != nil) // they give their VMs back while there is a session
		d.mu.Lock()
		d.blocks = nil
		d.mu.Unlock()
		store.Close()
		sleep(ctx, d.opt.Retry, nil)
	}
}

// unnamed says what is missing to log in with, or "".
func unnamed(cfg *hostcfg.Config) string {
	switch {
	case cfg.Volume == nil:
		return "no volume: host.json names none"
	case cfg.Name == "":
		return "no volume: host.json has no name, and the peer would log in by the same one; add a \"name\""
	}
	return ""
}

// open logs in and opens the volume. Only one that is Duet's is joined: a reservation would keep others from theirs.
func (d *instance) open(ctx context.Context, cfg *hostcfg.Config) (store Store, v *volume.Volume, warning string, err error) {
	peer := ""
	if cfg.Peer != nil {
		peer = cfg.Peer.Name
	}
	store, err = d.opt.Open(ctx, Login{*cfg.Volume, cfg.Name, peer, func(line string) { d.log("volume: " + line) }})
	if err != nil {
		return store, nil, "", err
	}
	d.mu.Lock()
	d.blocks = store.Blocks
	d.mu.Unlock()
	if v, err = volume.Open(ctx, store.Blocks); errors.Is(err, volume.ErrNotDuet) {
		err = d.foreign(ctx, store.Blocks, err)
	}
	if err == nil {
		v.OnRepair(func(line string) { d.event(api.EventVolume, "", line) })
		warning, err = store.Join(ctx)
	}
	if err != nil {
		d.mu.Lock()
		d.blocks = nil
		d.mu.Unlock()
		store.Close()
	}
	return store, v, warning, err
}

// lookAgain is when a volume that isn't Duet's is read once more to say what is on it.
const lookAgain = time.Minute

// foreign says what becomes of a volume that isn't Duet's: it can't be used as it is, or it waits to be formatted, which
// is never done unasked.
func (d *instance) foreign(ctx context.Context, b volume.Blocks, why error) error {
	now := time.Now()
	if now.Sub(d.vacantAt) >= lookAgain {
		d.vacant, d.vacantAt = volume.Vacant(ctx, b), now
	}
	if d.vacant != nil {
		return d.vacant
	}
	return fmt.Errorf("%w; if it's meant for Duet, make it so: hvd volume format", why)
}

// watch carries out what the definitions say, until ctx ends or the session is closed.
func (d *instance) watch(ctx context.Context, store Store, v *volume.Volume, warning string) {
	var aside sync.WaitGroup
	var tending atomic.Bool
	defer aside.Wait()
	for {
		state := "ok"
		if err := d.refresh(ctx, v); err != nil {
			state = "no volume: " + api.OneLine(err.Error())
		}
		if ctx.Err() != nil || errors.Is(store.Err(), iscsi.ErrClosed) {
			return
		}
		d.setVolume(v, state, warning)
		if tending.CompareAndSwap(false, true) { // a repair may have to wait for a minute
			aside.Go(func() {
				d.tend(ctx, v)
				tending.Store(false)
			})
		}
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
	d.tendDisks(ctx, v, list)
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

// storage returns the state of the volume: "ok", or what is wrong, also when the session has just lost its target and
// nothing has failed yet. d.mu is held.
func (d *instance) storage() string {
	if d.volState == "ok" && d.online != nil {
		if err := d.online(); err != nil {
			return "no volume: " + api.OneLine(err.Error())
		}
	}
	return d.volState
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
