package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/daemon/supervise"
	"github.com/duet-ft/duet/hvd/daemon/vmsock"
	"github.com/duet-ft/duet/hvd/volume"
)

// fleet is the VMs that are defined, each with its process.
type fleet struct {
	d *instance

	mu     sync.Mutex
	vms    map[string]*vm // by name; one whose definition is gone stays until its process is
	closed bool
	all    sync.WaitGroup
}

// vm is one VM that is defined, or whose process hasn't ended yet.
type vm struct {
	name string
	dir  string // of its sockets
	sock *vmsock.Client

	// Guarded by the fleet's lock.
	def     volume.Definition
	blocked string // why no process is run
	cancel  func() // nil: no process is run
	leaving bool   // its definition is gone

	mu    sync.Mutex
	state supervise.Change // the process' last change
	knows protection       // what the process was told of it
	fault string           // why it ended last time
	quiet bool             // it ends by the same fault again and again
}

func newFleet(d *instance) *fleet { return &fleet{d: d, vms: map[string]*vm{}} }

// follow starts and stops processes so that there is one for each definition that this host can run.
func (f *fleet) follow(list []volume.Definition) {
	f.d.mu.Lock()
	kvm, memory := f.d.kvm, f.d.hardware.MemoryMiB
	f.d.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	wanted := map[string]volume.Definition{}
	for _, def := range list {
		wanted[def.Name] = def
	}
	for name, v := range f.vms {
		if def, ok := wanted[name]; !ok || def.UUID != v.def.UUID || !slices.Equal(def.Disks, v.def.Disks) {
			f.dismiss(v) // disks change only while the VM is stopped; its process has opened those that were
		}
	}
	for name, def := range wanted {
		v := f.vms[name]
		if v == nil {
			dir := filepath.Join(f.d.opt.RunDir, name)
			v = &vm{name: name, dir: dir, sock: vmsock.New(dir)}
			f.vms[name] = v
		}
		if v.leaving {
			continue // its end wakes us up
		}
		v.def = def
		v.blocked = ""
		switch {
		case v.cancel != nil:
		case kvm != "ok":
			v.blocked = kvm
		case def.Ready() != nil:
			v.blocked = def.Ready().Error()
		case def.MemoryMiB > memory:
			v.blocked = fmt.Sprintf("memory_mib %d is more than this host has (%d MiB)", def.MemoryMiB, memory)
		default:
			f.start(v)
		}
	}
}

// dismiss ends a VM's process, if there is one, and forgets the VM.
func (f *fleet) dismiss(v *vm) {
	switch {
	case v.cancel == nil:
		delete(f.vms, v.name)
	case !v.leaving:
		v.leaving = true
		v.cancel()
	}
}

// replace ends a VM's process; another one takes its place once it is gone.
func (f *fleet) replace(v *vm) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.vms[v.name] == v {
		f.dismiss(v)
	}
}

func (f *fleet) start(v *vm) {
	ctx, cancel := context.WithCancel(context.Background())
	v.cancel = cancel
	path, args := f.d.opt.Command(Child{Name: v.name, Config: f.d.opt.Config, Key: f.d.keyPath, RunDir: v.dir})
	spec := supervise.Spec{
		Path: path, Args: args,
		Prepare: func() error { return prepare(v.dir) },
		Line:    func(line string) { f.heard(v, line) },
		Changed: func(c supervise.Change) { f.changed(v, c) },
	}
	f.all.Go(func() {
		defer cancel()
		supervise.Run(ctx, spec)
		os.RemoveAll(v.dir) // what stays harms nothing: prepare removes it
		f.mu.Lock()
		delete(f.vms, v.name)
		f.mu.Unlock()
		f.d.kick()
	})
}

// heard takes a line that a VM's process wrote. Its events come this way, too: what a process said last counts most.
func (f *fleet) heard(v *vm, line string) {
	e, text := vmsock.ParseLine(line)
	if e != nil {
		e.VM = v.name
		f.d.keep(*e)
	}
	f.d.opt.Log("vm " + v.name + ": " + text)
}

// prepare makes a VM's directory, without the sockets of a process that is no more.
func prepare(dir string) error {
	if err := ownDir(dir); err != nil {
		return err
	}
	for _, name := range []string{vmsock.APIName, vmsock.VsockName, vmsock.ConsoleName} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// quietFrom is the pause from which on a process that ends by the same fault again and again isn't told about any more:
// it would push everything else out of the journal.
const quietFrom = 8 * time.Second

func (f *fleet) changed(v *vm, c supervise.Change) {
	_, c.Last = vmsock.ParseLine(c.Last)
	v.mu.Lock()
	v.state = c
	if !c.Running && !c.Final {
		fault := c.Reason
		if c.Last != "" {
			fault = c.Last
		}
		v.quiet = fault == v.fault && c.Again > quietFrom
		v.fault = fault
	}
	quiet := v.quiet && !c.Final
	v.mu.Unlock()
	switch {
	case quiet:
	case c.Running:
		f.d.event(api.EventProcess, v.name, fmt.Sprintf("process %d started", c.PID))
	case c.Final:
		f.d.event(api.EventProcess, v.name, "process ended, as it was told to ("+c.Reason+")")
	default:
		when := "at once"
		if c.Again > 0 {
			when = "in " + c.Again.Round(time.Second).String()
		}
		line := "process ended (" + c.Reason + "), starts again " + when
		// The log has the process' last words already, in a line of their own.
		f.d.log("VM " + v.name + ": " + line)
		if c.Last != "" {
			line += "; its last words: " + c.Last
		}
		f.d.keep(api.Event{At: time.Now(), VM: v.name, Kind: api.EventProcess, What: line})
	}
}

// list returns the VMs that are defined, by name.
func (f *fleet) list() []*vm {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []*vm
	for _, v := range f.vms {
		if !v.leaving {
			list = append(list, v)
		}
	}
	slices.SortFunc(list, func(a, b *vm) int { return strings.Compare(a.name, b.name) })
	return list
}

// find returns a VM that is defined, or nil.
func (f *fleet) find(name string) *vm {
	f.mu.Lock()
	defer f.mu.Unlock()
	if v := f.vms[name]; v != nil && !v.leaving {
		return v
	}
	return nil
}

// definition returns the VM's definition and why no process is run, if so.
func (f *fleet) definition(v *vm) (def volume.Definition, blocked string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return v.def, v.blocked
}

// close ends all processes, for good.
func (f *fleet) close() {
	f.mu.Lock()
	f.closed = true
	for _, v := range f.vms {
		f.dismiss(v)
	}
	f.mu.Unlock()
	f.all.Wait()
}

// running says whether the VM's process is there.
func (v *vm) running() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.state.Running
}

// lastFault returns why the process isn't there, or wasn't the last time.
func (v *vm) lastFault() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.fault
}
