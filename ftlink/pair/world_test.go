package pair

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// world is two hosts and a volume for the scripts in testdata/scripts: everything
// takes a fixed time, and what happens is written down.
type world struct {
	level  Level
	now    time.Duration
	hosts  [2]*host
	block  Block
	cut    [2][2]bool // [path][sender]
	queue  []timed
	order  int
	incs   uint64
	trace  strings.Builder
	stream int // counts streams, so that late notices of an old one are dropped
}

type timed struct {
	at    time.Duration
	order int
	do    func()
}

type host struct {
	w          *world
	index      int
	m          *Machine
	volumeDown bool
	loseReply  bool // the next swap takes place, its reply is lost and reading back fails
	slow       time.Duration
	seedFor    time.Duration
	consumeFor time.Duration

	pauseFor    time.Duration
	registerFor time.Duration
	streamUp    bool // as this host knows
	gate        GateMode
	guest       string
}

var errDown = errors.New("no path to the volume")

const (
	netDelay    = time.Millisecond
	volumeDelay = 2 * time.Millisecond
	tickEvery   = 10 * time.Millisecond
)

func newWorld() *world {
	w := &world{block: Block{VM: UUID{1}, Kind: Free, Epoch: 1}}
	for i := range w.hosts {
		w.hosts[i] = &host{
			w: w, index: i, seedFor: 100 * time.Millisecond, consumeFor: 5 * time.Millisecond,
			pauseFor: 3 * time.Millisecond, registerFor: volumeDelay,
		}
	}
	return w
}

func (w *world) after(d time.Duration, do func()) {
	w.order++
	w.queue = append(w.queue, timed{w.now + d, w.order, do})
}

func (w *world) run(until time.Duration) {
	for {
		next := -1
		for i, e := range w.queue {
			if e.at <= until && (next < 0 || e.at < w.queue[next].at || e.at == w.queue[next].at && e.order < w.queue[next].order) {
				next = i
			}
		}
		if next < 0 {
			w.now = until
			return
		}
		e := w.queue[next]
		w.queue = slices.Delete(w.queue, next, next+1)
		w.now = e.at
		e.do()
	}
}

func (h *host) name() string { return string(rune('a' + h.index)) }

func (h *host) peer() *host { return h.w.hosts[1-h.index] }

func (h *host) log(format string, args ...any) {
	fmt.Fprintf(&h.w.trace, "%7.3f %s  %s\n", h.w.now.Seconds(), h.name(), fmt.Sprintf(format, args...))
}

// start runs a new process.
func (h *host) start() error {
	h.w.incs++
	inc := h.w.incs
	m, err := New(Config{Self: HostID(10 + h.index), Peer: HostID(11 - h.index), VM: UUID{1}, Level: h.w.level}, inc)
	if err != nil {
		return err
	}
	h.m, h.guest, h.gate, h.streamUp = m, "none", GateClosed, false
	h.tick(m)
	h.w.after(10*time.Millisecond, h.w.connect)
	return nil
}

func (h *host) tick(m *Machine) {
	if h.m != m {
		return
	}
	h.step(m, Tick{h.w.now})
	h.w.after(tickEvery, func() { h.tick(m) })
}

// step gives an input to the process m, if it still runs.
func (h *host) step(m *Machine, in Input) {
	if m == nil || h.m != m {
		return
	}
	for _, o := range m.Step(in) {
		h.carryOut(m, o)
	}
}

func (h *host) later(d time.Duration, in Input) {
	m := h.m
	h.w.after(d, func() { h.step(m, in) })
}

// connect makes a new stream when both hosts run and the direct link is whole.
func (w *world) connect() {
	a, b := w.hosts[0], w.hosts[1]
	if a.m == nil || b.m == nil || a.streamUp && b.streamUp || w.cut[Direct][0] || w.cut[Direct][1] {
		return
	}
	w.stream++
	for _, h := range w.hosts {
		if h.streamUp {
			h.step(h.m, LinkDown{})
		}
		h.streamUp = true
		h.step(h.m, LinkUp{h.peer().m.incarnation})
	}
}

// reset breaks the stream from one side; the other notices if it can.
func (h *host) reset() {
	if !h.streamUp {
		return
	}
	h.streamUp = false
	stream := h.w.stream
	h.w.after(netDelay, func() {
		if p := h.peer(); h.w.stream == stream && p.streamUp && !h.w.cut[Direct][h.index] {
			p.streamUp = false
			p.step(p.m, LinkDown{})
		}
	})
	h.w.after(20*time.Millisecond, h.w.connect)
}

func (h *host) carryOut(m *Machine, o Output) {
	switch o := o.(type) {
	case Send:
		h.send(o)
		return
	case Arbiter:
		if o.Kind == Swap {
			h.log("%v", o)
		}
		h.arbiter(m, o)
		return
	case Event:
		h.log("%v: %s (%v)", o.Role, o.What, o.Kind)
		return
	}
	h.log("    %v", o)
	switch o := o.(type) {
	case Fence:
		if h.volumeDown {
			h.later(volumeDelay, FenceDone{errDown})
		} else {
			h.later(volumeDelay, FenceDone{})
		}
	case StartSeed:
		h.seed(o.Seed)
	case EndSeed, Seal:
		h.reset()
	case Gate:
		h.gate = o.Mode
		if o.Mode == GateAcked {
			h.later(0, Gated{100})
			h.peer().later(5*time.Millisecond, Progress{100, 100})
		}
	case Consume:
		h.later(h.consumeFor, Consumed{100})
	case Register:
		if h.volumeDown {
			h.later(h.registerFor, Registered{o.Op, errDown})
		} else {
			h.later(h.registerFor, Registered{o.Op, nil})
		}
	case Pause:
		h.guest = "still"
		h.peer().later(2*netDelay, Progress{100, 100})
		h.later(h.pauseFor, Paused{o.Op, 100})
	case Resume:
		h.guest = "live"
	case Yield:
		h.guest, h.gate = "whole", GateClosed
	case TakeOver:
		h.gate = GateAcked
	case GoLive, Boot:
		h.guest = "live"
	case Halt:
		h.guest = "none"
	}
}

func (h *host) send(o Send) {
	decoded, err := Decode(o.Msg.Encode())
	if err != nil || decoded != o.Msg {
		panic(fmt.Sprintf("%+v became %+v: %v", o.Msg, decoded, err))
	}
	p := h.peer()
	h.w.after(netDelay, func() {
		if !h.w.cut[o.Path][h.index] {
			p.step(p.m, Received{o.Path, decoded})
		}
	})
}

func (h *host) seed(s Seed) {
	p := h.peer()
	stream := h.w.stream
	whole := func() bool { return h.w.stream == stream && h.streamUp && p.streamUp && !h.w.cut[Direct][h.index] }
	pm := p.m
	h.w.after(netDelay, func() {
		if whole() {
			p.guest = "half"
			p.step(pm, SeedBegin{s})
		}
	})
	h.w.after(h.seedFor, func() {
		if whole() && p.guest == "half" {
			p.guest = "whole"
			p.step(pm, Seeded{s})
		}
	})
}

// arbiter carries an operation out: it takes effect after half of the time.
func (h *host) arbiter(m *Machine, o Arbiter) {
	delay := volumeDelay + h.slow
	lose := o.Kind == Swap && h.loseReply
	if lose {
		h.loseReply = false
	}
	h.w.after(delay/2, func() {
		done := ArbiterDone{Op: o.Op, Answer: Current}
		switch {
		case h.volumeDown:
			done = ArbiterDone{Op: o.Op, Err: errDown}
		case o.Kind == Swap && h.w.block == o.Old:
			h.w.block, done.Answer = o.New, Swapped
			fmt.Fprintf(&h.w.trace, "%7.3f    block is %v\n", h.w.now.Seconds(), o.New)
		case o.Kind == Swap && h.w.block == o.New: // the executor reads back
			done.Answer = Swapped
		}
		done.Block = h.w.block
		if lose {
			done = ArbiterDone{Op: o.Op, Err: errors.New("reply lost")}
		}
		h.w.after(delay/2, func() { h.step(m, done) })
	})
}

func (w *world) state() string {
	var b strings.Builder
	live := 0
	for _, h := range w.hosts {
		if h.m == nil {
			fmt.Fprintf(&b, "%s: off\n", h.name())
			continue
		}
		fmt.Fprintf(&b, "%s: %v, guest %s, gate %v, knows %v\n", h.name(), h.m.role, h.guest, h.gate, h.m.block)
		if h.guest == "live" && h.gate == GateOpen {
			live++
		}
	}
	fmt.Fprintf(&b, "block: %v\n", w.block)
	if live > 1 {
		b.WriteString("TWO COPIES ARE LIVE\n")
	}
	return b.String()
}
