// Package vm drives one machine: alone, as the primary of a pair or as its
// secondary. It is the loop around the pure parts, and where their inputs come
// from and their effects go to.
//
// # Place
//
// hvd/vmproc, the process of a VM, tells an Engine what to do.
// It imports hvd/{board,diskref,event,kvm,locate,lockstep,machine,mem,trapset,virtio/blk}
// and nothing of the link or the volume: those are behind Rim, Source, and the
// functions that take the log.
//
// # Threads
//
// One goroutine, locked to its thread, owns the machine: it calls Live or
// Replay. Other goroutines reach it only through
//
//	Input   an input that arrived (bounded; see inbox)
//	Vsock   a vsock packet, which waits for room
//	Do      a function to be run at a position, between two runs
//	Ack     what the secondary acknowledged
//	Feed    log bytes from the primary
//	Give    what the primary was asked for
//
// A kicker goroutine watches that inputs don't wait longer than the guest may
// run without an exit: it asks for a stop at a counted trap first, and kicks
// the CPU later. The kick ends at a point of hvd/locate where both hosts find
// such, else in a resync.
//
// # The loop of a live machine
//
//	deliver   inputs that are due are written into the log and applied
//	flush     the log goes out when an effect waits for it, when it is big,
//	          or when it is FlushAfter old; effects that may leave do
//	run       to the next exit; its effects go to the gate
//	          a guest that has halted waits for an input instead
package vm

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/locate"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/trapset"
)

// Rim is where effects go. Effect must not block for long and may be called by
// several goroutines, but effects come in order.
type Rim interface {
	Effect(board.Effect)
}

// Config are an engine's settings; zero values mean the defaults.
type Config struct {
	Level      lockstep.Level
	Window     time.Duration // how long a clock anchor stays fresh; default 200 us
	StopAfter  time.Duration // an overdue input asks for a trap; default 1 ms
	KickAfter  time.Duration // then for a resync; default 5 ms
	FlushAfter time.Duration // the log waits no longer; default 2 ms
	MaxLag     time.Duration // see lockstep.Pace; default 100 ms
	// SharedDisks says that whoever reads the log reaches the guest's disks: what
	// the guest reads goes into the log by reference.
	SharedDisks bool
	// ReadPatience is how long a secondary waits for the volume to have what its
	// log refers to, until it asks its primary; default 50 ms.
	ReadPatience time.Duration
	Costs        trapset.Costs // what traps and resyncs take of this host; default a server's

	// Locator is how this host finds points between two exits; by default it
	// doesn't. A log has points only if its reader finds them, too.
	Locator locate.Locator

	// Choose says what a primary counts; default the choice of hvd/trapset.
	Choose func(trapset.Load) (trapset.Choice, bool)
}

func (c *Config) defaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.Window, 200*time.Microsecond)
	def(&c.StopAfter, time.Millisecond)
	def(&c.KickAfter, 5*time.Millisecond)
	def(&c.FlushAfter, 2*time.Millisecond)
	def(&c.MaxLag, 100*time.Millisecond)
	def(&c.ReadPatience, 50*time.Millisecond)
	def(&c.Costs.Trap, 2*time.Microsecond)
	def(&c.Costs.Resync, 500*time.Microsecond)
	def(&c.Costs.KB, 10*time.Microsecond)
}

// ErrPowerOff says that the guest switched itself off, ErrReset that it asked
// to be started anew.
var (
	ErrPowerOff = errors.New("the guest has switched itself off")
	ErrReset    = errors.New("the guest has asked for a reset")
)

// Engine drives one machine.
type Engine struct {
	m   *machine.Machine
	rim Rim
	cfg Config

	bell  doorbell // of the loop: inputs, functions, log
	inbox inbox
	clock clock
	kick  kicker

	unheard unheard // queues for the kicker
	do      chan func()
	over    chan struct{} // closed when Live has returned: nobody does any more

	// Of a primary; owned by the loop but for what gateMu guards.
	primary *lockstep.Primary[board.Effect]
	send    func(lsn uint64, batch []byte)
	flushed time.Time
	marked  time.Time
	urgent  bool   // an effect waits for the log
	tell    bool   // the guest is to be told the time, as it may want to know
	at      place  // how the present position was found
	chosen  uint64 // guest time when the traps were last thought about, ns
	gateMu  sync.Mutex
	gate    lockstep.Gate[timed]
	lag     lagMeter
	wanting atomic.Bool // the loop waits for an acknowledgement
	tape    *tape       // a recording, or nil
	reads   reads
	seeding bool
	blind   bool       // the log's reader can't find points
	paused  *paused    // for a switchover, or nil
	ended   chan error // the guest's own end, once it was let out

	// Of a secondary.
	feed     feed
	prefetch *prefetch // what the log refers to; nil: it refers to nothing
	since    uint64    // position of the last fingerprint found equal

	Stats Stats
}

// New returns an engine for a machine that is booted or restored.
func New(m *machine.Machine, rim Rim, cfg Config) *Engine {
	cfg.defaults()
	if cfg.Choose == nil {
		cfg.Choose = trapset.New(m.Countable(), cfg.Costs).Next
	}
	e := &Engine{m: m, rim: rim, cfg: cfg, do: make(chan func(), 16), over: make(chan struct{}), ended: make(chan error, 1)}
	e.kick.m = m
	e.lag.bell = make(chan struct{}, 1)
	e.lag.pace.MaxLag = e.cfg.MaxLag
	e.lag.reset()
	e.gate.Level = cfg.Level
	e.inbox.init(&e.bell, m.Board.VsockRoom())
	e.feed.bell = &e.bell
	e.clock.start(m.Clock())
	return e
}

// Input hands in an input of any kind but Time, Deadline, Stop, Mark, Live and
// Resync. It reports false when too many wait already; the input is lost then,
// as a frame on a busy wire is. Disk completions are never refused.
func (e *Engine) Input(in event.Entry) bool { return e.inbox.put(in) }

// Vsock hands in a vsock packet, which it owns. It waits while the guest's device
// has no room: a stream must not get a hole. It reports false when ctx ends
// first. One caller at a time.
func (e *Engine) Vsock(ctx context.Context, pkt []byte) bool {
	return e.inbox.offer(ctx, event.Entry{Kind: event.Vsock, Data: pkt})
}

// Do runs f on the machine's goroutine, between two runs of the guest, and
// waits for it. It fails when ctx ends first.
func (e *Engine) Do(ctx context.Context, f func(*machine.Machine) error) error {
	done := make(chan error, 1)
	select {
	case e.do <- func() { done <- f(e.m) }:
	case <-ctx.Done():
		return ctx.Err()
	}
	e.wake()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wake makes the loop look at what came, whatever it waits for.
func (e *Engine) wake() {
	e.bell.ring()
	e.lag.ring()
	e.kick.ask()
}

// commands runs what Do has queued.
func (e *Engine) commands() {
	e.kick.asked.Store(0)
	for {
		select {
		case f := <-e.do:
			f()
		default:
			e.lookTape()
			return
		}
	}
}
