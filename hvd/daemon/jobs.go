package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/daemon/define"
	"github.com/duet-ft/duet/hvd/iscsi"
	"github.com/duet-ft/duet/hvd/nexus"
	"github.com/duet-ft/duet/hvd/volume"
)

// What a job does. Zeroing is begun by the daemon itself and gives way to anything that a person asks for.
const (
	zeroing   = "zeroing"
	growing   = "growing"
	importing = "importing"
	exporting = "exporting"
	copying   = "copying"
	changing  = "changing" // metadata only
)

// job is what this host does to a stopped VM's disks, while it holds the VM. A VM has one at a time.
type job struct {
	what   string
	disk   string // empty: not one disk's
	cancel context.CancelFunc
	done   chan struct{}
	err    error // once done
	at, of atomic.Int64
}

// progress notes how far the job is.
func (j *job) progress(done, total int64) {
	j.at.Store(done)
	j.of.Store(total)
}

func (j *job) percent() float64 {
	return 100 * float64(j.at.Load()) / float64(max(1, j.of.Load()))
}

// describe says what a job does, for a line.
func (j *job) describe() string {
	if j.disk == "" {
		return "its disks are being changed by this host"
	}
	return fmt.Sprintf("%s disk %s (%.0f %%)", j.what, j.disk, j.percent())
}

// jobs are those of all VMs.
type jobs struct {
	mu     sync.Mutex
	all    map[string]*job  // by the VM's name
	failed map[string]error // why a disk's last job failed, by "VM disk"
	wg     sync.WaitGroup
	closed bool

	// How long holds of other keepers have been what they are; refresh's.
	seen map[string]heldSince
}

// heldSince is a block that a keeper holds, and since when it hasn't changed.
type heldSince struct {
	block pair.Block
	since time.Time
}

func newJobs() *jobs {
	return &jobs{all: map[string]*job{}, failed: map[string]error{}, seen: map[string]heldSince{}}
}

// of returns a VM's job, or nil.
func (s *jobs) of(vm string) *job {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[vm]
}

// enter makes j the VM's job. Zeroing is ended first, if something else is to be done; another job is an error.
func (s *jobs) enter(vm string, j *job) error {
	for {
		s.mu.Lock()
		old := s.all[vm]
		switch {
		case s.closed:
			s.mu.Unlock()
			return api.Errorf(http.StatusServiceUnavailable, "this host is ending")
		case old == nil:
			s.all[vm] = j
			delete(s.failed, vm+" "+j.disk)
			s.wg.Add(1)
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		if old.what != zeroing || j.what == zeroing {
			return api.Errorf(http.StatusConflict, "VM %s: %s; wait for its end", vm, old.describe())
		}
		old.cancel()
		<-old.done
	}
}

// maxFailed is how many failures are remembered.
const maxFailed = 1024

// leave ends a job.
func (s *jobs) leave(vm string, j *job, err error) {
	s.mu.Lock()
	if err != nil && j.what != changing && len(s.failed) < maxFailed && !errors.Is(err, context.Canceled) {
		s.failed[vm+" "+j.disk] = err
	}
	delete(s.all, vm)
	s.mu.Unlock()
	j.err = err
	j.cancel()
	close(j.done)
	s.wg.Done()
}

// cancelAll ends all jobs and waits for them; with final, there are no more.
func (s *jobs) cancelAll(final bool) {
	s.mu.Lock()
	s.closed = s.closed || final
	var list []*job
	for _, j := range s.all {
		if j.what == changing && !final { // short, and perhaps the one that asks
			continue
		}
		j.cancel()
		list = append(list, j)
	}
	s.mu.Unlock()
	for _, j := range list {
		<-j.done
	}
	if final {
		s.wg.Wait()
	}
}

// keeper is this host's name where it holds VMs.
func (d *instance) keeper() define.Keeper { return define.Keeper(nexus.Initiator(d.name)) }

// held is what a job works with: the VM that it holds, and the volume, on which it writes only while it does.
type held struct {
	def  volume.Definition
	vol  *volume.Volume
	hold *define.Hold
	job  *job
}

// begin starts a job: it holds the VM, runs do, and lets go of the VM. What is wrong before do runs is an error at once.
func (d *instance) begin(ctx context.Context, v *volume.Volume, vm, disk, what string, do func(ctx context.Context, h held) error) (*job, error) {
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	j := &job{what: what, disk: disk, cancel: cancel, done: make(chan struct{})}
	if err := d.jobs.enter(vm, j); err != nil {
		cancel()
		return nil, err
	}
	h := held{job: j}
	err := func() (err error) {
		if h.def, err = v.Definition(ctx, vm); err != nil {
			return err
		}
		if what != changing && what != copying { // those may make it
			if _, err = v.Disk(ctx, vm, disk); err != nil {
				return err
			}
		}
		if h.hold, err = define.Take(ctx, v, d.keeper(), h.def); err != nil {
			return err
		}
		// What it was before nobody else could change it doesn't count.
		if h.def, err = v.Definition(ctx, vm); err == nil {
			h.vol, err = h.hold.Guard(ctx, v)
		}
		return err
	}()
	if err != nil {
		if h.hold != nil {
			err = errors.Join(err, h.hold.Release(life))
		}
		d.jobs.leave(vm, j, err)
		return nil, err
	}
	go func() {
		err := h.hold.Keep(life, func(ctx context.Context) error { return do(ctx, h) })
		release, stop := context.WithTimeout(context.WithoutCancel(life), readLimit)
		if e := h.hold.Release(release); e != nil && err == nil && !errors.Is(e, define.ErrLost) {
			d.log(fmt.Sprintf("VM %s: its hold couldn't be given back: %v", vm, e))
		}
		stop()
		d.jobs.leave(vm, j, err)
		d.kick()
	}()
	return j, nil
}

// promptly is how long a request waits for its job's end before it says that it is under way.
const promptly = 3 * time.Second

// await waits for a job, or until it has run for so long that it is told to be under way.
func (j *job) await(ctx context.Context, limit time.Duration) error {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-j.done:
		return j.err
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// tendDisks zeroes new disks, and frees VMs that a dead keeper left held. list is what was just read.
func (d *instance) tendDisks(ctx context.Context, v *volume.Volume, list []volume.Definition) {
	for name := range d.jobs.seen {
		if !slices.ContainsFunc(list, func(def volume.Definition) bool { return def.Name == name }) {
			delete(d.jobs.seen, name)
		}
	}
	for _, def := range list {
		if d.jobs.of(def.Name) != nil {
			continue
		}
		if err := d.freeHeld(ctx, v, def); err != nil {
			d.say("hold "+def.Name, api.OneLine(err.Error()))
		}
		for _, k := range def.Disks {
			if k.State != volume.DiskNew {
				continue
			}
			_, err := d.begin(ctx, v, def.Name, k.Name, zeroing, d.zeroNew(k.Name))
			if errors.Is(err, iscsi.ErrReservationConflict) {
				err = d.rejoin(ctx) // and try again at the next look
			}
			if err != nil && !errors.Is(err, define.ErrHeld) {
				d.say("zeroing "+def.Name, fmt.Sprintf("disk %s of VM %s can't be zeroed: %s", k.Name, def.Name, api.OneLine(err.Error())))
			}
			break // the next one follows
		}
	}
}

// zeroNew is the job that makes a new disk ready.
func (d *instance) zeroNew(disk string) func(context.Context, held) error {
	return func(ctx context.Context, h held) error {
		for _, k := range h.def.Disks {
			if k.Name == disk && k.State != volume.DiskNew {
				return nil // somebody was faster
			}
		}
		err := h.vol.Fill(ctx, h.def, disk, volume.DiskNew, func(ctx context.Context, io *volume.DiskIO) error {
			if err := volume.Zero(ctx, io, h.job.progress); err != nil {
				return err
			}
			return h.hold.Renew(ctx) // nobody else had the VM meanwhile
		})
		switch {
		case err == nil:
			d.event(api.EventDisk, h.def.Name, fmt.Sprintf("disk %s is filled with zeros", disk))
		case !errors.Is(err, context.Canceled):
			d.say("zeroing "+h.def.Name, fmt.Sprintf("disk %s of VM %s can't be zeroed: %s", disk, h.def.Name, api.OneLine(err.Error())))
		}
		return err
	}
}

// freeHeld releases a hold that its keeper left behind: one of this host's, since it has no job, or another's that hasn't
// changed for so long that its keeper must be dead. That one is shut out of the volume first.
func (d *instance) freeHeld(ctx context.Context, v *volume.Volume, def volume.Definition) error {
	b, err := define.Block(ctx, v, def)
	if err != nil || !define.Held(b) {
		delete(d.jobs.seen, def.Name)
		return err
	}
	if b.Owner != d.keeper().ID() {
		if s, ok := d.jobs.seen[def.Name]; !ok || s.block != b {
			d.jobs.seen[def.Name] = heldSince{b, time.Now()}
			return nil
		} else if time.Since(s.since) < d.opt.StaleAfter {
			return nil
		}
		d.mu.Lock()
		shutOut := d.shutOut
		d.mu.Unlock()
		if shutOut != nil {
			if err := shutOut(ctx, b.Owner); err != nil {
				return err
			}
		}
	}
	h, err := define.TakeOver(ctx, v, d.keeper(), def, b)
	if err == nil {
		err = h.Release(ctx)
	}
	if err == nil {
		delete(d.jobs.seen, def.Name)
		d.event(api.EventDisk, def.Name, "its disks were being changed when the host that did so died; they aren't any more")
	}
	return err
}

// rejoin lets this host write again that another one has taken for dead, once nothing is under way that began before.
func (d *instance) rejoin(ctx context.Context) error {
	d.jobs.cancelAll(false)
	d.mu.Lock()
	join := d.join
	d.mu.Unlock()
	if join == nil {
		return nil
	}
	_, err := join(ctx)
	return err
}

// start is begin, once more if this host was shut out of the volume meanwhile.
func (d *instance) start(ctx context.Context, vm, disk, what string, do func(ctx context.Context, h held) error) (*job, error) {
	var j *job
	err := d.change(ctx, func(v *volume.Volume) (err error) {
		j, err = d.begin(ctx, v, vm, disk, what, do)
		return err
	})
	return j, err
}

// change makes a change of the volume, once more if this host was shut out of it meanwhile.
func (d *instance) change(ctx context.Context, do func(v *volume.Volume) error) error {
	v, err := d.opened()
	if err != nil {
		return err
	}
	if err = do(v); errors.Is(err, iscsi.ErrReservationConflict) {
		if err = d.rejoin(ctx); err == nil {
			err = do(v)
		}
	}
	if err != nil {
		return volumeError(err)
	}
	return nil
}

// changed has the VMs follow what this host has just changed.
func (d *instance) changed(ctx context.Context) error {
	v, err := d.opened()
	if err != nil {
		return err
	}
	if err := d.refresh(ctx, v); err != nil {
		return volumeError(err)
	}
	return nil
}
