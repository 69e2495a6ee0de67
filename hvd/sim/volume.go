package sim

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/duet-ft/duet/ftlink/arbiter"
	"github.com/duet-ft/duet/ftlink/pair"
)

// volume is the shared volume: an arbiter block, one block per client, and
// the registrations of a reservation "write exclusive, registrants only".
// Commands take effect some time after they were issued, and may never do.
type volume struct {
	w          *World
	block      []byte
	data       []block
	registered [2]bool
	session    [2]uint64 // the host's newest session; earlier ones are gone
	fences     [2]uint64 // times that the host was fenced

	unreachable [2]bool
	stallUntil  [2]time.Duration // the host's commands take effect no earlier
	loseReplies bool             // COMPARE AND WRITE: replies get lost
	failing     int              // percent of reads and writes that end with an error of the medium
}

var (
	errUnreachable = errors.New("no path to the volume")
	errReplyLost   = errors.New("the connection broke before the reply")
	errConflict    = errors.New("reservation conflict")
	errMedium      = errors.New("medium error")
)

// arrival is when a command that a host issues now takes effect.
func (v *volume) arrival(host int) time.Duration {
	return max(v.w.now+v.w.between(200*time.Microsecond, 3*time.Millisecond), v.stallUntil[host])
}

// command has do run when a command of p's takes effect, and reply some time
// later in p. A host that isn't connected then gets an error instead. A
// command whose session was replaced or fenced meanwhile never takes effect.
func (v *volume) command(p *process, do func() error, reply func(error)) {
	fences, session := v.fences[p.host], p.session
	v.w.at(v.arrival(p.host), func() {
		var err error
		switch {
		case !v.up(p.host, session):
			err = errUnreachable
		case fences != v.fences[p.host] && !v.w.bugs.fenceKeepsTasks:
			err = errConflict // aborted
		default:
			err = do()
		}
		v.w.after(v.w.between(100*time.Microsecond, time.Millisecond), func() { p.do(func() { reply(err) }) })
	})
}

// up says that a session of a host reaches the volume. It logs in with its
// first command; that ends the host's earlier session, with all its commands
// (RFC 7143, 6.3.5, session reinstatement).
func (v *volume) up(host int, session uint64) bool {
	if v.unreachable[host] {
		return false
	}
	v.session[host] = max(v.session[host], session)
	return v.session[host] == session
}

// write changes a block, if the reservation lets p. That is decided when the command
// comes in; it takes effect later. One that fails, or whose host died before the
// volume had all of its data, may be torn: it changes one copy of two.
func (v *volume) write(p *process, key int, r record, reply func(error)) {
	registered, fences, g := v.registered[p.host], v.fences[p.host], p.guest
	v.command(p, func() error {
		if !registered {
			return errConflict
		}
		failed := v.fails()
		torn := failed || !p.alive && v.w.chance(25)
		if failed && v.w.chance(50) {
			return errMedium
		}
		v.w.checkLanding(p, g, key, r)
		if fences != v.fences[p.host] {
			v.w.fail("a write of %v lands, and its host was fenced since it was issued", p)
		}
		v.data[key] = v.landed(v.data[key], r, torn)
		if failed {
			return errMedium
		}
		return nil
	}, reply)
}

// fails says that the medium fails a command.
func (v *volume) fails() bool {
	if v.failing == 0 || !v.w.chance(v.failing) {
		return false
	}
	v.w.count.DiskErrors++
	return true
}

// landed is a block after a write.
func (v *volume) landed(b block, r record, torn bool) block {
	if torn {
		v.w.count.TornWrites++
		b[v.w.rng.IntN(len(b))] = r
		return b
	}
	return block{r, r}
}

// read returns a block.
func (v *volume) read(p *process, key int, reply func(block, error)) {
	var b block
	v.command(p, func() error {
		if v.fails() {
			return errMedium
		}
		b = v.data[key]
		return nil
	}, func(err error) { reply(b, err) })
}

// fence registers p's host and preempts the other one's registration, and
// aborts its commands.
func (v *volume) fence(p *process, reply func(error)) {
	v.command(p, func() error {
		other := 1 - p.host
		v.registered[p.host], v.registered[other] = true, false
		v.fences[other]++
		return nil
	}, reply)
}

// register lets p's host write.
func (v *volume) register(p *process, reply func(error)) {
	v.command(p, func() error {
		v.registered[p.host] = !v.w.bugs.neverRegistered
		return nil
	}, reply)
}

// arbitrate carries out an operation on the arbiter block by the real
// executor.
func (v *volume) arbitrate(p *process, op pair.Arbiter, reply func(pair.ArbiterDone)) {
	session := p.session
	v.w.at(v.arrival(p.host), func() {
		b := &blocks{v: v, host: p.host, session: session}
		x := arbiter.Executor{Blocks: b, Size: arbiter.MinSize, VM: vmID}
		done := x.Do(context.Background(), op)
		if v.w.bugs.noReadBack && b.doubt {
			done = pair.ArbiterDone{Op: op.Op, Answer: pair.Swapped}
		}
		v.w.after(v.w.between(100*time.Microsecond, time.Millisecond), func() { p.do(func() { reply(done) }) })
	})
}

// blocks is the volume at one moment as one process sees it.
type blocks struct {
	v       *volume
	host    int
	session uint64
	doubt   bool // a COMPARE AND WRITE ended with an error
}

func (b *blocks) Read(_ context.Context, _ uint64, p []byte) error {
	if !b.v.up(b.host, b.session) || b.doubt && b.v.w.chance(50) {
		return errUnreachable
	}
	copy(p, b.v.block)
	return nil
}

// CompareAndWrite may lose the reply, the command, or let the command take
// effect long after the initiator gave up.
func (b *blocks) CompareAndWrite(_ context.Context, _ uint64, old, new []byte) (bool, error) {
	w := b.v.w
	if !b.v.up(b.host, b.session) {
		b.doubt = true
		return false, errUnreachable
	}
	if !b.v.loseReplies || w.chance(30) {
		return b.v.compareAndWrite(old, new), nil
	}
	b.doubt = true
	switch {
	case w.chance(40):
		b.v.compareAndWrite(old, new)
	case w.chance(50):
		w.count.LateSwaps++
		w.after(w.between(time.Millisecond, 2*time.Second), func() { b.v.compareAndWrite(old, new) })
	}
	w.count.LostReplies++
	return false, errReplyLost
}

func (v *volume) compareAndWrite(old, new []byte) bool {
	if !bytes.Equal(v.block, old) && !v.w.bugs.blindSwap {
		return false
	}
	v.w.checkBlock(v.block, new)
	v.block = bytes.Clone(new)
	return true
}
