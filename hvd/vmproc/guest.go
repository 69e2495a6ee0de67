package vmproc

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/ftlink/session"
	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/boot"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/trapset"
	"github.com/duet-ft/duet/hvd/vcpu"
	"github.com/duet-ft/duet/hvd/vm"
	"github.com/duet-ft/duet/hvd/volume"
)

// guest is this host's execution of the VM: the machine, its engine and its
// rim. It replays first or not at all, then is live or not at all.
type guest struct {
	m      *machine.Machine
	made   machine.Config
	engine *vm.Engine
	rim    *rim
	// accessed is what was done about accessed bits when the guest booted, here
	// or on the host that it came from.
	accessed boot.Accessed
	ctx      context.Context
	cancel   context.CancelFunc
	ended    chan struct{} // the engine's present loop has returned
	looping  bool          // a loop was started
	running  bool          // that loop is Live
	wasLive  bool
	sealed   atomic.Bool
	carrier  *session.Conn      // of the present seeding's log
	replayed error              // why Replay ended; once ended is closed
	seeding  context.CancelFunc // stops the transfer under way, or nil
}

// newGuest makes a machine with that memory, or with empty memory for nil.
func (p *Process) newGuest(ctx context.Context, memory *mem.Memory) (*guest, error) {
	mac, err := net.ParseMAC(p.def.MAC)
	if err != nil {
		return nil, err
	}
	cfg := board.Config{CID: uint64(p.def.CID), Wall: time.Now()}
	copy(cfg.MAC[:], mac)
	for i, d := range p.disks {
		cfg.Disks = append(cfg.Disks, board.Disk{Sectors: d.Sectors(), Serial: p.def.Disks[i].Name[:min(20, len(p.def.Disks[i].Name))]})
	}
	made := machine.Config{
		MemoryBytes: uint64(p.def.MemoryMiB) << 20, Memory: memory, Board: cfg, Traps: trapset.Initial,
	}
	m, err := machine.New(p.sys, made)
	if err != nil {
		return nil, err
	}
	g := &guest{m: m, made: made, ended: make(chan struct{})}
	g.ctx, g.cancel = context.WithCancel(context.WithoutCancel(ctx))
	g.rim = newRim(p, g)
	return g, nil
}

// engineConfig slows the clockwork down where the host itself is emulated:
// every exit costs some twenty times more there.
func (p *Process) engineConfig() vm.Config {
	c := vm.Config{Level: p.level(), SharedDisks: true, Locator: p.by}
	if vcpu.UnderTCG() {
		c.Window, c.StopAfter, c.KickAfter = 2*time.Millisecond, 4*time.Millisecond, 50*time.Millisecond
		c.MaxLag, c.ReadPatience = time.Second, 2*time.Second
		c.Costs = trapset.Costs{Trap: 20 * time.Microsecond, Resync: 5 * time.Millisecond, KB: 50 * time.Microsecond}
	}
	return c
}

// level is what the VM's effects wait for.
func (p *Process) level() lockstep.Level {
	if p.def.Output == volume.OutputReceived {
		return lockstep.Received
	}
	return lockstep.Verified
}

// inside runs f where the engine's loop stands still, or has ended.
func (g *guest) inside(ctx context.Context, f func() error) error {
	if !g.running {
		return f()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // a loop that has ended answers nobody
		select {
		case <-g.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	done := false
	err := g.engine.Do(ctx, func(*machine.Machine) error {
		done = true
		return f()
	})
	select {
	case <-g.ended:
		g.running = false
		if !done {
			return f()
		}
	default:
	}
	return err
}

// seal takes no more log; nothing is acknowledged from here on.
func (g *guest) seal() {
	g.sealed.Store(true)
	g.engine.Consume()
}

func (g *guest) stopSeed() {
	if g.seeding != nil {
		g.seeding()
		g.seeding = nil
	}
}

// destroy frees everything. Disk requests under way are given up.
func (g *guest) destroy() {
	g.stop()
	g.m.Close()
}

// destroyButMemory frees everything else.
func (g *guest) destroyButMemory() (*mem.Memory, error) {
	g.stop()
	return g.m.CloseButMemory()
}

func (g *guest) stop() {
	g.stopSeed()
	g.cancel()
	if g.looping {
		<-g.ended
	}
	g.rim.close()
}

// faultOf maps why an engine ended.
func (g *guest) faultOf(err error) pair.Fault {
	switch {
	case errors.Is(err, vm.ErrPowerOff), errors.Is(err, vm.ErrReset), errors.Is(err, machine.ErrStopped):
		return pair.Shutdown
	case errors.Is(err, lockstep.ErrDiverged):
		return pair.Diverge
	}
	return pair.Crashed
}

// live starts the engine's live loop.
func (p *Process) live(ctx context.Context, g *guest) {
	g.ended = make(chan struct{})
	g.looping, g.running, g.wasLive = true, true, true
	ended := g.ended
	go func() {
		err := g.engine.Live(g.ctx)
		close(ended)
		if g.ctx.Err() != nil || ctx.Err() != nil {
			return
		}
		if errors.Is(err, vm.ErrReset) {
			p.complain(os.WriteFile(filepath.Join(p.opt.RunDir, restartMarker), nil, 0o600))
		}
		p.fault(g, err)
	}()
}

// follow starts replaying a log. ack is told how far the copy is.
func (p *Process) follow(g *guest, base event.Base, ack func(received, verified uint64)) {
	ended := g.ended
	g.looping = true
	go func() {
		err := g.engine.Replay(g.ctx, base, func(received, verified uint64) {
			if !g.sealed.Load() {
				ack(received, verified)
			}
		})
		g.replayed = err
		close(ended)
		if err != nil && g.ctx.Err() == nil {
			p.tellDiverged(g, err)
			p.fault(g, err)
		}
	}()
}

// boot starts the guest anew from its disk. Reading the disk takes seconds, so
// it is done aside, and heartbeats go on.
func (p *Process) boot(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	p.booting = cancel
	go func() {
		g, err := p.load(ctx)
		p.later <- func(outer context.Context) {
			halted := ctx.Err() != nil
			cancel()
			p.booting = nil
			switch {
			case halted: // meanwhile
				if g != nil {
					g.destroy()
				}
			case err != nil:
				p.note("the VM can't start: " + err.Error())
				p.step(outer, pair.Faulted{Fault: bootFault(err)})
			default:
				p.mu.Lock()
				p.guest, p.trouble = g, ""
				p.mu.Unlock()
				g.rim.start()
				p.openNetwork(g)
				p.live(outer, g)
				go p.announce(outer)
				if seed := p.toSeed; seed != nil {
					p.startSeed(outer, *seed)
				}
			}
		}
	}()
}

// load makes a machine that stands at its kernel's first instruction.
func (p *Process) load(ctx context.Context) (*guest, error) {
	if err := p.sameDisks(ctx); err != nil {
		return nil, err
	}
	image, err := p.findKernel(ctx)
	if err != nil {
		return nil, err
	}
	p.takeKept(0) // no state transfer will come to what boots
	g, err := p.newGuest(ctx, nil)
	if err != nil {
		return nil, err
	}
	var seed [32]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return nil, err
	}
	entry, err := boot.Load(g.m.Memory, image, boot.Options{
		Cmdline: p.def.Cmdline, Seed: seed, Quiet: true, Untouched: p.def.Kernel == volume.KernelUntouched,
	})
	if err != nil {
		err = unbootableError{err}
	} else {
		err = g.m.Boot(entry)
	}
	if err != nil {
		g.cancel()
		g.m.Close()
		return nil, err
	}
	g.engine = vm.New(g.m, g.rim, p.engineConfig())
	g.rim.engine = g.engine
	g.accessed = entry.Accessed
	p.say(fmt.Sprintf("boots %s; accessed bits: %s", image.Path, g.accessed))
	return g, nil
}

// unbootableError says that another try would fail the same way.
type unbootableError struct{ error }

func (e unbootableError) Unwrap() error { return e.error }

// bootFault maps why a guest didn't boot. A volume that can't be read, or a host
// that is out of something, may do better in a moment; a disk without a kernel
// won't, and then the VM is off until a user starts it again.
func bootFault(err error) pair.Fault {
	if errors.As(err, &unbootableError{}) {
		return pair.Unbootable
	}
	return pair.Crashed
}

// findKernel finds what to boot on the guest's first disk.
func (p *Process) findKernel(ctx context.Context) (*boot.Image, error) {
	if len(p.disks) == 0 {
		return nil, unbootableError{errors.New("it has no disk to boot from")}
	}
	disk := &diskReader{ctx: ctx, disk: p.disks[0]}
	image, err := boot.Find(disk, int64(p.disks[0].Sectors())*volume.SectorSize)
	if err != nil && disk.failed == nil {
		return nil, unbootableError{fmt.Errorf("disk %s: %w", p.def.Disks[0].Name, err)}
	}
	return image, err
}

// diskReader reads a virtual disk as a file.
type diskReader struct {
	ctx    context.Context
	disk   *volume.DiskIO
	failed error // why the volume couldn't be read
}

func (r *diskReader) ReadAt(b []byte, off int64) (int, error) {
	const sector = volume.SectorSize
	first := off / sector
	last := (off + int64(len(b)) + sector - 1) / sector
	buf := make([]byte, (last-first)*sector)
	if err := r.disk.Read(r.ctx, uint64(first), buf); err != nil {
		if !errors.Is(err, volume.ErrBounds) { // else the file system is damaged
			r.failed = err
		}
		return 0, err
	}
	return copy(b, buf[off-first*sector:]), nil
}
