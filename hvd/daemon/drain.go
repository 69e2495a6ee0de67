package daemon

import (
	"context"
	"errors"
	"net/http"
	"os"
	"sync"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/hostcfg"
)

// Drain implements server.Backend. What is asked for is kept in a file beside host.json, which the VMs' processes read
// when they start; those that run are told.
func (d *instance) Drain(ctx context.Context, on bool) (api.Host, error) {
	path := hostcfg.DrainedPath(d.opt.Config)
	action, what := "/drain", "the host is drained: its VMs leave, and no copy is started or received here"
	var err error
	if on {
		err = os.WriteFile(path, nil, 0o600)
	} else {
		action, what = "/undrain", "the host is no longer drained"
		if err = os.Remove(path); errors.Is(err, os.ErrNotExist) {
			return d.Host(ctx), nil
		}
	}
	if err != nil {
		return api.Host{}, api.Errorf(http.StatusInternalServerError, "the host can't keep that it is drained: %v", err)
	}
	d.event(api.EventCommand, "", what)
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	var all sync.WaitGroup
	for _, v := range d.fleet.list() {
		all.Go(func() { _, _ = v.sock.Do(ctx, http.MethodPost, action) }) // one that isn't up yet reads the file
	}
	all.Wait()
	return d.Host(ctx), nil
}

// drained says that the host is.
func (d *instance) drained() bool {
	_, err := os.Stat(hostcfg.DrainedPath(d.opt.Config))
	return err == nil
}
