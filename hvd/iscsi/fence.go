package iscsi

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Port is an initiator port: what a registration belongs to.
type Port struct {
	Initiator string
	ISID      [6]byte
	// AnyISID matches all sessions of the initiator; some targets don't tell
	// the ISID either, so give each session an initiator name of its own.
	AnyISID bool
}

func (p Port) matches(q Port) bool {
	return strings.EqualFold(p.Initiator, q.Initiator) && (p.AnyISID || q.AnyISID || p.ISID == q.ISID)
}

// Port returns the session's own port.
func (s *Session) Port() Port { return Port{Initiator: s.cfg.Initiator, ISID: s.cfg.ISID} }

// Registration is one registered initiator port.
type Registration struct {
	Key    uint64
	Port   Port
	Holder bool // of the reservation
}

// Registrations lists who is registered, with the generation (READ FULL STATUS).
// On targets that can't tell the ports (tgt), these are empty.
func (s *Session) Registrations(ctx context.Context) ([]Registration, uint32, error) {
	list, generation, _, err := s.registrations(ctx)
	return list, generation, err
}

// registrations also tells whether the target knows ports.
func (s *Session) registrations(ctx context.Context) (list []Registration, generation uint32, ports bool, err error) {
	p := make([]byte, maxReserveIn)
	c := cdbReserve(scsiReserveIn, 3, 0, uint32(len(p)))
	t, err := s.exec(ctx, command{op: "READ FULL STATUS", cdb: c, in: p, short: true})
	if errors.Is(err, ErrUnsupported) {
		keys, generation, err := s.Keys(ctx)
		for _, k := range keys {
			list = append(list, Registration{Key: k})
		}
		return list, generation, false, err
	}
	if err != nil {
		return nil, 0, false, err
	}
	list, generation, err = parseFullStatus(p[:t.got])
	if err != nil {
		return nil, 0, false, s.named(err)
	}
	return list, generation, true, nil
}

// Registered says whether this session's port is registered, by Join.
func (s *Session) Registered(ctx context.Context) (bool, error) {
	list, _, err := s.Registrations(ctx)
	return find(list, s.Port()) != nil, err
}

// find looks for a port: by name, or by the key that Join derives from it where
// the target doesn't tell names.
func find(list []Registration, p Port) *Registration {
	for i, r := range list {
		if r.Port.Initiator == "" && r.Key == portKey(p) || r.Port.Initiator != "" && p.matches(r.Port) {
			return &list[i]
		}
	}
	return nil
}

// portKey is the key of a port on targets that list keys only.
func portKey(p Port) uint64 {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s,i,%x", strings.ToLower(p.Initiator), p.ISID))
	return binary.BigEndian.Uint64(sum[:]) | 1
}

// Join makes this session one of those that may write: its port is registered,
// with a fresh random key unless it is already, and there is a reservation
// (write exclusive, registrants only) that keeps others out. It may be repeated.
//
// A host that may have been fenced must find out first (Registered, and the
// arbiter): Join lets it in again.
func (s *Session) Join(ctx context.Context) error {
	list, _, ports, err := s.registrations(ctx)
	if err != nil {
		return err
	}
	if find(list, s.Port()) == nil {
		key := portKey(s.Port())
		if ports {
			key = freshKey()
		}
		if err := s.Register(ctx, key); err != nil {
			return err
		}
	}
	return s.ensureReservation(ctx)
}

// ensureReservation takes the reservation if nobody holds it.
func (s *Session) ensureReservation(ctx context.Context) error {
	holder, typ, err := s.Reservation(ctx)
	if err != nil {
		return err
	}
	if holder == 0 && typ == 0 {
		list, _, err := s.Registrations(ctx)
		if err != nil {
			return err
		}
		own := find(list, s.Port())
		if own == nil {
			return s.named(fmt.Errorf("%w: our registration was removed", ErrFenced))
		}
		// Another host may be faster: then the conflict is what we want.
		if err := s.Reserve(ctx, own.Key); err != nil && !errors.Is(err, ErrReservationConflict) {
			return err
		}
		if _, typ, err = s.Reservation(ctx); err != nil {
			return err
		}
	}
	if typ != WriteExclusiveRegistrantsOnly {
		return s.named(fmt.Errorf("somebody holds a reservation of type %d; expected type %d (write exclusive, registrants only)", typ, WriteExclusiveRegistrantsOnly))
	}
	return nil
}

// maxFenceRounds limits the rounds of Fence.
const maxFenceRounds = 16

// Fence removes every registration of victim's port and returns when none is
// left: no write of it is executed any more. Its commands under way are aborted
// by PREEMPT AND ABORT, or, on targets that lack it (tgt), by PREEMPT and LOGICAL
// UNIT RESET, which aborts those of everybody. This session has to have joined.
//
// It goes by port and not by key, because keys can't be trusted: istgt
// (20111008) forgets to move the keys when it removes a registration from the
// middle of its list, so that ports end up listed under each other's keys. It
// decides by port who may write, and removes by the key that it lists: so the
// list is read, the key listed for the victim's port is preempted, and the list
// is read again. Fresh keys (Join) keep the listed keys distinct, which is what
// keeps others from being hit. On targets that do it right, this is one PREEMPT
// AND ABORT.
func (s *Session) Fence(ctx context.Context, victim Port) error {
	if victim.matches(s.Port()) {
		return s.named(errors.New("a session can't fence itself"))
	}
	for range maxFenceRounds {
		list, _, err := s.Registrations(ctx)
		if err != nil {
			return err
		}
		own, hit := find(list, s.Port()), find(list, victim)
		if own == nil {
			return s.named(fmt.Errorf("%w: our own registration was removed", ErrFenced))
		}
		if hit == nil {
			if s.noAbort.Load() {
				if err := s.abortOthers(ctx); err != nil {
					return fmt.Errorf("fenced, but its writes under way may still land: %w", err)
				}
			}
			return s.ensureReservation(ctx)
		}
		if !s.noAbort.Load() {
			err = s.preempt(ctx, own.Key, hit.Key, true)
			s.noAbort.Store(errors.Is(err, ErrUnsupported))
		}
		if s.noAbort.Load() {
			err = s.preempt(ctx, own.Key, hit.Key, false)
		}
		// An unknown outcome shows in the next round, and so does a key that was
		// removed meanwhile.
		if err != nil && !errors.Is(err, ErrUnknownOutcome) && !errors.Is(err, ErrReservationConflict) {
			return err
		}
	}
	return s.named(fmt.Errorf("%s stays registered after %d attempts to preempt it", victim.Initiator, maxFenceRounds))
}

// Leave removes this session's registration: it can't write any more. The
// reservation goes, too, if the session held it (not on every target).
func (s *Session) Leave(ctx context.Context) error { return s.Register(ctx, 0) }

// freshKey is a random key, never zero.
func freshKey() uint64 {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err) // documented never to happen
	}
	return binary.BigEndian.Uint64(b[:]) | 1
}

// parseFullStatus decodes READ FULL STATUS (SPC-4 section 6.15.5).
func parseFullStatus(b []byte) (list []Registration, generation uint32, err error) {
	if len(b) < 8 {
		return nil, 0, errors.New("READ FULL STATUS: answer is too short")
	}
	generation = binary.BigEndian.Uint32(b)
	n := uint64(binary.BigEndian.Uint32(b[4:]))
	b = b[8:]
	if n > uint64(len(b)) {
		return nil, 0, fmt.Errorf("READ FULL STATUS: %d bytes of %d arrived", len(b), n)
	}
	b = b[:n]
	for len(b) > 0 {
		if len(b) < 24 {
			return nil, 0, errors.New("READ FULL STATUS: list is cut off")
		}
		m := uint64(binary.BigEndian.Uint32(b[20:]))
		if m > uint64(len(b)-24) {
			return nil, 0, errors.New("READ FULL STATUS: list is cut off")
		}
		list = append(list, Registration{
			Key: binary.BigEndian.Uint64(b), Holder: b[12]&1 != 0, Port: parseTransportID(b[24 : 24+m]),
		})
		b = b[24+m:]
	}
	return list, generation, nil
}

// parseTransportID decodes an iSCSI TransportID (SPC-4 section 7.6.4.6): four
// bytes of header, then the name, or name,i,0xISID. istgt leaves the header
// away. What isn't understood is a port with an empty name.
func parseTransportID(b []byte) Port {
	const iscsiProtocol = 5
	if len(b) >= 4 && b[0]&0xf == iscsiProtocol {
		n := int(binary.BigEndian.Uint16(b[2:]))
		b = b[4:]
		b = b[:min(n, len(b))]
	}
	text, _, _ := strings.Cut(string(b), "\x00")
	name, tail, ok := strings.Cut(text, ",i,0x")
	p := Port{Initiator: name, AnyISID: true}
	if ok && len(tail) <= 12 {
		isid, err := hex.DecodeString(strings.Repeat("0", 12-len(tail)) + tail)
		if err == nil {
			copy(p.ISID[:], isid)
			p.AnyISID = false
		}
	}
	return p
}
