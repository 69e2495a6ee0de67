package vm

import (
	"sync"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/diskref"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/virtio/blk"
)

// reads is a live machine's account of what its guest reads from its disks.
type reads struct {
	tracker diskref.Tracker // the loop's

	mu     sync.Mutex
	keeper diskref.Keeper
}

// issued notes what the guest asks its disks for.
func (r *reads) issued(x board.Effect) {
	if op := x.Request.Op; x.Kind == board.DiskRequest && (op == blk.OpRead || op == blk.OpWrite) {
		r.tracker.Issued(diskref.Request{
			Disk: x.Disk, ID: x.Request.ID, Write: op == blk.OpWrite, Sector: x.Request.Sector, Len: x.Request.Len,
		})
	}
}

// inFlight begins with what the guest waits for where it starts to run here.
func (r *reads) inFlight(pending []board.Effect) {
	r.tracker.Reset()
	for _, x := range pending {
		r.issued(x)
	}
}

// restart forgets what an earlier log stood for.
func (r *reads) restart() {
	r.mu.Lock()
	r.keeper.Reset()
	r.mu.Unlock()
}

// acked forgets what the secondary holds.
func (r *reads) acked(lsn uint64) {
	r.mu.Lock()
	r.keeper.Acked(lsn)
	r.mu.Unlock()
}

// logInput writes an input into the log and applies it. A read's data goes
// into the log only if the secondary can't read it by itself: see hvd/diskref for
// when it can. A recording has no disk to read from.
func (e *Engine) logInput(in event.Entry, read diskref.Request, steady bool) error {
	r := &e.reads
	n := len(in.Data)
	refer := e.cfg.SharedDisks && steady && in.Status == blk.StatusOK && n == read.Len && n >= diskref.MinLen && n <= diskref.MaxLen &&
		(e.tape == nil || !e.tape.live) && e.gateMode() == lockstep.Acked
	if refer {
		r.mu.Lock()
		refer = r.keeper.Room(n)
		r.mu.Unlock()
	}
	logged, before := in, e.primary.Log.LSN()
	if refer {
		ref := diskref.Ref{Disk: in.Disk, ID: in.ID, Sector: read.Sector, Len: n, Sum: diskref.SumOf(in.Data)}
		logged = event.Entry{Kind: event.DiskRef, Disk: in.Disk, ID: in.ID, Data: ref.Encode()}
	}
	err := e.primary.InputAs(logged, in)
	lsn := e.primary.Log.LSN()
	if refer {
		r.mu.Lock()
		r.keeper.Keep(lsn, in.Disk, in.ID, in.Data)
		r.mu.Unlock()
		e.Stats.ReadRefs.Add(1)
		e.Stats.RefLogBytes.Add(lsn - before)
	}
	if in.Kind == event.DiskDone && !read.Write && read.Len > 0 {
		e.Stats.Reads.Add(1)
		e.Stats.ReadLogBytes.Add(lsn - before)
	}
	return err
}

// completed notes a completion that the guest is told of; steady says that it is
// a read which the secondary may be able to repeat.
func (r *reads) completed(in event.Entry) (read diskref.Request, steady bool) {
	if in.Kind == event.DiskDone {
		read, steady, _ = r.tracker.Done(in.Disk, in.ID)
	}
	return read, steady
}

func (e *Engine) gateMode() lockstep.GateMode {
	e.gateMu.Lock()
	defer e.gateMu.Unlock()
	return e.gate.Mode()
}

// Referred is what a reference of this primary's log stands for, as long as its
// secondary hasn't acknowledged it. The caller mustn't change it. Any goroutine
// may call it.
func (e *Engine) Referred(disk int, id uint64) ([]byte, bool) {
	e.reads.mu.Lock()
	defer e.reads.mu.Unlock()
	return e.reads.keeper.Data(disk, id)
}
