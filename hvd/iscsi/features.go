package iscsi

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

// Answer is what is known of a feature.
type Answer byte

// The answers.
const (
	Unknown Answer = iota // the target doesn't say
	No
	Yes
)

func answerOf(yes bool) Answer {
	if yes {
		return Yes
	}
	return No
}

// Features are what a target says of itself, and what it turns out to know.
type Features struct {
	Inquiry
	// Names identify the unit among all (vital product data page 83h): naa., eui.
	// and so on, in lower case hexadecimal.
	Names []string

	CompareAndWrite Answer
	Reservations    Answer // PERSISTENT RESERVE IN
	RegistrantsOnly Answer // reservations of type 5, as the target says
	KeepsPowerless  Answer // reservations, without power (PTPL_C)
	Unmap           Answer // page B2h, LBPU
	WriteSame       Answer
	UnmappedZero    Answer // blocks that were given back read as zeros (LBPRZ)
	Thin            Answer // LBPME: the unit has fewer blocks than it shows
	WriteCache      Answer // mode page 08h, WCE: what isn't synced may be lost
	SyncCache       Answer
	ForceAccess     Answer // mode parameter header, DPOFUA

	// What the connection in use has agreed on, in bytes, and how many commands the
	// target takes at once.
	Immediate, MaxBurst, MaxSegment, Queue int
	HeaderDigest, DataDigest               bool
}

// Operation codes that only questions need (SPC-4 section 6.11, SBC-3 section 5.43).
const (
	featureModeSense = 0x1a
	featureWriteSame = 0x93
)

// Features asks the target what it can do. Nothing on the unit changes: what can
// only be found out by trying is tried on the block behind the last one.
func (s *Session) Features(ctx context.Context) (f Features, err error) {
	f.Inquiry = s.Inquiry()
	blocks, bs := s.Capacity()
	for _, look := range []func() error{
		func() error {
			return s.probe(ctx, &f.CompareAndWrite, cdbCompareAndWrite(blocks, 1), make([]byte, 2*bs))
		},
		func() error {
			return s.probe(ctx, &f.WriteSame, cdbBlocks(featureWriteSame, blocks, 1), make([]byte, bs))
		},
		func() error { return s.probe(ctx, &f.SyncCache, cdbBlocks(scsiSyncCache16, 0, 0), nil) },
		func() error { return s.lookPages(ctx, &f) },
		func() error { return s.lookModes(ctx, &f) },
		func() error { return s.lookReservations(ctx, &f) },
	} {
		if err := look(); err != nil {
			return f, err
		}
	}
	if f.SyncCache == No {
		if err := s.probe(ctx, &f.SyncCache, cdb{scsiSyncCache10}, nil); err != nil {
			return f, err
		}
	}
	s.mu.Lock()
	c := s.cur
	s.mu.Unlock()
	if c != nil {
		f.HeaderDigest, f.DataDigest = c.p.headerDigest, c.p.dataDigest
		f.Immediate, f.MaxBurst, f.MaxSegment = c.p.immediateLimit(), c.p.maxBurst, c.p.targetMaxRecv
		c.mu.Lock()
		f.Queue = int(int32(c.maxCmdSN - c.cmdSN + 1))
		c.mu.Unlock()
	}
	return f, nil
}

// probe finds out whether the target knows a command: it may refuse the request,
// but not as a command that it doesn't know.
func (s *Session) probe(ctx context.Context, answer *Answer, c cdb, out []byte) error {
	_, err := s.exec(ctx, command{op: "probe", cdb: c, out: out, once: true})
	var ce *CommandError
	switch {
	case err == nil:
		*answer = Yes
	case errors.As(err, &ce) && ce.Status == statusCheckCondition:
		*answer = answerOf(!(ce.Sense.Key == senseIllegalRequest && ce.Sense.Code == 0x20))
	case errors.As(err, &ce) && ce.Status == statusConflict:
		*answer = Yes
	default:
		return err
	}
	return nil
}

// refused takes a command that the target doesn't do for an answer.
func refused(err error) error {
	var ce *CommandError
	if errors.As(err, &ce) {
		return nil
	}
	return err
}

func (s *Session) lookPages(ctx context.Context, f *Features) error {
	b, err := s.vital(ctx, 0x83)
	if err == nil {
		f.Names = parseNames(b)
	} else if err := refused(err); err != nil {
		return err
	}
	b, err = s.vital(ctx, 0xb2)
	if err == nil && len(b) >= 2 { // SBC-3 section 6.5.4
		f.Unmap, f.UnmappedZero = answerOf(b[1]&0x80 != 0), answerOf(b[1]&0x04 != 0)
	} else if err := refused(err); err != nil {
		return err
	}
	b, err = s.ask(ctx, "READ CAPACITY(16)", cdbReadCapacity16(), 32)
	if err == nil && len(b) >= 16 { // SBC-3 section 5.16.2
		f.Thin = answerOf(b[14]&0x80 != 0)
		if b[14]&0x40 != 0 {
			f.UnmappedZero = Yes
		}
		return nil
	}
	return refused(err)
}

// parseNames decodes the designators of page 83h that name the unit itself
// (SPC-4, section 7.8.6).
func parseNames(b []byte) (names []string) {
	for len(b) >= 4 && len(names) < 8 {
		n := int(b[3])
		if n > len(b)-4 {
			break
		}
		id := b[4 : 4+n]
		if b[1]&0x30 == 0 { // associated with the unit
			switch b[1] & 0xf {
			case 1:
				names = append(names, "t10."+ascii(id))
			case 2:
				names = append(names, "eui."+hex.EncodeToString(id))
			case 3:
				names = append(names, "naa."+hex.EncodeToString(id))
			case 8:
				names = append(names, ascii(id))
			}
		}
		b = b[4+n:]
	}
	return names
}

// lookModes reads the caching mode page (SBC-3, section 6.4.5).
func (s *Session) lookModes(ctx context.Context, f *Features) error {
	b, err := s.ask(ctx, "MODE SENSE", cdb{featureModeSense, 0x08, 0x08, 0, 192}, 192)
	if err != nil {
		return refused(err)
	}
	if len(b) < 4 {
		return nil
	}
	f.ForceAccess = answerOf(b[2]&0x10 != 0)
	if at := 4 + int(b[3]); len(b) >= at+3 && b[at]&0x3f == 0x08 {
		f.WriteCache = answerOf(b[at+2]&0x04 != 0)
	}
	return nil
}

// lookReservations asks for keys, which every target with reservations knows, and
// for its capabilities (SPC-4, section 6.15.4), which some don't.
func (s *Session) lookReservations(ctx context.Context, f *Features) error {
	_, _, err := s.Keys(ctx)
	f.Reservations = answerOf(err == nil)
	if err != nil {
		return refused(err)
	}
	b, err := s.ask(ctx, "REPORT CAPABILITIES", cdbReserve(scsiReserveIn, 2, 0, 8), 8)
	if err != nil {
		return refused(err)
	}
	if len(b) >= 6 && binary.BigEndian.Uint16(b) >= 8 {
		f.KeepsPowerless = answerOf(b[2]&0x01 != 0)
		if b[3]&0x80 != 0 {
			f.RegistrantsOnly = answerOf(b[4]&0x20 != 0)
		}
	}
	return nil
}

// String is yes, no, or not said.
func (a Answer) String() string {
	switch a {
	case Yes:
		return "yes"
	case No:
		return "no"
	case Unknown:
		return "not said"
	}
	return fmt.Sprintf("answer %d", byte(a))
}

// Address is the portal and the target that the session is logged in to.
func (s *Session) Address() (portal, target string, lun uint64) {
	return s.cfg.Portal, s.cfg.Target, s.cfg.LUN
}
