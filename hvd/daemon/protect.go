package daemon

import (
	"context"
	"net/http"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/volume"
)

// Protect implements server.Backend. What is asked for is kept in the VM's definition, where both hosts read it and a VM's
// process finds it when it starts; those that run are told.
func (d *instance) Protect(ctx context.Context, name string, on bool) (api.VM, error) {
	store, err := d.opened()
	if err != nil {
		return api.VM{}, err
	}
	if err := store.Modify(ctx, name, func(def *volume.Definition) { def.Unprotected = !on }); err != nil {
		return api.VM{}, volumeError(err)
	}
	what := "a user has it run unprotected: the other host's copy is dropped, and none is made"
	if on {
		what = "a user has it protected again: the other host gets a copy"
	}
	d.event(api.EventCommand, name, what)
	if err := d.refresh(ctx, store); err != nil {
		return api.VM{}, volumeError(err)
	}
	v, err := d.find(name)
	if err != nil {
		return api.VM{}, err
	}
	d.tellProtection(ctx, v)
	return d.look(ctx, v), nil
}

// tellProtection tells a VM's process what the definition says, unless it knows.
func (d *instance) tellProtection(ctx context.Context, v *vm) {
	def, _ := d.fleet.definition(v)
	v.mu.Lock()
	pid, knows := v.state.PID, v.knows
	v.mu.Unlock()
	now := protection{pid: pid, unprotected: def.Unprotected}
	if now == knows {
		return
	}
	action := "/protect"
	if def.Unprotected {
		action = "/unprotect"
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	if reply, err := v.sock.Do(ctx, http.MethodPost, action); err != nil || reply.Status != http.StatusOK {
		return // it isn't up, and is told with the next look at its events
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.state.PID == pid {
		v.knows = now
	}
}

// protection is what a VM's process was told.
type protection struct {
	pid         int // 0: nothing yet
	unprotected bool
}
