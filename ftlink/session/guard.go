package session

import "time"

// guard tells fresh datagrams of one path from repeated ones.
type guard struct {
	incarnation uint64
	counter     uint64
	pinned      bool // only this incarnation counts
}

// fresh tells whether a datagram is newer than all that were accepted.
func (g *guard) fresh(incarnation, counter uint64) bool {
	if incarnation == g.incarnation {
		return counter > g.counter
	}
	return !g.pinned && incarnation > g.incarnation
}

// accept notes a fresh datagram whose signature is good.
func (g *guard) accept(incarnation, counter uint64) {
	g.incarnation, g.counter = incarnation, counter
}

// pin makes only one incarnation count: that of the process at the other end
// of a stream, which a handshake has just proved to be alive. It may be below
// the last one, when the peer's clock went back.
func (g *guard) pin(incarnation uint64) {
	if incarnation != g.incarnation {
		g.incarnation, g.counter = incarnation, 0
	}
	g.pinned = true
}

// unpin makes later incarnations count too.
func (g *guard) unpin() { g.pinned = false }

// bucket limits how often something is done.
type bucket struct {
	rate, burst float64 // a second; at once
	level       float64 // what has been used of burst
	last        time.Time
}

// allow tells whether it may be done once more at the time now.
func (b *bucket) allow(now time.Time) bool {
	if d := now.Sub(b.last).Seconds(); d > 0 {
		b.level = max(0, b.level-d*b.rate)
		b.last = now
	}
	if b.level+1 > b.burst {
		return false
	}
	b.level++
	return true
}
