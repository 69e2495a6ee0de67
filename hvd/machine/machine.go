// Package machine is the whole virtual machine as lockstep sees it: memory,
// the virtual CPU and the board, executing deterministically between inputs.
//
// # Place
//
// The real implementation of lockstep.Machine. hvd/vm drives it; hvd/transfer
// ships its state. It imports hvd/{board,event,kvm,lockstep,mem,vcpu}.
//
// # One exit
//
//	Run: inject a pending interrupt, or ask for a window
//	     offer an EOI without an exit, if that is possible
//	     enter the guest
//	     a counted exit: position+1, see whether the guest took the EOI, the
//	     board answers the exit and looks at queues that aren't notified, fold it
//	     into the fingerprint with what it made leave
//
// Injecting happens once a position: when the host interrupts the guest, Run
// enters it again exactly as it was.
//
// # Time
//
// The guest's time-stamp counter runs at 1 GHz: a tick is a nanosecond of
// guest time. A read gives the last anchor plus a small step per read, at most
// maxAhead. Time entries set a new anchor, never back. Deadline entries do so
// too and make the board's next timer fire, one timer an entry, so that a guest
// that is slow loses no tick; Jump passes over timers, for a guest that stood
// still for long. On a primary, a read that comes later than the window after
// the last anchor makes an exit, so that a fresh anchor can be given first.
//
// # Fingerprint
//
// xxh3 over the last fingerprint and, for each counted exit: reason, address,
// size, data, the general registers with RIP and RFLAGS, the counted traps,
// the time-stamp reads, and the content of every effect.
//
// Exits say nothing about memory that the guest doesn't use, so a window moves
// over all of it once in 50 s of guest time. Each second its hash is compared,
// with those of the CPU's and the devices' state, by a Digest entry.
package machine

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/boot"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/transfer"
	"github.com/duet-ft/duet/hvd/vcpu"
	"github.com/duet-ft/duet/hvd/virtio"
)

const (
	stepPerRead = 500             // ns that a time-stamp read adds
	maxAhead    = 4 * 1000 * 1000 // ns that reads may add to an anchor
)

// ErrStopped says that the guest has come to an end: a triple fault, or HLT
// with interrupts off.
var ErrStopped = errors.New("the guest has stopped")

// Config describes a machine. Both copies of a VM are made from equal ones.
type Config struct {
	MemoryBytes uint64
	Board       board.Config
	Traps       uint64 // kvm.Counted flags to begin with; those that the host lacks are left out

	// Memory to use instead of new one, which the machine then owns.
	Memory *mem.Memory

	// How often all of memory is compared, and the CPU and devices are, in
	// guest time; 0: see the package comment. Both copies need the same.
	SweepCycle, DigestEvery time.Duration
}

// Machine is a virtual machine. All methods but Kick and RequestStop belong to
// one goroutine, locked to its thread.
type Machine struct {
	Memory *mem.Memory
	Board  *board.Board

	vm    *kvm.VM
	cpu   *vcpu.CPU
	cpuid []kvm.CPUID

	pos     uint64
	hash    uint64
	entered bool // the interrupt of this position is injected
	whole   bool // this position isn't an exit of the guest's, so it lies between two instructions
	behind  bool // more timers are due than can fire at this position
	leaves  bool // the guest is entered with an interrupt window asked for
	halted  bool
	off     board.EffectKind // PowerOff or Reset, once the guest did that
	fresh   uint64           // host time-stamp ticks that an anchor stays fresh; 0: for ever
	effects []board.Effect
	scratch []byte
	packed  []byte        // Capture's last result
	step    Step          // the last exit
	memo    transfer.Memo // what the log's last resyncs brought
	dirty   []uint64      // pages written since the last harvest
	can     uint64        // kvm.Counted flags that this host can count
	every   uint64        // deadlines from one harvest of the dirty log to the next
	cleanAt uint64        // the position of the last one
	harvest uint64        // deadlines since the last harvest
	reaped  uint64        // harvests so far
	logging bool          // KVM logs dirty pages
	logged  bool          // the execution is recorded or replayed: harvests count
	window  Sweep
	digest  []byte // of this very state; nil: not known
	trail   trail
	cycle   time.Duration        // sweepCycle
	compare time.Duration        // digestEvery
	idt     *handlers            // for Step
	table   [256 * idtEntry]byte // of the IDT, for the same
	points  points
	// Of the run from the last exit to here: the conditional branches, if all of it
	// was made by Step (stepped).
	branches uint64
	stepped  bool
	watched  []uint64 // pages written since the last TakeWatched; nil: nobody asks

	// Trace, if set, is told of each counted exit, after it was answered.
	Trace func(Step)

	// Exits counts exits by KVM's reason.
	Exits [kvm.ExitTrap + 1]uint64
}

// New makes a machine with empty memory; Boot or Restore fills it.
func New(sys *kvm.System, cfg Config) (_ *Machine, err error) {
	have := sys.Supported()
	if have&kvm.FlagTSC == 0 {
		return nil, errors.New("this host's kernel can't derive time-stamps: it isn't Duet's image")
	}
	m := &Machine{cycle: cmp.Or(cfg.SweepCycle, sweepCycle), compare: cmp.Or(cfg.DigestEvery, digestEvery)}
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	if m.Memory = cfg.Memory; m.Memory == nil {
		if m.Memory, err = mem.New(cfg.MemoryBytes); err != nil {
			return nil, err
		}
	} else if m.Memory.Size() != cfg.MemoryBytes {
		return nil, fmt.Errorf("memory of %d bytes for a machine of %d", m.Memory.Size(), cfg.MemoryBytes)
	}
	if m.Board, err = board.New(cfg.Board, m.Memory); err != nil {
		return nil, err
	}
	host, err := sys.SupportedCPUID()
	if err != nil {
		return nil, err
	}
	m.can = have & kvm.Counted
	if have&kvm.FlagSet == 0 { // what is on, is on for good
		m.can, have = 0, have&^(kvm.Counted&^cfg.Traps)
	}
	flags := have & (kvm.FlagTSC | kvm.FlagSet | kvm.Counted)
	if m.vm, err = sys.NewVM(m.Memory, flags, vcpu.AllowedMSRs); err != nil {
		return nil, err
	}
	m.cpuid = vcpu.Leaves(host)
	if m.cpu, err = vcpu.New(m.vm, m.Memory, m.cpuid); err != nil {
		return nil, err
	}
	c := m.cpu.Counters()
	c.Step, c.Cap = stepPerRead, maxAhead
	c.Set, m.every = cfg.Traps&have, TicksPerHarvest
	m.dirty = make([]uint64, (m.Memory.Pages()+63)/64)
	return m, nil
}

// Close frees everything; the machine must not run.
func (m *Machine) Close() error {
	var errs []error
	if m.points.events != nil {
		errs = append(errs, m.points.events.Close())
	}
	if m.cpu != nil {
		errs = append(errs, m.cpu.Close())
	}
	if m.vm != nil {
		errs = append(errs, m.vm.Close())
	}
	if m.Memory != nil {
		errs = append(errs, m.Memory.Close())
	}
	return errors.Join(errs...)
}

// CloseButMemory frees everything else and gives the memory to the caller.
func (m *Machine) CloseButMemory() (*mem.Memory, error) {
	memory := m.Memory
	m.Memory = nil
	return memory, m.Close()
}

// Boot puts the CPU at a loaded kernel's entry.
func (m *Machine) Boot(e *boot.Entry) error {
	var s kvm.State
	if err := m.cpu.State(&s); err != nil {
		return err
	}
	code := kvm.Segment{Limit: 0xffffffff, Selector: 0x10, Type: 11, Present: 1, S: 1, L: 1, G: 1}
	data := kvm.Segment{Limit: 0xffffffff, Selector: 0x18, Type: 3, Present: 1, S: 1, DB: 1, G: 1}
	s.Sregs.CS = code
	s.Sregs.DS, s.Sregs.ES, s.Sregs.FS, s.Sregs.GS, s.Sregs.SS = data, data, data, data, data
	s.Sregs.GDT = kvm.Table{Base: e.GDTBase, Limit: e.GDTLimit}
	s.Sregs.IDT = kvm.Table{}
	s.Sregs.CR0 = 0x80050033 // PE MP ET NE WP AM PG
	s.Sregs.CR3 = e.CR3
	s.Sregs.CR4 = 0x20            // PAE
	s.Sregs.EFER = 0x500          // LME LMA
	s.Sregs.APICBase = 0xfee00900 // enabled, bootstrap processor
	s.Regs = kvm.Regs{RIP: e.RIP, RSI: e.RSI, RSP: e.RSP, RFLAGS: 2}
	binary.LittleEndian.PutUint16(s.XSAVE[0:], 0x37f)   // FCW
	binary.LittleEndian.PutUint32(s.XSAVE[24:], 0x1f80) // MXCSR
	s.XSAVE[512] = 3                                    // XSTATE_BV: x87 and SSE
	if err := m.cpu.SetState(&s); err != nil {
		return err
	}
	return m.cpu.Settle()
}

// LogDirty switches the tracking of written pages on or off. It must be on
// before a log or a live state transfer begins.
func (m *Machine) LogDirty(on bool) error {
	if err := m.vm.LogDirty(on); err != nil {
		return err
	}
	m.logging = on
	clear(m.dirty)
	return m.collect()
}

// Track prepares an empty machine for following a log: pages written are
// logged, and no other ones are.
func (m *Machine) Track() error {
	if err := m.Memory.Populate(); err != nil {
		return err
	}
	if err := m.LogDirty(true); err != nil {
		return err
	}
	for _, r := range m.Memory.Regions() {
		for at := uint64(0); at < r.Size; at += trackPiece {
			if err := m.cpu.PreFault(r.Guest+at, min(trackPiece, r.Size-at)); err != nil {
				return err
			}
			runtime.Gosched()
		}
	}
	return nil
}

// trackPiece is how much memory Track maps at once, in bytes: a small host has
// other work meanwhile.
const trackPiece = 4 << 20

// collect merges all pages written so far into m.dirty.
func (m *Machine) collect() error {
	set := m.dirty
	if m.watched != nil {
		set = make([]uint64, len(m.dirty))
		defer m.watch(set)
	}
	m.Memory.TakeDirty(set)
	if !m.logging {
		return nil
	}
	return m.vm.TakeDirty(set)
}

// SetLogged says whether this execution is recorded or replayed. From where it
// is switched on, pages written count as written since then; both copies do it
// at the position where their log begins, with LogDirty on.
func (m *Machine) SetLogged(on bool) error {
	m.logged = on
	m.memo.Forget()
	m.harvest = m.every // the first tick harvests: what came before it may be much
	m.window.restart(m.Clock())
	m.window.At = m.Clock()
	if on {
		if m.trail.ring == nil {
			m.trail.ring = make([]Crumb, trailLength)
		}
		m.trail.n = 0
	}
	return m.clean()
}

// TakeDirty merges the pages written since the last call into set and forgets
// them: the rounds of a live transfer. It isn't for a logged execution, whose
// resyncs need what it takes.
func (m *Machine) TakeDirty(set []uint64) error {
	if err := m.collect(); err != nil {
		return err
	}
	for i, w := range m.dirty {
		set[i] |= w
	}
	clear(m.dirty)
	return nil
}

// SetFresh makes time-stamp reads ask for a new anchor when the last one is
// older than d; 0 for never, as on a secondary.
func (m *Machine) SetFresh(d time.Duration) error {
	m.fresh = 0
	m.cpu.Counters().Fresh = 0
	if d == 0 {
		return nil
	}
	khz, err := m.cpu.TSCKHz()
	if err != nil {
		return err
	}
	m.fresh = max(1, uint64(d.Microseconds())*khz/1000)
	m.cpu.Counters().Fresh = kvm.HostTSC() + m.fresh
	return nil
}

// Position is the number of counted exits.
func (m *Machine) Position() uint64 { return m.pos }

// Fingerprint is the rolling hash up to Position.
func (m *Machine) Fingerprint() uint64 { return m.hash }

// Base is where a log that starts now starts from.
func (m *Machine) Base() event.Base {
	return event.Base{Pos: m.pos, Now: m.cpu.Counters().Base, Traps: m.cpu.Counters().Traps}
}

// Clock is the guest's clock: the last value that it can have read, ns.
func (m *Machine) Clock() uint64 { return m.cpu.Counters().Derived() }

// Deadline is when the next timer is due, ns of guest time.
func (m *Machine) Deadline() (uint64, bool) { return m.Board.Deadline() }

// Waiting says that the guest has halted and no interrupt is there to wake it:
// it must not be run before an input made one.
func (m *Machine) Waiting() bool { return m.halted && !m.Board.Pending() }

// Ended is PowerOff or Reset when the guest has switched the machine off or
// reset it, and 0 before.
func (m *Machine) Ended() board.EffectKind { return m.off }

// Kick stops a running guest wherever it is; Run returns Async. Any thread may
// call it.
func (m *Machine) Kick() { m.cpu.Kick() }

// KickWhen kicks the guest when ctx ends. Behind stop no kick comes any more, so that
// the machine can be closed.
func (m *Machine) KickWhen(ctx context.Context) (stop func()) { return when(ctx, m.Kick) }

func when(ctx context.Context, kick func()) (stop func()) {
	kicked := make(chan struct{})
	prevent := context.AfterFunc(ctx, func() {
		kick()
		close(kicked)
	})
	return func() {
		if !prevent() {
			<-kicked
		}
	}
}

// RequestStop stops a running guest at its next counted trap. Any thread may
// call it.
func (m *Machine) RequestStop() { m.cpu.RequestStop() }

// TakeEffects returns what the guest did to the world since the last call.
func (m *Machine) TakeEffects() []board.Effect {
	e := m.effects
	m.effects = nil
	return e
}

// Apply applies an input at the current position.
func (m *Machine) Apply(e event.Entry) error {
	if e.Kind != event.Digest {
		m.digest = nil
	}
	switch e.Kind {
	case event.Time:
		// Timers fire at Deadline entries only, one by one.
		m.anchor(e.Now)
		m.follow()
		m.Board.Look(virtio.AtTime)
		m.sweep()
	case event.Jump:
		m.anchor(e.Now)
		m.Board.Advance(e.Now)
		m.Board.Look(virtio.AtTick)
		m.sweep()
	case event.Deadline:
		d, armed := m.Board.Deadline()
		if !armed {
			return m.diverged("timer", "a timer is due, but none is set")
		}
		m.anchor(d)
		m.Board.Advance(d)
		m.Board.Look(virtio.AtTick)
		m.sweep()
		if err := m.tick(); err != nil {
			return err
		}
	case event.Frame:
		m.Board.NetReceive(e.Data)
	case event.DiskDone:
		if err := m.Board.DiskDone(e.Disk, e.ID, e.Status, e.Data); err != nil {
			return m.diverged("disk", err.Error())
		}
	case event.Vsock:
		m.Board.VsockReceive(e.Data)
	case event.VsockReset:
		m.Board.VsockReset()
	case event.Console:
		m.Board.ConsoleInput(e.Data)
	case event.Power:
		m.Board.PowerButton()
	case event.Resync:
		return m.resync(e.Data)
	case event.Point:
		return m.seek(e)
	case event.Traps:
		return m.setTraps(e.Set, e.Every)
	case event.Digest:
		return m.compareDigest(e.Data)
	case event.Behind:
		m.behind = true
	default:
		return fmt.Errorf("%v can't be applied", e.Kind)
	}
	m.effects = append(m.effects, m.Board.TakeEffects()...)
	return nil
}

// anchor sets the guest's clock, which never goes back.
func (m *Machine) anchor(now uint64) {
	c := m.cpu.Counters()
	c.Base, c.Reads = max(now, c.Derived()), 0
	if m.fresh != 0 {
		c.Fresh = kvm.HostTSC() + m.fresh
	}
}

// steppedFlags are RFLAGS' RF and TF.
const steppedFlags = 0x10100

// fold mixes an exit into the fingerprint.
func (m *Machine) fold(reason uint32, addr uint64, data []byte) {
	c := m.cpu.Counters()
	b := binary.LittleEndian.AppendUint64(m.scratch[:0], m.hash)
	b = binary.LittleEndian.AppendUint32(b, reason)
	b = binary.LittleEndian.AppendUint64(b, addr)
	b = binary.LittleEndian.AppendUint64(b, c.Traps)
	b = binary.LittleEndian.AppendUint64(b, c.Reads)
	b = append(b, data...)
	b = append(b, m.cpu.RegsBytes()...)
	// RFLAGS is the last register. Its RF and TF bits depend on whether the
	// host stepped over an instruction.
	flags := b[len(b)-8:]
	binary.LittleEndian.PutUint64(flags, binary.LittleEndian.Uint64(flags)&^steppedFlags)
	m.hash = xxh3.Hash(b)
	m.scratch = b
	m.step = Step{Reason: reason, Addr: addr, Data: value(data), Traps: c.Traps, Reads: c.Reads, Regs: *m.cpu.Regs()}
}

// foldEffects mixes what the exit made leave into the fingerprint.
func (m *Machine) foldEffects(effects []board.Effect) {
	for i := range effects {
		e := &effects[i]
		b := binary.LittleEndian.AppendUint64(m.scratch[:0], m.hash)
		b = append(b, byte(e.Kind), byte(e.Disk), byte(e.Request.Op))
		b = binary.LittleEndian.AppendUint64(b, e.Request.ID)
		b = binary.LittleEndian.AppendUint64(b, e.Request.Sector)
		b = binary.LittleEndian.AppendUint64(b, uint64(e.Request.Len))
		b = append(b, e.Request.Data...)
		b = append(b, e.Data...)
		m.hash = xxh3.Hash(b)
		m.scratch = b
	}
}
