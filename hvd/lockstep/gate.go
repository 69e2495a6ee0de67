package lockstep

import "slices"

// Level is when an effect may leave a pair.
type Level uint8

// The two levels of the output rule.
const (
	// Verified: the secondary has executed up to the effect and found equal
	// fingerprints.
	Verified Level = iota
	// Received: the secondary holds the log up to the effect.
	Received
)

// GateMode is what a gate waits for.
type GateMode uint8

// The modes of a gate.
const (
	Open   GateMode = iota // solo: effects leave at once
	Acked                  // effects leave when the secondary has acknowledged them
	Closed                 // nothing leaves
)

// Gate holds effects back until the output rule lets them go. They leave in
// the order in which they were made.
type Gate[E any] struct {
	Level Level

	mode     GateMode
	held     []held[E]
	received uint64
	executed uint64
}

type held[E any] struct {
	lsn    uint64
	effect E
}

// Push adds an effect that a secondary can make itself once it is at lsn.
func (g *Gate[E]) Push(lsn uint64, effect E) {
	g.held = append(g.held, held[E]{lsn, effect})
}

// Set changes the mode.
func (g *Gate[E]) Set(m GateMode) { g.mode = m }

// Mode is the mode in force.
func (g *Gate[E]) Mode() GateMode { return g.mode }

// Ack notes what the secondary holds and has executed. Older acknowledgements
// change nothing.
func (g *Gate[E]) Ack(received, executed uint64) {
	g.received = max(g.received, received)
	g.executed = max(g.executed, executed)
}

// Release returns the effects that may leave now, in order, and forgets them.
func (g *Gate[E]) Release() []E {
	n := 0
	switch g.mode {
	case Open:
		n = len(g.held)
	case Acked:
		upto := g.executed
		if g.Level == Received {
			upto = g.received
		}
		for n < len(g.held) && g.held[n].lsn <= upto {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	out := make([]E, n)
	for i := range out {
		out[i] = g.held[i].effect
	}
	g.held = slices.Delete(g.held, 0, n) // which also lets go of what left
	return out
}

// Rebase forgets the LSNs of what is held and what was acknowledged: a new log
// begins, whose state transfer holds everything that made them.
func (g *Gate[E]) Rebase() {
	g.received, g.executed = 0, 0
	for i := range g.held {
		g.held[i].lsn = 0
	}
}

// Held is the number of effects that wait.
func (g *Gate[E]) Held() int { return len(g.held) }
