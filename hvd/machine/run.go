package machine

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/kvm"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/virtio"
)

// Run executes to the next exit; see lockstep.Machine. An error that is
// ErrStopped is the guest's own end, which the other copy comes to as well.
func (m *Machine) Run(stop uint64) (lockstep.Exit, error) {
	if m.points.making {
		return m.runToPoint(stop)
	}
	return m.run(stop)
}

func (m *Machine) run(stop uint64) (lockstep.Exit, error) {
	exited, err := m.prepare(stop)
	if err == nil && !exited {
		exited, err = m.enter()
	}
	if err != nil {
		return lockstep.Exit{}, err
	}
	if !exited {
		return lockstep.Exit{Kind: lockstep.Async}, nil
	}
	return m.exit(m.cpu.ExitReason())
}

// prepare makes the CPU ready to run; exited says that it has come to a further
// exit already.
func (m *Machine) prepare(stop uint64) (exited bool, err error) {
	if m.Waiting() {
		return false, m.diverged("halt", "it has halted with no interrupt pending, but the primary runs on")
	}
	m.halted, m.digest = false, nil
	if exited, err = m.inject(); err == nil && !exited {
		m.cpu.SetStop(stop)
	}
	return exited, err
}

// enter runs the guest to a counted exit, or to where the host interrupts it;
// exited is false then, and the guest is between two instructions.
func (m *Machine) enter() (exited bool, err error) {
	m.stepped = false
	err = m.cpu.Enter()
	if errors.Is(err, kvm.ErrInterrupted) {
		// A kick may come first of all, with an access still to be finished.
		return m.cpu.Finish()
	}
	return err == nil, err
}

// exit counts and answers an exit.
func (m *Machine) exit(reason uint32) (lockstep.Exit, error) {
	m.pos++
	m.entered, m.whole, m.behind = false, false, false
	m.Board.TakeEOI()
	if int(reason) < len(m.Exits) {
		m.Exits[reason]++
	}
	if err := m.answer(reason); err != nil {
		return lockstep.Exit{}, fmt.Errorf("exit %d at %#x: %w", m.pos, m.cpu.Regs().RIP, err)
	}
	m.Board.Look(pause(reason))
	effects := m.Board.TakeEffects()
	m.foldEffects(effects)
	m.effects = append(m.effects, effects...)
	for i := range effects {
		if k := effects[i].Kind; k == board.PowerOff || k == board.Reset {
			m.off = k
		}
	}
	m.step.Position, m.step.Fingerprint = m.pos, m.hash
	if m.Trace != nil {
		m.Trace(m.step)
	}
	if m.logged {
		m.trail.drop(m.step.crumb())
	}
	if reason == kvm.ExitTrap || reason == kvm.ExitTSC {
		return lockstep.Exit{Kind: lockstep.Trapped, Traps: m.cpu.Counters().Traps}, nil
	}
	return lockstep.Exit{Kind: lockstep.Sync}, nil
}

// pause is what an exit is to the devices.
func pause(reason uint32) virtio.Pause {
	switch reason {
	case kvm.ExitHLT:
		return virtio.AtHalt
	case kvm.ExitTrap, kvm.ExitTSC, kvm.ExitIRQWindowOpen:
		return virtio.AtTrap
	}
	return virtio.AtExit
}

// inject hands the interrupt that is pending at this position to the CPU, or
// asks for an exit as soon as it can take one; and it offers an EOI without an
// exit. An access that the last exit asked for is finished first: it may end in a
// fault or, in a guest that single-steps itself, in a trap, and KVM forgets an
// interrupt that was injected before those. It may go on with a further exit,
// too: exited.
func (m *Machine) inject() (exited bool, err error) {
	if m.entered {
		return false, nil
	}
	m.cpu.SetCR8(m.Board.CR8())
	m.cpu.SetWindow(false)
	taken := false
	if m.Board.Pending() {
		if exited, err := m.cpu.Finish(); exited || err != nil {
			return exited, err
		}
		if taken = m.cpu.Ready(); taken {
			if err := m.cpu.Interrupt(m.Board.Ack()); err != nil {
				return false, err
			}
		}
	}
	leave := m.Board.OfferEOI(taken, m.behind)
	m.leaves = leave || m.Board.Pending()
	m.cpu.SetWindow(m.leaves)
	m.entered, m.behind = true, false
	return false, nil
}

// answer does what an exit asks for and folds it into the fingerprint.
func (m *Machine) answer(reason uint32) error {
	if reason == kvm.ExitIO || reason == kvm.ExitMMIO {
		m.follow()
	}
	switch reason {
	case kvm.ExitIO:
		return m.port()
	case kvm.ExitMMIO:
		x := m.cpu.MMIO()
		if x.Write {
			m.fold(reason, x.Addr, x.Data)
			m.Board.MMIOWrite(x.Addr, len(x.Data), value(x.Data))
		} else {
			put(x.Data, m.Board.MMIORead(x.Addr, len(x.Data)))
			m.fold(reason, x.Addr, x.Data)
		}
	case kvm.ExitHLT:
		m.halted = true
		m.fold(reason, 0, nil)
		if !m.cpu.IF() {
			return fmt.Errorf("%w: HLT with interrupts off", ErrStopped)
		}
	case kvm.ExitIRQWindowOpen, kvm.ExitSetTPR, kvm.ExitTrap, kvm.ExitTSC:
		m.fold(reason, 0, nil)
	case kvm.ExitReadMSR, kvm.ExitWriteMSR:
		// The instruction may end in a fault, which must be queued before an
		// interrupt is: KVM keeps one event for the entry, and the fault would
		// take the place of an interrupt that was injected first.
		m.msr(reason == kvm.ExitWriteMSR)
		if err := m.cpu.Settle(); err != nil {
			return err
		}
	case kvm.ExitShutdown:
		m.fold(reason, 0, nil)
		return fmt.Errorf("%w: triple fault", ErrStopped)
	case kvm.ExitFailEntry, kvm.ExitInternalError, kvm.ExitUnknown:
		return fmt.Errorf("KVM can't run the guest: exit %d, hardware reason %#x", reason, m.cpu.HardwareReason())
	default:
		return fmt.Errorf("unknown exit %d, hardware reason %#x", reason, m.cpu.HardwareReason())
	}
	if reason == kvm.ExitMMIO || reason == kvm.ExitIO {
		return nil
	}
	// A write to CR8 shows at the next exit of whatever kind.
	m.Board.SetCR8(m.cpu.CR8())
	return nil
}

// follow brings the board's clock up to the CPU's, so that the guest sees its
// counters agree with its time-stamps, but not to the next deadline: timers
// fire at their entries only.
func (m *Machine) follow() {
	now := m.Clock()
	if d, armed := m.Board.Deadline(); armed {
		now = min(now, d-1)
	}
	m.Board.Advance(now)
}

// port answers a port access; string instructions make one exit for several
// items.
func (m *Machine) port() error {
	x, err := m.cpu.IO()
	if err != nil {
		return err
	}
	if !x.In {
		m.fold(kvm.ExitIO, uint64(x.Port), x.Data)
	}
	for d := x.Data; len(d) >= x.Size && x.Size > 0; d = d[x.Size:] {
		if x.In {
			put(d[:x.Size], uint64(m.Board.PortIn(x.Port, x.Size)))
		} else {
			m.Board.PortOut(x.Port, x.Size, uint32(value(d[:x.Size])))
		}
	}
	if x.In {
		m.fold(kvm.ExitIO, uint64(x.Port)|1<<16, x.Data)
	}
	return nil
}

// The MSRs that are answered here; every other one doesn't exist.
const (
	msrTSC       = 0x10
	msrAPICBase  = 0x1b
	msrUcode     = 0x8b
	msrMiscEn    = 0x1a0
	msrHWCR      = 0xc0010015
	msrIntPend   = 0xc0010055 // AMD: interrupt pending; zero says that erratum 400 is not at work
	msrDECfg     = 0xc0011029
	msrPlatform  = 0x17
	msrEOIFlag   = 0x4b564d04 // MSR_KVM_PV_EOI_EN
	apicBaseBits = 0xfee00900
)

// msr answers an access to an MSR that the guest can't reach by itself.
func (m *Machine) msr(write bool) {
	x := m.cpu.MSR()
	var v uint64
	fault := false
	switch x.Index {
	case msrTSC:
		// The same clock as RDTSC; a write doesn't move it.
		if !write {
			v = m.cpu.Counters().Next()
		}
	case msrAPICBase:
		v = apicBaseBits
	case msrUcode, msrMiscEn, msrHWCR, msrIntPend, msrPlatform:
		// Read as zero, as on a machine with nothing special; writes are lost.
	case msrEOIFlag:
		if write {
			fault = !m.Board.SetEOIFlag(x.Data)
		} else {
			v = m.Board.EOIFlag()
		}
	case msrDECfg:
		v = 2 // LFENCE serializes, which Linux sets on AMD
	default:
		fault = true
	}
	m.cpu.AnswerMSR(v, fault)
	data := binary.LittleEndian.AppendUint64(nil, v)
	if write {
		data = binary.LittleEndian.AppendUint64(nil, x.Data)
	}
	m.fold(kvm.ExitReadMSR, uint64(x.Index), data)
}

// value reads a little-endian value of 1 to 8 bytes.
func value(b []byte) uint64 {
	var v [8]byte
	copy(v[:], b)
	return binary.LittleEndian.Uint64(v[:])
}

// put stores one.
func put(b []byte, v uint64) {
	var t [8]byte
	binary.LittleEndian.PutUint64(t[:], v)
	copy(b, t[:])
}
