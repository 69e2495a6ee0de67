// Package playback executes a recording again: to its end or to a position, with
// its console, into a core file, or under a debugger that can go backwards.
//
// # Place
//
// hvd's main calls Replay and Log for the commands of those names. It restores the
// machine (hvd/machine) from a file (hvd/recording) and drives it by the file's
// log as a secondary is driven (hvd/lockstep), but step by step; hvd/recording/gdb
// speaks with a debugger, hvd/recording/elfcore lays out a core.
//
// # Where it stands
//
// A point of the execution is a number of counted exits and, for a debugger, what
// came since: so many arrivals at an address, then so many single steps.
//
//	exit n ----> arrival at an address, the j-th time ----> k instructions
//
// Going back is going forward from a checkpoint before the point. Checkpoints hold
// the pages that were written since the one before, and exist only for a debugger.
package playback

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/locate"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/machine"
	"github.com/duet-ft/duet/hvd/recording"
)

// File is a recording that can be read anywhere.
type File interface {
	io.Reader
	io.ReaderAt
}

// Player is a recording under execution. It belongs to one goroutine, locked to
// its thread.
type Player struct {
	Machine *machine.Machine
	Start   uint64              // the recording's first position
	Console func(output []byte) // if set, gets what the guest prints
	OnEntry func(event.Entry)   // if set, is told of each entry that is carried out
	log     source
	state   recording.State
	pages   map[int]recording.Ref // where a page's first content is
	file    File

	replayer *lockstep.Replayer
	began    uint64     // LSN where replayer began
	fed      int        // pieces of the log that it has
	base     event.Base // behind the last entry that was carried out
	stop     uint64     // a stop that was handed out and isn't reached yet
	stopping bool
	marks    uint64 // fingerprints compared
	entries  uint64
	ended    error // the guest's own end

	history *history // for a debugger; else nil
}

// ErrOtherCPU says that this host's processor isn't one that could execute the
// recording.
var ErrOtherCPU = errors.New("the recording is of another processor")

// ErrEnd says that all of the recording is executed.
var ErrEnd = errors.New("the recording ends here")

// Open reads a recording up to its log and makes the machine that it starts with.
func Open(sys *kvm.System, f File) (p *Player, err error) {
	r, err := recording.NewReader(f)
	if err != nil {
		return nil, err
	}
	head := r.Head()
	var made machine.Config
	if err := json.Unmarshal(head.Machine, &made); err != nil || made.MemoryBytes != head.Memory {
		return nil, fmt.Errorf("%w: it describes no machine", recording.ErrDamaged)
	}
	made.Memory = nil
	if cpu, err := machine.HostCPU(sys); err != nil {
		return nil, err
	} else if cpu.Fingerprint != head.Leaves {
		return nil, fmt.Errorf("%w: it was made on %s with features %s, this is %s with %s; replay it on a host of that kind",
			ErrOtherCPU, head.CPU, head.Leaves, cpu.Name, cpu.Fingerprint)
	}
	p = &Player{file: f, log: source{r: r, file: f}, pages: map[int]recording.Ref{}}
	if p.Machine, err = machine.New(sys, made); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	m := p.Machine.Memory
	if p.state, err = r.State(func(at recording.Ref, b recording.Block) error {
		return b.Pages(m.Pages(), func(page int, content []byte) {
			p.pages[page] = at
			if content == nil {
				clear(m.Page(page))
				return
			}
			copy(m.Page(page), content)
		})
	}); err != nil {
		return nil, fmt.Errorf("nothing of it can be replayed: %w", err)
	}
	// Points are the same by whatever they are found; by steps it takes long.
	by := locate.Locator{Method: locate.ByStep}
	if e, err := locate.Probe(sys); err == nil {
		by = locate.Locator{Method: locate.ByPMU, Event: e}
	}
	if err := p.Machine.Locate(by); err != nil {
		return p, err
	}
	return p, p.restore()
}

// restore puts the machine where the log begins.
func (p *Player) restore() error {
	var s machine.Snapshot
	if err := json.Unmarshal(p.state.Snapshot, &s); err != nil {
		return fmt.Errorf("%w: the machine's state: %w", recording.ErrDamaged, err)
	}
	if err := p.Machine.Track(); err != nil {
		return err
	}
	if err := p.Machine.Restore(&s); err != nil {
		return err
	}
	p.Start = s.Position
	p.begin(p.state.Base, 0)
	return p.Machine.Follow(&s)
}

// begin makes the log go on at an LSN, behind which entries are relative to base.
func (p *Player) begin(base event.Base, lsn uint64) {
	p.replayer = lockstep.NewReplayer(base)
	p.base, p.began = base, lsn
	p.fed = p.log.find(lsn)
	p.stopping = false
}

// Close frees the machine.
func (p *Player) Close() error { return p.Machine.Close() }

// runner executes to the next exit, or less.
type runner func(stop uint64) (machine.Debugged, lockstep.Exit, error)

// Next executes to the next counted exit. ErrEnd is the end of the recording,
// proper or not: see Damage.
func (p *Player) Next() error {
	_, err := p.next(func(stop uint64) (machine.Debugged, lockstep.Exit, error) {
		exit, err := p.Machine.Run(stop)
		if exit.Kind == lockstep.Async {
			return machine.Interrupted, exit, err
		}
		return machine.Exited, exit, err
	})
	return err
}

// next carries out what the log has for this position and lets run go on.
func (p *Player) next(run runner) (machine.Debugged, error) {
	if p.ended != nil {
		return machine.Exited, p.settleEnd()
	}
	for !p.stopping {
		step, err := p.replayer.Next(p.Machine.Position())
		if err != nil {
			return machine.Exited, err
		}
		if step.Do == lockstep.Wait {
			more, err := p.feed()
			if err != nil {
				return machine.Exited, err
			}
			if more {
				continue
			}
			if end := p.log.end(); end == nil || p.Machine.Position() >= end.Position {
				return machine.Exited, p.atEnd()
			}
			break // nothing more was put in up to the end
		}
		if step.Do == lockstep.Run {
			p.stop, p.stopping = step.Stop, step.Stop != lockstep.Free
			if p.stopping {
				p.did(event.Entry{Kind: event.Stop, Pos: p.Machine.Position(), Traps: step.Stop})
			}
			break
		}
		before := p.Machine.Position()
		if err := p.carryOut(step); err != nil {
			return machine.Exited, err
		}
		if p.Machine.Position() != before {
			return machine.Exited, nil // a resync is an exit
		}
		if p.Machine.Harvested() {
			if err := p.passed(); err != nil {
				return machine.Exited, err
			}
		}
	}
	stop := uint64(lockstep.Free)
	if p.stopping {
		stop = p.stop
	}
	return p.run(run, stop)
}

func (p *Player) run(run runner, stop uint64) (machine.Debugged, error) {
	d, exit, err := run(stop)
	p.effects()
	if errors.Is(err, machine.ErrStopped) {
		p.ended = err
		return machine.Exited, nil
	}
	if err != nil || d != machine.Exited {
		return d, err
	}
	p.stopping = false
	if (exit.Kind == lockstep.Trapped) != (stop != lockstep.Free) || exit.Kind == lockstep.Trapped && exit.Traps != stop {
		return d, &lockstep.Divergence{Kind: "stop", Position: p.Machine.Position(), Detail: fmt.Sprintf(
			"a stop was recorded at trap %d, trapped %t at %d", stop, exit.Kind == lockstep.Trapped, exit.Traps)}
	}
	return d, nil
}

// settleEnd compares what the log still has of a guest that has ended.
func (p *Player) settleEnd() error {
	for {
		step, err := p.replayer.Next(p.Machine.Position())
		switch {
		case err != nil:
			return err
		case step.Do == lockstep.Wait:
			more, err := p.feed()
			if err != nil {
				return err
			}
			if !more {
				return p.atEnd()
			}
		case step.Do == lockstep.Run:
			return &lockstep.Divergence{Kind: "end", Position: p.Machine.Position(), Detail: p.ended.Error() + ", which isn't recorded"}
		default:
			if err := p.carryOut(step); err != nil {
				return err
			}
		}
	}
}

// carryOut does what the log says for this position.
func (p *Player) carryOut(step lockstep.Step) error {
	e := step.Entry
	p.did(e)
	switch {
	case step.Do == lockstep.Check:
		if got := uint32(p.Machine.Fingerprint()); got != e.Hash {
			return &lockstep.Divergence{Kind: "exit", Position: e.Pos, Detail: fmt.Sprintf(
				"the fingerprint is %08x, recorded was %08x", got, e.Hash)}
		}
		p.marks++
		return nil
	case e.Kind == event.Live:
		return nil
	}
	err := p.Machine.Apply(e)
	p.effects()
	if err != nil {
		return fmt.Errorf("%v at exit %d: %w", e.Kind, e.Pos, err)
	}
	return nil
}

// did notes an entry that is carried out.
func (p *Player) did(e event.Entry) {
	p.entries++
	p.base.Pos = e.Pos
	switch e.Kind {
	case event.Time, event.Jump:
		p.base.Now = e.Now
	case event.Stop:
		p.base.Traps = e.Traps
	}
	if p.OnEntry != nil {
		p.OnEntry(e)
	}
}

func (p *Player) effects() {
	for _, x := range p.Machine.TakeEffects() {
		if x.Kind == board.Console && p.Console != nil {
			p.Console(x.Data)
		}
	}
}

// feed gives the replayer the next piece of the log; false when there is none.
func (p *Player) feed() (bool, error) {
	piece, err := p.log.piece(p.fed)
	if err != nil || piece == nil {
		return false, err
	}
	at := p.began + p.replayer.Received()
	if skip := at - piece.lsn; skip > 0 {
		piece.bytes = piece.bytes[skip:]
	}
	p.fed++
	return true, p.replayer.Feed(p.replayer.Received(), piece.bytes)
}

// atEnd compares the recording's last fingerprint.
func (p *Player) atEnd() error {
	end := p.log.end()
	if end == nil || p.Machine.Position() != end.Position {
		return ErrEnd
	}
	if got := p.Machine.Fingerprint(); got != end.Fingerprint {
		return &lockstep.Divergence{Kind: "end", Position: end.Position, Detail: fmt.Sprintf(
			"the fingerprint is %016x, recorded was %016x", got, end.Fingerprint)}
	}
	return ErrEnd
}

// Damage is what is wrong with the file behind where it was read to, or nil.
func (p *Player) Damage() error { return p.log.damage }

// End is how the recording ended; nil where that isn't known.
func (p *Player) End() *recording.End { return p.log.end() }

// Head is what the recording is of.
func (p *Player) Head() recording.Head { return p.log.r.Head() }
