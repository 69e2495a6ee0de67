package vmproc

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/api/console"
	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/iscsi"
	"github.com/duet-ft/duet/hvd/tap"
	"github.com/duet-ft/duet/hvd/virtio/blk"
	"github.com/duet-ft/duet/hvd/virtio/vsock/mux"
	"github.com/duet-ft/duet/hvd/vm"
)

const (
	// bridge is the host's bridge on the management network.
	bridge = "br0"
	// retryDisk is when a request that the volume couldn't serve is tried again:
	// a guest's disk stalls rather than fails.
	retryDisk = 200 * time.Millisecond
)

// rim is where a guest's effects go and its inputs come from. It does nothing
// before start: a secondary has none.
type rim struct {
	p      *Process
	g      *guest
	engine *vm.Engine
	disks  sync.WaitGroup
	under  atomic.Int64                      // disk requests under way
	after  atomic.Pointer[func(event.Entry)] // takes packets instead of the engine once the VM has left

	console *console.Server

	mu  sync.Mutex
	tap *tap.Tap
	mux *mux.Server

	live                               atomic.Bool
	reads, writes, framesIn, framesOut atomic.Uint64
}

func newRim(p *Process, g *guest) *rim {
	r := &rim{p: p, g: g}
	r.console = console.New(uint64(time.Now().UnixNano()), func(ctx context.Context, b []byte) (int, uint64, error) {
		return r.engine.Type(ctx, b)
	})
	return r
}

// start lets effects out.
func (r *rim) start() { r.live.Store(true) }

// Effect carries out an effect; vm.Rim.
func (r *rim) Effect(x board.Effect) {
	if !r.live.Load() {
		return
	}
	switch x.Kind {
	case board.DiskRequest:
		r.disks.Add(1)
		r.under.Add(1)
		go r.disk(x)
	case board.Frame:
		r.send(x.Data)
	case board.Vsock:
		if m := r.server(); m != nil {
			m.FromGuest(x.Data)
		}
	case board.Console:
		r.console.Output(x.Data)
	}
}

func (r *rim) server() *mux.Server {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mux
}

// idle says that no disk request is under way; the completion of each has been
// handed in.
func (r *rim) idle() bool { return r.under.Load() == 0 }

// send puts a frame on the network.
func (r *rim) send(frame []byte) {
	r.mu.Lock()
	t := r.tap
	r.mu.Unlock()
	if t != nil {
		r.framesOut.Add(1)
		r.p.complain(t.Write(frame))
	}
}

// disk serves one request. Only a request that can never succeed ends in an
// error for the guest; while the volume is away it waits, and a copy that was
// fenced leaves it to the protocol to say what becomes of it.
func (r *rim) disk(x board.Effect) {
	defer r.disks.Done()
	defer r.under.Add(-1) // behind the completion
	done := event.Entry{Kind: event.DiskDone, Disk: x.Disk, ID: x.Request.ID}
	for said := false; ; said = true {
		data, err := r.transfer(x)
		if err == nil {
			if said {
				r.p.note("")
			}
			done.Data = data
			break
		}
		if r.g.ctx.Err() != nil {
			return
		}
		if errors.Is(err, iscsi.ErrRange) {
			done.Status = blk.StatusIOError
			break
		}
		if !said {
			r.p.note(fmt.Sprintf("disk %d: a %v at sector %d waits: %v", x.Disk, x.Request.Op, x.Request.Sector, err))
		}
		if errors.Is(err, iscsi.ErrFenced) || errors.Is(err, iscsi.ErrReservationConflict) {
			r.p.post(pair.Faulted{Fault: pair.Refused})
		}
		select {
		case <-r.g.ctx.Done():
			return
		case <-time.After(retryDisk):
		}
	}
	r.engine.Input(done)
}

func (r *rim) transfer(x board.Effect) ([]byte, error) {
	d := r.p.disks[x.Disk]
	switch x.Request.Op {
	case blk.OpRead:
		r.reads.Add(1)
		data := make([]byte, x.Request.Len)
		return data, d.Read(r.g.ctx, x.Request.Sector, data)
	case blk.OpWrite:
		r.writes.Add(1)
		return nil, d.Write(r.g.ctx, x.Request.Sector, x.Request.Data)
	case blk.OpFlush:
		return nil, d.Sync(r.g.ctx)
	}
	return nil, fmt.Errorf("%w: unknown operation %v", iscsi.ErrRange, x.Request.Op)
}

// openNetwork connects a guest that goes live to the host's bridge and opens
// its vsock and its console. Without a network it runs all the same; the line says so.
func (p *Process) openNetwork(g *guest) {
	p.endTrail(nil) // it is the same device
	t, err := tap.Open(fmt.Sprintf("duet%d", p.def.Slot), bridge)
	if err != nil {
		p.note("the VM has no network: " + err.Error())
	} else {
		go g.rim.receive(t)
	}
	m, err := mux.Listen(filepath.Join(p.opt.RunDir, "vsock.sock"), uint64(p.def.CID), func(pkt []byte) {
		g.engine.Vsock(g.ctx, append([]byte(nil), pkt...))
	})
	if err != nil {
		p.note("the VM has no vsock: " + err.Error())
	}
	if err := g.rim.console.Listen(filepath.Join(p.opt.RunDir, "console.sock")); err != nil {
		p.note("nobody can type at the VM's console: " + err.Error())
	}
	g.rim.mu.Lock()
	g.rim.tap, g.rim.mux = t, m
	g.rim.mu.Unlock()
}

func (r *rim) receive(t *tap.Tap) {
	buf := make([]byte, tap.MaxFrame)
	for {
		n, err := t.Read(buf)
		if err != nil {
			return
		}
		in := event.Entry{Kind: event.Frame, Data: append([]byte(nil), buf[:n]...)}
		if after := r.after.Load(); after != nil {
			(*after)(in)
			continue
		}
		r.framesIn.Add(1)
		r.engine.Input(in)
	}
}

// close takes everything down; the guest's context has ended.
func (r *rim) close() {
	r.live.Store(false)
	r.mu.Lock()
	t, m := r.tap, r.mux
	r.tap, r.mux = nil, nil
	r.mu.Unlock()
	if t != nil {
		t.Close()
	}
	if m != nil {
		m.Close()
	}
	r.console.Close()
	r.disks.Wait()
}

var _ vm.Rim = (*rim)(nil)
