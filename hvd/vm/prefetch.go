package vm

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/duet-ft/duet/hvd/diskref"
	"github.com/duet-ft/duet/hvd/event"
)

// Source gives a secondary what its log only refers to. Its methods may be called
// by several goroutines.
type Source interface {
	// ReadDisk fills p, whole sectors, from a sector of a disk on.
	ReadDisk(ctx context.Context, disk int, sector uint64, p []byte) error
	// Ask asks the primary for what a request has read, because of an error:
	// ErrOtherBytes, or ReadDisk's. Engine.Give takes the answer.
	Ask(disk int, id uint64, why error)
	// Holds says that the log can be executed up to lsn now, whatever becomes of
	// the primary. It grows.
	Holds(lsn uint64)
}

// ErrOtherBytes says that the volume has other bytes than the primary read from it.
var ErrOtherBytes = errors.New("the volume has other bytes here than for the primary")

var errRests = errors.New("the volume didn't answer a moment ago")

// prefetch reads the blocks that a log refers to while the log arrives.
type prefetch struct {
	src      Source
	patience time.Duration
	bell     *doorbell
	ctx      context.Context // ends with the replay
	cancel   context.CancelFunc
	fetching sync.WaitGroup

	mu     sync.Mutex
	holder diskref.Holder
	dec    *event.Decoder
	tail   []byte // of the log, an entry that isn't whole
	at     uint64 // LSN behind the last entry that was looked at
	lost   bool   // the log can't be read; the replay says why
	ended  bool
	retry  time.Time // when the volume is tried again
}

// volumeRest is for how long a volume that failed to answer is left alone: the
// primary gives the data meanwhile.
const volumeRest = time.Second

// Follow says where the log starts that Feed brings, and where what it refers to
// comes from. It comes before the first Feed. Without it, a log
// with references is an error. Reading ends with ctx or Replay.
func (e *Engine) Follow(ctx context.Context, base event.Base, src Source) {
	e.prefetch = newPrefetch(ctx, base, src, e.cfg.ReadPatience, &e.bell)
}

func newPrefetch(ctx context.Context, base event.Base, src Source, patience time.Duration, bell *doorbell) *prefetch {
	p := &prefetch{src: src, patience: patience, bell: bell, dec: event.NewDecoder(base)}
	p.ctx, p.cancel = context.WithCancel(ctx)
	return p
}

// Give takes what Source.Ask asked for.
func (e *Engine) Give(disk int, id uint64, data []byte) error {
	if e.prefetch == nil {
		return diskref.ErrUnasked
	}
	return e.prefetch.give(disk, id, data)
}

func (p *prefetch) give(disk int, id uint64, data []byte) error {
	p.mu.Lock()
	err := p.holder.Given(disk, id, data)
	p.mu.Unlock()
	if err == nil {
		p.progress()
	}
	return err
}

// Held is the LSN up to which the log can be executed, whatever becomes of the
// primary; received is how far it is here.
func (e *Engine) Held(received uint64) uint64 {
	p := e.prefetch
	if p == nil {
		return received
	}
	return p.held()
}

func (p *prefetch) held() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.holder.Frontier(p.at)
}

// progress tells that something has come.
func (p *prefetch) progress() {
	p.begin()
	p.bell.ring()
	p.src.Holds(p.held())
}

// scan looks for references in a batch of the log.
func (p *prefetch) scan(lsn uint64, batch []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lost || lsn != p.at+uint64(len(p.tail)) {
		p.lost = true
		return nil
	}
	keep := len(p.tail) == 0 // whether what is left has to go into p.tail
	if !keep {
		p.tail = append(p.tail, batch...)
		batch = p.tail
	}
	for len(batch) > 0 {
		e, n, err := p.dec.Next(batch)
		if errors.Is(err, event.ErrPartial) {
			break
		}
		if err == nil && e.Kind == event.DiskRef {
			var r diskref.Ref
			if r, err = diskref.Decode(e.Disk, e.ID, e.Data); err == nil {
				if err := p.holder.Add(p.at, r); err != nil {
					return err
				}
			}
		}
		if err != nil {
			p.lost = true
			return nil
		}
		p.at += uint64(n)
		batch = batch[n:]
		keep = true
	}
	switch {
	case len(batch) == 0:
		p.tail = nil
	case keep: // else it is there, a part of an entry of many batches
		p.tail = append(p.tail[:0], batch...)
	}
	return nil
}

// begin reads what may be read now.
func (p *prefetch) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.ended {
		refs := p.holder.Start()
		if len(refs) == 0 {
			return
		}
		rest := time.Now().Before(p.retry)
		for _, r := range refs {
			if rest {
				p.ask(r, errRests)
				continue
			}
			p.fetching.Add(1)
			go p.fetch(r)
		}
	}
}

// ask has the primary give what a reference stands for. With the lock.
func (p *prefetch) ask(r diskref.Ref, why error) {
	p.holder.Failed(r)
	go p.src.Ask(r.Disk, r.ID, why) // the link may be busy
	p.bell.ring()                   // nobody may be there to answer
}

// fetch reads what a reference names.
func (p *prefetch) fetch(r diskref.Ref) {
	defer p.fetching.Done()
	ctx, cancel := context.WithTimeout(p.ctx, p.patience)
	defer cancel()
	data := make([]byte, r.Len)
	err := p.src.ReadDisk(ctx, r.Disk, r.Sector, data)
	p.mu.Lock()
	switch {
	case p.ctx.Err() != nil:
		p.mu.Unlock()
		return
	case err != nil:
		p.retry = time.Now().Add(volumeRest)
		p.ask(r, err)
	case !p.holder.Read(r, data):
		p.ask(r, ErrOtherBytes)
	}
	p.mu.Unlock()
	p.progress()
}

// resolve makes a completion of a reference, the first that isn't executed.
func (p *prefetch) resolve(e event.Entry) (event.Entry, bool) {
	p.mu.Lock()
	data, ok := p.holder.Take()
	p.mu.Unlock()
	if !ok {
		return event.Entry{}, false
	}
	p.begin()
	return event.Entry{Pos: e.Pos, Kind: event.DiskDone, Disk: e.Disk, ID: e.ID, Data: data}, true
}

// stuck says that only the primary can give what the next reference stands for.
func (p *prefetch) stuck() bool {
	if p == nil {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lost || p.holder.Stuck()
}

// end gives up what is being read, and returns when nobody reads any more.
func (p *prefetch) end() {
	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
	p.cancel()
	p.fetching.Wait()
}
