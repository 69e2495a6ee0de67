package vmproc

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/ftlink/session"
	"github.com/duet-ft/duet/ftlink/wire"
	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/boot"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/locate"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/vm"
)

// A state transfer on the stream:
//
//	SeedBegin  seedHeader; answered by a Control frame that says whether the log may
//	           have points, and Have frames, up to an empty one
//	Pages      some thousand; a page that comes again counts anew
//	State      the machine's rest, JSON of seedState, in pieces
//	SeedEnd    empty
//	Log        from LSN 0
//
// A host that can't follow the other (another processor, image, kernel or log
// format) answers SeedBegin by Bye, which says why. The sender then lets that
// process alone (see refusal), so that neither the guest nor the list of events
// suffers.
type seedState struct {
	Base     event.Base        `json:"base"`
	Snapshot *machine.Snapshot `json:"snapshot"`
	Accessed boot.Accessed     `json:"accessed"` // for people; the patched kernel is in memory
	Points   bool              `json:"points"`   // the sender could follow a log with points, were it the secondary
}

const (
	maxState   = 256 << 20 // bytes of a seedState
	statePiece = 1 << 20
	seedPages  = 64 // pages a frame: the log of other VMs waits no longer for it
)

// sender is one state transfer from here, and the log behind it. The log begins
// while the last of the state is still on its way, so it waits here until then.
type sender struct {
	conn     *session.Conn
	accessed boot.Accessed
	points   bool // this host finds points

	mu      sync.Mutex
	through bool // the state is sent
	waiting []vmLog
}

type vmLog struct {
	lsn   uint64
	bytes []byte
}

// Pages sends memory; vm.Sink.
func (s *sender) Pages(pages []int, page func(int) []byte) error {
	for len(pages) > 0 {
		n := min(len(pages), seedPages)
		if err := s.conn.SendPages(pages[:n], page); err != nil {
			return err
		}
		pages = pages[n:]
	}
	return nil
}

// Snapshot sends the rest and lets the log go; vm.Sink.
func (s *sender) Snapshot(m *machine.Snapshot, base event.Base) error {
	b, err := json.Marshal(seedState{base, m, s.accessed, s.points})
	if err != nil {
		return err
	}
	for len(b) > 0 {
		n := min(len(b), statePiece)
		if err := s.conn.Send(wire.Frame{Type: wire.TypeState, Payload: b[:n]}); err != nil {
			return err
		}
		b = b[n:]
	}
	if err := s.conn.Send(wire.Frame{Type: wire.TypeSeedEnd, Payload: []byte("{}")}); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.through = true
	for _, l := range s.waiting {
		if err := s.conn.SendLog(l.lsn, l.bytes); err != nil {
			return err
		}
	}
	s.waiting = nil
	return nil
}

// log sends a batch. A stream that broke shows elsewhere.
func (s *sender) log(lsn uint64, batch []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.through {
		s.waiting = append(s.waiting, vmLog{lsn, batch})
		return
	}
	_ = s.conn.SendLog(lsn, batch)
}

// startSeed sends the live guest's state to the peer.
func (p *Process) startSeed(ctx context.Context, seed pair.Seed) {
	p.toSeed = nil
	if p.booting != nil {
		p.toSeed = &seed // once there is something to send
		return
	}
	g := p.guest
	p.mu.Lock()
	conn := p.conn
	p.mu.Unlock()
	if g == nil || conn == nil {
		p.post(pair.Faulted{Fault: pair.SeedFailed})
		return
	}
	g.stopSeed()
	g.carrier = conn
	ctx, g.seeding = context.WithCancel(ctx)
	go func() {
		link := p.tie.Load().link
		before := link.Stats().BytesOut
		stats, err := p.sendSeed(ctx, conn, g, seed)
		if err != nil {
			if ctx.Err() == nil {
				if !errors.Is(err, session.ErrBye) { // else Down tells it
					p.say("state transfer: " + err.Error())
				}
				p.post(pair.Faulted{Fault: pair.SeedFailed})
			}
			return
		}
		done := &api.Seed{
			Pages: stats.Pages, Known: stats.Known, Used: stats.Used, Rounds: stats.Rounds, Bytes: link.Stats().BytesOut - before,
			TotalMS: ms(stats.Total), PauseMS: ms(stats.Pause),
		}
		p.mu.Lock()
		p.seeded, p.trouble = done, ""
		p.mu.Unlock()
		p.say(fmt.Sprintf("state transfer: %d pages (%d were there already), %d bytes in %.0f ms, the guest stood still for %.1f ms",
			done.Pages, done.Known, done.Bytes, done.TotalMS, done.PauseMS))
	}()
}

// sendSeed sends a guest's state, without the pages that the peer has already.
func (p *Process) sendSeed(ctx context.Context, conn *session.Conn, g *guest, seed pair.Seed) (vm.SeedStats, error) {
	var salt [8]byte
	if _, err := rand.Read(salt[:]); err != nil {
		return vm.SeedStats{}, err
	}
	h := newHave(binary.LittleEndian.Uint64(salt[:]), g.m.Memory.Pages())
	p.mu.Lock()
	p.offered, p.offer = conn, h
	p.mu.Unlock()
	head := seedHeader{Seed: seed, Memory: g.m.Memory.Size(), Salt: h.salt, Host: p.own, Disks: layout(p.disks)}
	if err := conn.Send(wire.Frame{Type: wire.TypeSeedBegin, Payload: head.encode()}); err != nil {
		return vm.SeedStats{}, err
	}
	if err := h.wait(ctx); err != nil {
		return vm.SeedStats{}, err
	}
	p.mu.Lock()
	blind := p.blind // said before the list's end
	p.mu.Unlock()
	if err := g.engine.Blind(ctx, blind); err != nil {
		return vm.SeedStats{}, err
	}
	s := &sender{conn: conn, accessed: g.accessed, points: p.by.Method != locate.None}
	return g.engine.Seed(ctx, s, h.known, s.log)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// incoming is a state transfer that arrives here, and the log behind it.
type incoming struct {
	p     *Process
	g     *guest
	seed  pair.Seed
	blob  []byte
	whole bool // restored; the log follows
	given bool // the guest belongs to the loop

	telling            sync.WaitGroup // reads the guest's memory
	dropped            atomic.Bool
	received, verified atomic.Uint64
	acks               sync.Mutex
}

// drop gives the transfer up. A guest that is whole is the protocol's to halt.
// The stream has been aborted then.
func (in *incoming) drop() {
	if !in.dropped.Swap(true) && !in.given {
		in.telling.Wait()
		in.p.keep(in.g)
	}
}

// beginSeed makes a machine for what arrives on c, if this host can follow the
// one whose process has that incarnation.
func (p *Process) beginSeed(from uint64, c *session.Conn, s seedHeader) error {
	if line := p.unfit(s); line != "" {
		return p.refuse(from, line)
	}
	old := p.takeKept(s.Memory)
	g, err := p.newGuest(context.Background(), old)
	if err != nil {
		p.note("the VM's copy can't be received: " + err.Error())
		p.post(pair.Faulted{Fault: pair.Crashed})
		return err
	}
	if err := g.m.Track(); err != nil {
		g.destroy()
		p.note("the VM's copy can't be received: " + err.Error())
		p.post(pair.Faulted{Fault: pair.Crashed})
		return err
	}
	in := &incoming{p: p, g: g, seed: s.Seed}
	p.mu.Lock()
	before := p.incoming
	p.incoming = in
	p.mu.Unlock()
	if before != nil {
		before.drop()
	}
	p.post(pair.SeedBegin{Seed: s.Seed})
	in.telling.Add(1)
	go func() {
		defer in.telling.Done()
		if err := errors.Join(p.tellPoints(c), in.tellHave(c, s.Salt, old != nil)); err != nil {
			c.Abort(err)
		}
	}()
	return nil
}

// unfit says in one line why this host can't take a state transfer, "" if it can.
func (p *Process) unfit(s seedHeader) string {
	peer := ""
	if other := p.tie.Load().peer; other != nil {
		peer = other.Name
	}
	if line := mismatch(p.host.Name, p.own, peer, s.Host); line != "" {
		return line
	}
	if want := uint64(p.def.MemoryMiB) << 20; s.Memory != want {
		return fmt.Sprintf("host %s can't protect the VM: its copy has %d bytes of memory, host %s's has %d; if the VM's definition was changed, stop the VM and start it again",
			p.host.Name, want, peer, s.Memory)
	}
	if own := layout(p.disks); s.Disks != own {
		return fmt.Sprintf("host %s can't protect the VM: its disks lie at blocks %s, host %s's at %s; if they were changed, this passes by itself",
			p.host.Name, plain(own), peer, plain(s.Disks))
	}
	return ""
}

func (in *incoming) page(n int, data []byte) error {
	m := in.g.m.Memory
	if n < 0 || n >= m.Pages() {
		return fmt.Errorf("%w: page %d of %d", wire.ErrFrame, n, m.Pages())
	}
	if in.whole {
		return fmt.Errorf("%w: memory behind the end of the state", wire.ErrFrame)
	}
	// A page that is zero already isn't touched, so that it stays unallocated.
	if !wire.IsZero(data) || !wire.IsZero(m.Page(n)) {
		copy(m.Page(n), data)
	}
	return nil
}

func (in *incoming) state(b []byte) error {
	if len(in.blob)+len(b) > maxState {
		return fmt.Errorf("%w: more than %d bytes of state", wire.ErrFrame, maxState)
	}
	in.blob = append(in.blob, b...)
	return nil
}

// finishSeed restores the machine and lets it follow the log.
func (p *Process) finishSeed(c *session.Conn, in *incoming) error {
	var s seedState
	if err := json.Unmarshal(in.blob, &s); err != nil {
		return fmt.Errorf("%w: state: %w", wire.ErrFrame, err)
	}
	in.blob = nil
	if s.Snapshot == nil || in.whole {
		return fmt.Errorf("%w: no state", wire.ErrFrame)
	}
	g := in.g
	if err := g.m.Restore(s.Snapshot); err != nil {
		p.note("the VM's copy can't be restored: " + err.Error())
		p.post(pair.Faulted{Fault: pair.SeedFailed})
		return err
	}
	g.engine = vm.New(g.m, g.rim, p.engineConfig())
	g.rim.engine = g.engine
	g.accessed = s.Accessed
	g.engine.Follow(g.ctx, s.Base, source{p, in, c})
	in.whole = true
	p.later <- func(ctx context.Context) {
		if in.dropped.Load() || p.guest != nil {
			in.drop()
			return
		}
		in.given = true
		p.mu.Lock()
		p.guest, p.trouble = g, ""
		p.blind = !s.Points // for when this copy leads
		p.mu.Unlock()
		g.carrier = c
		p.followLog(in, s.Base, c)
		p.step(ctx, pair.Seeded{Seed: in.seed})
	}
	return nil
}

// receivedUpTo notes how far the log is held.
func (in *incoming) receivedUpTo(lsn uint64) {
	for was := in.received.Load(); was < lsn && !in.received.CompareAndSwap(was, lsn); was = in.received.Load() {
	}
}

// followLog has the copy that arrived follow the log behind base, and acknowledge
// it on c.
func (p *Process) followLog(in *incoming, base event.Base, c *session.Conn) {
	p.follow(in.g, base, func(received, verified uint64) {
		in.verified.Store(verified)
		in.receivedUpTo(received)
		_ = in.ack(p, c) // a stream that broke shows as Down
	})
}

// ack tells the primary how far this copy is.
func (in *incoming) ack(p *Process, c *session.Conn) error {
	in.acks.Lock()
	defer in.acks.Unlock()
	if in.g.sealed.Load() {
		return nil
	}
	received, verified := in.received.Load(), in.verified.Load()
	p.report(received, verified)
	return c.SendAck(received, verified)
}

var _ vm.Sink = (*sender)(nil)
