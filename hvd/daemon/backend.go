package daemon

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/daemon/define"
	"github.com/duet-ft/duet/hvd/daemon/vmsock"
	"github.com/duet-ft/duet/hvd/usage"
	"github.com/duet-ft/duet/hvd/volume"
)

// Roles of a VM beside those of its own process.
const (
	roleWaiting = "waiting" // for its process
	roleFailed  = "failed"
)

// Host implements server.Backend.
func (d *instance) Host(context.Context) api.Host {
	d.mu.Lock()
	defer d.mu.Unlock()
	volume := d.storage()
	h := api.Host{
		Name: d.name, Version: d.opt.Version, KVM: d.kvm, Volume: volume, Locator: d.hardware.Locator,
		LocatorWhy: d.hardware.LocatorWhy,
		Key:        hex.EncodeToString(d.publicKey()),
	}
	h.Usage = usage.OfProcess()
	h.AvailableBytes, h.OpenFiles = usage.OfHost()
	h.Drained = d.drained()
	drained := ""
	if h.Drained {
		drained = "this host is drained; duet host undrain lets VMs come back"
	}
	peer := ""
	if d.cfg.Peer != nil {
		h.Peer, h.Session = d.cfg.Peer.Name, d.session
	} else {
		peer = "no peer: host.json names none, and the host isn't paired; see duet host pair"
	}
	d.pairingState(&h)
	state := func(s string) string { return strings.TrimSuffix(s, "ok") }
	for _, t := range []string{d.problem, d.keyProblem, d.pairProblem, state(d.kvm), state(volume), d.warning, peer, drained} {
		if t != "" {
			h.Trouble = t
			break
		}
	}
	return h
}

// VMs implements server.Backend.
func (d *instance) VMs(ctx context.Context) ([]api.VM, error) {
	if err := d.known(); err != nil {
		return nil, err
	}
	vms := d.fleet.list()
	list := make([]api.VM, len(vms))
	var all sync.WaitGroup
	for i, v := range vms {
		all.Go(func() { list[i] = d.look(ctx, v) })
	}
	all.Wait()
	return list, nil
}

// known fails while the definitions have never been read.
func (d *instance) known() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.seen {
		return nil
	}
	state := d.volState
	if state == "ok" {
		state = "the VM definitions aren't read yet"
	}
	return api.Errorf(http.StatusServiceUnavailable, "%s", state)
}

// VM implements server.Backend.
func (d *instance) VM(ctx context.Context, name string) (api.VM, error) {
	v, err := d.find(name)
	if err != nil {
		return api.VM{}, err
	}
	return d.look(ctx, v), nil
}

func (d *instance) find(name string) (*vm, error) {
	if v := d.fleet.find(name); v != nil {
		return v, nil
	}
	if err := d.known(); err != nil {
		return nil, err
	}
	return nil, api.Errorf(http.StatusNotFound, "there is no VM %.40q", name)
}

// look asks a VM's process for the VM's state, and says what is known where it doesn't answer.
func (d *instance) look(ctx context.Context, v *vm) api.VM {
	def, blocked := d.fleet.definition(v)
	state := api.VM{Name: v.name, Output: def.Output, Unprotected: def.Unprotected, Role: roleFailed, Error: blocked}
	if blocked != "" {
		return state
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	got, err := v.sock.VM(ctx)
	if err == nil {
		got.Name, got.Unprotected = v.name, def.Unprotected
		return got
	}
	state.Error = v.lastFault()
	switch {
	case !errors.Is(err, vmsock.ErrDown):
		state.Error = err.Error()
	case v.running() || state.Error == "":
		state.Role = roleWaiting
	}
	return state
}

// Create implements server.Backend.
func (d *instance) Create(ctx context.Context, definition []byte) (api.VM, error) {
	v, err := d.opened()
	if err != nil {
		return api.VM{}, err
	}
	def, err := volume.ParseDefinition(definition)
	if err != nil {
		return api.VM{}, api.Errorf(http.StatusBadRequest, "%v", err)
	}
	if err := d.fits(def); err != nil {
		return api.VM{}, err
	}
	if err := d.change(ctx, func(v *volume.Volume) (err error) { def, err = define.Create(ctx, v, def); return err }); err != nil {
		return api.VM{}, err
	}
	d.event(api.EventCommand, def.Name, fmt.Sprintf("created, %d MiB of memory, %d disks", def.MemoryMiB, len(def.Disks)))
	if err := d.refresh(ctx, v); err != nil {
		return api.VM{}, volumeError(err)
	}
	return d.VM(ctx, def.Name)
}

// fits says whether this host has the memory for one more VM. Each host of a pair holds all VMs, running or not.
func (d *instance) fits(def volume.Definition) error {
	d.mu.Lock()
	has := d.hardware.MemoryMiB
	d.mu.Unlock()
	taken := 0
	for _, v := range d.fleet.list() {
		other, _ := d.fleet.definition(v)
		taken += other.MemoryMiB
	}
	// Compared as a difference: what comes from the caller may be any number.
	if def.MemoryMiB <= has-taken {
		return nil
	}
	line := fmt.Sprintf("VM %.40q: memory_mib %d is more than this host has (%d MiB", def.Name, def.MemoryMiB, has)
	if taken > 0 {
		line += fmt.Sprintf(", %d of them other VMs'", taken)
	}
	return api.Errorf(http.StatusBadRequest, "%s)", line)
}

// Delete implements server.Backend.
func (d *instance) Delete(ctx context.Context, name string) error {
	_, cancel := context.WithCancel(ctx)
	j := &job{what: changing, cancel: cancel, done: make(chan struct{})}
	if err := d.jobs.enter(name, j); err != nil {
		cancel()
		return err
	}
	err := d.change(ctx, func(v *volume.Volume) error { return define.Delete(ctx, v, d.keeper(), name) })
	d.jobs.leave(name, j, err)
	if err != nil {
		return err
	}
	d.event(api.EventCommand, name, "deleted")
	return d.changed(ctx)
}

// Forward implements server.Backend.
func (d *instance) Forward(ctx context.Context, name, method, path string) (vmsock.Reply, error) {
	v, err := d.unblocked(name)
	if err != nil {
		return vmsock.Reply{}, err
	}
	if path == "/start" || path == "/force-start" {
		if err := d.startable(ctx, name); err != nil {
			return vmsock.Reply{}, err
		}
	}
	reply, err := v.sock.Do(ctx, method, path)
	if err != nil {
		return reply, v.unanswered(http.StatusServiceUnavailable, err)
	}
	if path == "/test-failover" && reply.Status == http.StatusOK { // the process ends before it is asked for its events
		d.event(api.EventCommand, name, "a user tested the failover: the copy here, which ran, was dropped")
	}
	return reply, nil
}

// Stream implements server.Backend.
func (d *instance) Stream(ctx context.Context, name, path string) (*http.Response, error) {
	v, err := d.unblocked(name)
	if err != nil {
		return nil, err
	}
	a, err := v.sock.Stream(ctx, path)
	if err != nil {
		return nil, v.unanswered(http.StatusServiceUnavailable, err)
	}
	return a, nil
}

// Vsock implements server.Backend.
func (d *instance) Vsock(ctx context.Context, name string, port uint32) (net.Conn, error) {
	v, err := d.unblocked(name)
	if err != nil {
		return nil, err
	}
	conn, err := v.sock.Vsock(ctx, port)
	if err != nil {
		return nil, v.unanswered(http.StatusBadGateway, err)
	}
	return conn, nil
}

// Console implements server.Backend.
func (d *instance) Console(ctx context.Context, name string) (net.Conn, error) {
	v, err := d.unblocked(name)
	if err != nil {
		return nil, err
	}
	conn, err := v.sock.Console(ctx)
	switch {
	case errors.Is(err, vmsock.ErrDown) && v.running():
		return nil, api.Errorf(http.StatusConflict, "VM %s doesn't run on this host", name)
	case err != nil:
		return nil, v.unanswered(http.StatusServiceUnavailable, err)
	}
	return conn, nil
}

// unblocked returns a VM for which this host runs a process. Whether that is up, only its sockets can say: it may answer
// before its start was told, and be gone before its end was.
func (d *instance) unblocked(name string) (*vm, error) {
	v, err := d.find(name)
	if err != nil {
		return nil, err
	}
	if _, blocked := d.fleet.definition(v); blocked != "" {
		return nil, api.Errorf(http.StatusServiceUnavailable, "VM %s: %s", name, blocked)
	}
	return v, nil
}

// unanswered says why a question to the VM's process failed: where there is no process, why the last one ended.
func (v *vm) unanswered(status int, err error) error {
	if errors.Is(err, vmsock.ErrDown) {
		status = http.StatusServiceUnavailable
		if fault := v.lastFault(); fault != "" && !v.running() {
			return api.Errorf(status, "VM %s: %s", v.name, fault)
		}
	}
	return api.Errorf(status, "VM %s: %v", v.name, err)
}

// Events implements server.Backend.
func (d *instance) Events(ctx context.Context) []api.Event {
	d.collect(ctx)
	return d.events.List()
}

// volumeError gives an error of the volume's the status that fits.
func volumeError(err error) error {
	var known *api.Error
	if errors.As(err, &known) {
		return known
	}
	status := http.StatusServiceUnavailable
	for _, m := range []struct {
		err    error
		status int
	}{
		{volume.ErrInvalid, http.StatusBadRequest},
		{volume.ErrExists, http.StatusConflict},
		{define.ErrNotStopped, http.StatusConflict},
		{define.ErrHeld, http.StatusConflict},
		{volume.ErrNotReady, http.StatusConflict},
		{volume.ErrImage, http.StatusBadRequest},
		{volume.ErrNotFound, http.StatusNotFound},
		{volume.ErrFull, http.StatusInsufficientStorage},
	} {
		if errors.Is(err, m.err) {
			status = m.status
		}
	}
	return api.Errorf(status, "%v", err)
}
