package pair

import (
	"errors"
	"fmt"
	"time"
)

// Level is the output rule's level.
type Level uint8

// The levels: what a secondary must have done with the log up to an effect
// before that effect may leave.
const (
	LevelVerified Level = iota // executed it, with equal fingerprints
	LevelReceived              // hold it
)

// Config is what a machine is told once. Zero durations and counts get the
// defaults that their comments name.
type Config struct {
	Self, Peer HostID
	VM         UUID
	Level      Level

	Heartbeat    time.Duration // between heartbeats; 50 ms
	SuspectAfter int           // heartbeats missed until the peer is suspected; 3
	Grace        time.Duration // how long a copy without state waits for one with state; 3 s
	LinkPatience time.Duration // how long a secondary without a log stream leaves the claim to a primary that is heard; 600 ms
	Retry        time.Duration // until an arbiter operation or a fence is tried again; 100 ms
	VolumeCheck  time.Duration // between reads of the block; 1 s
	VolumeStale  time.Duration // without an answer, until the volume counts as lost; 3 s
	Reseed       time.Duration // after a failed seeding, until the next; 1 s

	// PausePatience is how long a guest stands still for a switchover until that
	// is given up; 2 s.
	PausePatience time.Duration

	// MoveAgain is how long a VM whose host is drained stays after a switchover
	// was given up, until the next; 10 s.
	MoveAgain time.Duration
}

func (c *Config) setDefaults() {
	if c.SuspectAfter == 0 {
		c.SuspectAfter = 3
	}
	for _, d := range []struct {
		at  *time.Duration
		def time.Duration
	}{
		{&c.Heartbeat, 50 * time.Millisecond},
		{&c.Grace, 3 * time.Second},
		{&c.LinkPatience, 600 * time.Millisecond},
		{&c.Retry, 100 * time.Millisecond},
		{&c.VolumeCheck, time.Second},
		{&c.VolumeStale, 3 * time.Second},
		{&c.Reseed, time.Second},
		{&c.PausePatience, 2 * time.Second},
		{&c.MoveAgain, 10 * time.Second},
	} {
		if *d.at == 0 {
			*d.at = d.def
		}
	}
}

// Machine is one copy's side of the protocol. It isn't safe for concurrent
// use.
type Machine struct {
	cfg         Config
	incarnation uint64

	now       time.Duration
	started   bool // the first tick came
	startedAt time.Duration
	role      Role
	since     time.Duration // role was entered
	out       []Output
	tell      bool // a heartbeat is due at once
	beatAt    time.Duration

	block    Block // the newest that is known; Epoch 0: none
	blockAt  time.Duration
	backAt   time.Duration // the volume answered again after it was lost
	readAt   time.Duration // next regular read
	reading  uint64        // op of the read that a decision waits for, 0: none
	lost     bool          // the volume, as last told to people
	trouble  error         // why the volume couldn't be used, last time
	pending  *swap
	ops      uint64
	nonces   uint64
	seeds    uint64
	sequence uint64

	peer    peerView
	link    bool
	linkInc uint64 // incarnation at the stream's other end
	torn    bool   // the stream that carries the present seeding broke
	tornAt  time.Duration

	seed     Seed   // present or last seeding, either side
	seedPeer uint64 // live: incarnation of the seeded copy
	seedHold time.Duration
	gatedAt  uint64 // Gating: LSN that the secondary has to reach
	gated    bool
	progress Progress // secondary: own; live: the secondary's

	final   bool // Consuming: the primary is gone for good
	boot    bool // Starting, Fencing: there is no state, boot from disk
	fenceAt time.Duration
	fencing bool // a Fence is under way
	doubt   bool // Alone: the block may have been given to the other host

	// Of a switchover; see handover.go.
	pausing     uint64 // Pausing: op of the Pause
	paused      bool   // Pausing: the guest stands still, at the log's end
	logEnd      uint64 // and that is the log's length
	former      Seed   // the seeding before the switchover that began the present one
	successor   uint64 // secondary: counter of the seeding that a switchover would begin; 0: none
	ready       bool   // secondary: may write to the volume
	registering uint64 // secondary: op of the Register under way, 0: none
	registerAt  time.Duration
	called      bool // secondary: the primary says that it has yielded
	lookAt      time.Duration

	drained bool          // this host is to have no copy
	moveAt  time.Duration // drained: no switchover before
	idle    bool          // drained: people were told that the VM isn't started here

	unprotected bool // the VM is to run without a secondary

	reannounce bool // live: the former primary may have sent since Announce

	wantStart bool
	wantStop  string        // why the VM is to stop, "": it isn't
	hold      time.Duration // Standby: no cold start before
}

// New returns a machine in role Standby. incarnation is a number that no other
// process of either host uses or ever used, such as 64 random bits.
func New(cfg Config, incarnation uint64) (*Machine, error) {
	switch {
	case cfg.Self == 0 || cfg.Peer == 0 || cfg.Self == cfg.Peer:
		return nil, fmt.Errorf("pair: hosts %v and %v: need two different ones", cfg.Self, cfg.Peer)
	case incarnation == 0:
		return nil, errors.New("pair: incarnation 0 is reserved")
	case cfg.VM == UUID{}:
		return nil, errors.New("pair: the VM has no UUID")
	}
	cfg.setDefaults()
	return &Machine{cfg: cfg, incarnation: incarnation, role: Standby}, nil
}

// Role is the machine's role.
func (m *Machine) Role() Role { return m.role }

// Block is the newest arbiter block that the machine knows; Epoch 0: none yet.
func (m *Machine) Block() Block { return m.block }

// CurrentSeed is the present or last seeding.
func (m *Machine) CurrentSeed() Seed { return m.seed }

// Protected says that the death of either host loses nothing, and that the
// other one can go on by itself.
func (m *Machine) Protected() bool {
	switch m.role {
	case Primary, Pausing, Yielding:
		return !m.peer.msg.VolumeLost
	}
	return false
}

// Step takes one input and returns what is to be done, in order. Inputs
// before the first Tick, and those that don't fit the role, change nothing
// but what the package comment says.
func (m *Machine) Step(in Input) []Output {
	m.out = nil
	if t, ok := in.(Tick); ok {
		m.tick(t.Now)
	} else if m.started {
		m.input(in)
	}
	if m.started {
		for range roles { // a step crosses few roles; the bound is for bugs
			if !m.advance() {
				break
			}
		}
		if m.tell {
			m.beat()
		}
	}
	out := m.out
	m.out = nil
	return out
}

func (m *Machine) input(in Input) {
	switch in := in.(type) {
	case Received:
		m.receive(in)
	case LinkUp:
		m.link, m.linkInc = true, in.Incarnation
		if m.peer.msg.Incarnation != in.Incarnation {
			m.peer = peerView{heard: m.peer.heard}
		}
	case LinkDown:
		m.dropLink()
	case ArbiterDone:
		m.arbiterDone(in)
	case FenceDone:
		m.fenceDone(in.Err)
	case SeedBegin:
		m.seedBegin(in.Seed)
	case Seeded:
		m.seeded(in.Seed)
	case Gated:
		if m.role == Gating && !m.gated {
			m.gated, m.gatedAt = true, in.LSN
		}
	case Progress:
		m.progress.Received = max(m.progress.Received, in.Received)
		m.progress.Verified = max(m.progress.Verified, in.Verified)
	case Consumed:
		if m.role == Consuming {
			m.claim("all of the log that came is executed")
		}
	case Registered:
		m.registered(in)
	case Paused:
		m.pausedAt(in)
	case Faulted:
		m.fault(in.Fault)
	case Command:
		m.command(in.Verb)
	}
}

func (m *Machine) tick(now time.Duration) {
	if !m.started {
		m.started, m.now, m.since, m.startedAt = true, now, now, now
		m.readAt, m.beatAt = now, now
		m.event(AboutRole, "", "waits for a peer")
	}
	// A machine that slept can't know who was silent meanwhile: of the time
	// between two ticks, no more than a heartbeat counts as anybody's silence.
	if late := now - m.now - m.cfg.Heartbeat; late > 0 {
		m.peer.heard += late
		for i := range m.peer.pathHeard {
			m.peer.pathHeard[i] += late
		}
		m.blockAt += late
	}
	m.now = max(m.now, now)
	if m.now >= m.beatAt {
		m.tell = true
	}
	m.retry()
	if m.now >= m.readAt {
		m.read()
	}
	m.checkVolume()
}

// advance makes at most one transition that the present facts ask for, and
// says whether it did.
func (m *Machine) advance() bool {
	switch m.role {
	case Standby:
		return m.advanceStandby()
	case Receiving, Secondary, Diverged, Consuming, Claiming:
		return m.advanceSecondary()
	case Alone, Seeding, Gating, Pairing, Primary, Resolving, Pausing, Yielding, Stopping:
		return m.advanceLive()
	}
	return false
}

func (m *Machine) emit(o Output) { m.out = append(m.out, o) }

// halt destroys the local copy and goes back to Standby.
func (m *Machine) halt(k Kind, format string, args ...any) {
	if m.role.Live() {
		m.emit(Gate{GateClosed})
	}
	m.endSeed()
	m.emit(Halt{})
	m.pending, m.reading = nil, 0
	m.final, m.boot, m.fencing, m.doubt, m.gated = false, false, false, false, false
	m.wantStop = ""
	m.withdrawSuccessor()
	m.change(k, Standby, "", format, args...)
	m.read()
}

// endSeed ends the present seeding, if there is one.
func (m *Machine) endSeed() {
	switch m.role {
	case Receiving, Secondary, Diverged, Consuming, Claiming, Seeding, Gating, Pairing, Primary, Resolving, Pausing, Yielding:
		m.emit(EndSeed{m.seed})
		m.progress = Progress{}
		m.dropLink()
	}
}

func (m *Machine) dropLink() {
	m.link = false
	if !m.torn {
		m.torn, m.tornAt = true, m.now
	}
}
