package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/duet-ft/duet/hvd/iscsi"
)

// Memory is a volume in memory that several simulated hosts share, each by a
// MemorySession of its own. It has a write cache, so that a power cut can lose
// what wasn't synced, and persistent reservations of the one type that is used
// (write exclusive, registrants only). Its methods may be called concurrently.
type Memory struct {
	mu         sync.Mutex
	blocks     uint64
	blockSize  int
	data       map[uint64][]byte // blocks that aren't zero
	unsynced   map[uint64][]byte // what such a block held at the last Sync
	keys       map[string]registered
	holder     string // port that holds the reservation, if reserved
	reserved   bool
	generation uint32
}

// registered is a registration of a port.
type registered struct {
	key  uint64
	port iscsi.Port
}

// NewMemory makes a volume of zeros.
func NewMemory(blocks uint64, blockSize int) *Memory {
	return &Memory{
		blocks: blocks, blockSize: blockSize,
		data: map[uint64][]byte{}, unsynced: map[uint64][]byte{}, keys: map[string]registered{},
	}
}

// Op is a kind of access to a Memory.
type Op byte

// The accesses that a fault can hit.
const (
	OpRead Op = iota
	OpWrite
	OpSync
	OpCompareAndWrite
	OpReserveIn  // looking at registrations and the reservation
	OpReserveOut // changing them
)

// Fault is what happens to an access.
type Fault struct {
	// Err is returned instead of success, if it isn't nil.
	Err error
	// Done executes the access all the same: its answer is lost. Err should
	// wrap iscsi.ErrUnknownOutcome then.
	Done bool
	// Blocks, if not zero, executes only that many blocks of a write.
	Blocks int
}

// LostReply is a Fault: executed, but nobody knows.
func LostReply() Fault { return Fault{Err: iscsi.ErrUnknownOutcome, Done: true} }

// LostRequest is a Fault: not executed, and nobody knows.
func LostRequest() Fault { return Fault{Err: iscsi.ErrUnknownOutcome} }

// MemorySession is one host's access to a Memory. It has the methods of
// iscsi.Session that matter to volume and arbiter.
type MemorySession struct {
	m    *Memory
	port iscsi.Port
	// Fault decides about each access before it is executed, if it isn't nil.
	// It may block, and must not use the session. Set it before use.
	Fault func(op Op, lba uint64, blocks int) Fault
}

var _ Blocks = (*MemorySession)(nil)

// Session returns an access for the initiator port of that name.
func (m *Memory) Session(name string) *MemorySession {
	return &MemorySession{m: m, port: iscsi.Port{Initiator: name}}
}

// Crash is a power cut of the target: blocks written since the last Sync fall
// back to what they were then, but for those that keep chooses. Reservations
// are gone.
func (m *Memory) Crash(keep func(lba uint64) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, lba := range slices.Sorted(maps.Keys(m.unsynced)) { // in order: keep may be a seeded generator
		if keep == nil || !keep(lba) {
			m.data[lba] = m.unsynced[lba]
		}
	}
	clear(m.unsynced)
	clear(m.keys)
	m.holder, m.reserved = "", false
}

// run lets Fault decide, and executes f with the number of blocks to write.
func (s *MemorySession) run(ctx context.Context, op Op, lba uint64, n int, f func(blocks int) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	blocks := n / s.m.blockSize
	var fault Fault
	if s.Fault != nil {
		fault = s.Fault(op, lba, blocks)
	}
	if fault.Err != nil && !fault.Done && fault.Blocks == 0 {
		return fault.Err
	}
	if fault.Blocks > 0 {
		blocks = min(blocks, fault.Blocks)
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if n%s.m.blockSize != 0 || lba > s.m.blocks || uint64(n/s.m.blockSize) > s.m.blocks-lba {
		return fmt.Errorf("blocks %d to %d: %w", lba, lba+uint64(n/s.m.blockSize), iscsi.ErrRange)
	}
	if err := f(blocks); err != nil {
		return err
	}
	return fault.Err
}

// Capacity implements Blocks.
func (s *MemorySession) Capacity() (uint64, int) { return s.m.blocks, s.m.blockSize }

// Read implements Blocks.
func (s *MemorySession) Read(ctx context.Context, lba uint64, p []byte) error {
	return s.run(ctx, OpRead, lba, len(p), func(int) error {
		s.m.read(lba, p)
		return nil
	})
}

// Write implements Blocks.
func (s *MemorySession) Write(ctx context.Context, lba uint64, p []byte) error {
	return s.run(ctx, OpWrite, lba, len(p), func(blocks int) error {
		if !s.mayWrite() {
			return iscsi.ErrReservationConflict
		}
		s.m.write(lba, p[:blocks*s.m.blockSize])
		return nil
	})
}

// Sync implements Blocks.
func (s *MemorySession) Sync(ctx context.Context) error {
	return s.run(ctx, OpSync, 0, 0, func(int) error {
		if !s.mayWrite() {
			return iscsi.ErrReservationConflict
		}
		clear(s.m.unsynced)
		return nil
	})
}

// CompareAndWrite implements Blocks.
func (s *MemorySession) CompareAndWrite(ctx context.Context, lba uint64, old, new []byte) (swapped bool, err error) {
	if len(old) != len(new) || len(old) == 0 {
		return false, fmt.Errorf("COMPARE AND WRITE of %d and %d bytes", len(old), len(new))
	}
	err = s.run(ctx, OpCompareAndWrite, lba, len(old), func(int) error {
		if !s.mayWrite() {
			return iscsi.ErrReservationConflict
		}
		now := make([]byte, len(old))
		s.m.read(lba, now)
		if swapped = bytes.Equal(now, old); swapped {
			s.m.write(lba, new)
		}
		return nil
	})
	return swapped && err == nil, err
}

func (m *Memory) read(lba uint64, p []byte) {
	clear(p)
	for i := 0; i < len(p); i += m.blockSize {
		copy(p[i:], m.data[lba])
		lba++
	}
}

func (m *Memory) write(lba uint64, p []byte) {
	for i := 0; i < len(p); i += m.blockSize {
		if _, ok := m.unsynced[lba]; !ok {
			m.unsynced[lba] = m.data[lba]
		}
		m.data[lba] = bytes.Clone(p[i : i+m.blockSize])
		lba++
	}
}

// mayWrite applies the reservation.
func (s *MemorySession) mayWrite() bool {
	_, in := s.m.keys[s.name()]
	return !s.m.reserved || in
}

func (s *MemorySession) name() string { return strings.ToLower(s.port.Initiator) }

// Port is the port that registrations belong to.
func (s *MemorySession) Port() iscsi.Port { return s.port }

// Registered is iscsi.Session.Registered.
func (s *MemorySession) Registered(ctx context.Context) (in bool, err error) {
	err = s.run(ctx, OpReserveIn, 0, 0, func(int) error {
		_, in = s.m.keys[s.name()]
		return nil
	})
	return in, err
}

// Registrations is iscsi.Session.Registrations; in the order of the ports' names.
func (s *MemorySession) Registrations(ctx context.Context) (list []iscsi.Registration, generation uint32, err error) {
	err = s.run(ctx, OpReserveIn, 0, 0, func(int) error {
		for _, name := range slices.Sorted(maps.Keys(s.m.keys)) {
			r := s.m.keys[name]
			list = append(list, iscsi.Registration{Key: r.key, Port: r.port, Holder: s.m.reserved && s.m.holder == name})
		}
		generation = s.m.generation
		return nil
	})
	return list, generation, err
}

// Join is iscsi.Session.Join, in one step.
func (s *MemorySession) Join(ctx context.Context) error {
	return s.run(ctx, OpReserveOut, 0, 0, func(int) error {
		if _, in := s.m.keys[s.name()]; !in {
			s.m.generation++
			s.m.keys[s.name()] = registered{uint64(s.m.generation), s.port}
		}
		if !s.m.reserved {
			s.m.reserved, s.m.holder = true, s.name()
		}
		return nil
	})
}

// Fence is iscsi.Session.Fence, in one step.
func (s *MemorySession) Fence(ctx context.Context, victim iscsi.Port) error {
	return s.run(ctx, OpReserveOut, 0, 0, func(int) error {
		if strings.EqualFold(victim.Initiator, s.port.Initiator) {
			return errors.New("a session can't fence itself")
		}
		if _, in := s.m.keys[s.name()]; !in {
			return fmt.Errorf("%w: our own registration was removed", iscsi.ErrFenced)
		}
		delete(s.m.keys, strings.ToLower(victim.Initiator))
		s.m.generation++
		if !s.m.reserved || s.m.holder == strings.ToLower(victim.Initiator) {
			s.m.reserved, s.m.holder = true, s.name()
		}
		return nil
	})
}

// Leave is iscsi.Session.Leave.
func (s *MemorySession) Leave(ctx context.Context) error {
	return s.run(ctx, OpReserveOut, 0, 0, func(int) error {
		delete(s.m.keys, s.name())
		if s.m.holder == s.name() {
			s.m.holder, s.m.reserved = "", false
		}
		return nil
	})
}
