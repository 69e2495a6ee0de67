package sim

import (
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/diskref"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/lockstep"
)

// readPatience is how long a secondary waits for the volume until it asks its
// primary.
const readPatience = 50 * time.Millisecond

// sector is what a disk block is padded to, for references know only
// whole sectors.
func (b block) sector() []byte {
	p := make([]byte, diskref.SectorSize)
	b.append(p[:0])
	return p
}

func (r request) tracked() diskref.Request {
	return diskref.Request{ID: r.id, Write: !r.read, Sector: uint64(r.key), Len: diskref.SectorSize}
}

// track begins with what a guest waits for that goes live.
func (p *process) track() {
	p.tracker.Reset()
	p.keeper.Reset()
	for _, r := range p.guest.pending {
		p.tracker.Issued(r.tracked())
	}
}

// record writes an input into the log and applies it: a read's data as a
// reference if the secondary can read the same.
func (p *process) record(e event.Entry) error {
	r, steady, ok := p.tracker.Done(e.Disk, e.ID)
	if p.w.bugs.errorUnlogged && e.Kind == event.DiskDone && e.Status != 0 {
		told := e
		told.Status = 0
		if !r.Write {
			told.Data = block{}.encode()
		}
		return p.live.InputAs(told, e)
	}
	if e.Kind != event.DiskDone || !ok || r.Write || e.Status != 0 {
		return p.live.Input(e)
	}
	bugs := &p.w.bugs
	if !steady && !bugs.refRaced || p.gate.Mode() != lockstep.Acked && !bugs.refUngated || !p.keeper.Room(r.Len) {
		p.w.count.DataReads++
		return p.live.Input(e)
	}
	p.w.count.RefReads++
	data := decodeBlock(e.Data).sector()
	ref := diskref.Ref{ID: e.ID, Sector: r.Sector, Len: r.Len, Sum: diskref.SumOf(data)}
	err := p.live.InputAs(event.Entry{Kind: event.DiskRef, ID: e.ID, Data: ref.Encode()}, e)
	p.keeper.Keep(p.live.Log.LSN(), e.Disk, e.ID, data)
	return err
}

// follow makes the process's guest a replica of a log that begins at its state.
func (p *process) follow() {
	base := p.guest.base()
	p.replica = &lockstep.Secondary[effect]{Machine: p.guest, Log: lockstep.NewReplayer(base)}
	p.replica.Log.Resolve = p.resolve
	p.load.busy = 0
	p.holder, p.other, p.scan = diskref.Holder{}, false, event.NewDecoder(base)
}

// prefetch looks for references in a batch of the log, and reads them.
func (p *process) prefetch(lsn uint64, batch []byte) {
	for len(batch) > 0 {
		e, n, err := p.scan.Next(batch)
		if err == nil && e.Kind == event.DiskRef {
			var r diskref.Ref
			if r, err = diskref.Decode(e.Disk, e.ID, e.Data); err == nil {
				err = p.holder.Add(lsn, r)
			}
		}
		if err != nil {
			p.w.fail("%v: %v", p, err)
			return
		}
		lsn += uint64(n)
		batch = batch[n:]
	}
	p.fetch()
}

func (p *process) fetch() {
	replica := p.replica
	for _, r := range p.holder.Start() {
		over := false
		once := func(do func()) { // for the replica that it was begun for
			if !over && p.replica == replica && !p.sealed {
				do()
				p.fetch()
				p.acknowledge()
				p.execute()
			}
			over = true
		}
		p.w.volume.read(p, int(r.Sector), func(x block, err error) {
			once(func() {
				if err != nil {
					p.ask(r)
				} else if !p.holder.Read(r, x.sector()) {
					p.otherBytes(r)
					p.ask(r)
				}
			})
		})
		p.w.after(readPatience, func() { p.do(func() { once(func() { p.ask(r) }) }) })
	}
}

// otherBytes: the volume's block isn't what the primary has read. Only a primary
// that has left this copy behind may have changed it.
func (p *process) otherBytes(r diskref.Ref) {
	p.other = true
	if o := p.w.hosts[1-p.host]; o != nil && o.live != nil && o.streaming && o.seed == p.seed && o.mode == pair.GateAcked {
		p.w.fail("%v reads block %d, which isn't what its primary read: a write has left that it can't know of", p, r.Sector)
	}
}

// ask has the primary send what a read has read.
func (p *process) ask(r diskref.Ref) {
	p.holder.Failed(r)
	p.w.count.AskedReads++
	if p.stream == nil {
		return
	}
	seed := p.seed
	p.stream.send(p.host, func(to *process) { to.wanted(seed, r) })
}

// wanted is a secondary's question.
func (p *process) wanted(seed pair.Seed, r diskref.Ref) {
	if p.live == nil || !p.streaming || seed != p.seed {
		return
	}
	data, ok := p.keeper.Data(r.Disk, r.ID)
	if !ok {
		p.w.fail("%v is asked for what request %d has read, and has forgotten it", p, r.ID)
		return
	}
	p.stream.send(p.host, func(to *process) { to.given(seed, r, data) })
}

// given is its answer.
func (p *process) given(seed pair.Seed, r diskref.Ref, data []byte) {
	if p.replica == nil || p.seed != seed || p.sealed {
		return
	}
	if err := p.holder.Given(r.Disk, r.ID, data); err != nil {
		p.w.fail("%v: %v", p, err)
		return
	}
	p.fetch()
	p.acknowledge()
	p.execute()
}

// resolve makes a completion of a reference.
func (p *process) resolve(e event.Entry) (event.Entry, bool) {
	data, ok := p.holder.Take()
	if !ok {
		return event.Entry{}, false
	}
	return event.Entry{Pos: e.Pos, Kind: event.DiskDone, Disk: e.Disk, ID: e.ID, Data: data[:blockSize]}, true
}

// held is how far the replica can execute by itself.
func (p *process) held() uint64 {
	received := p.replica.Log.Received()
	if p.w.bugs.ackUnheld {
		return received
	}
	return p.holder.Frontier(received)
}
