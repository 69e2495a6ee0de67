package iscsi

import (
	"errors"
	"fmt"
)

var (
	// ErrUnknownOutcome says that a command was sent and its answer never
	// came: it may have been executed or not, or may still be. Only a look at
	// the volume tells.
	ErrUnknownOutcome = errors.New("outcome unknown")
	// ErrUnsupported says that the target doesn't know the command.
	ErrUnsupported = errors.New("not supported by the target")
	// ErrReservationConflict says that another host holds a reservation that
	// forbids the command: for a write, that this host was fenced.
	ErrReservationConflict = errors.New("reservation conflict")
	// ErrFenced is what a Config.OnReconnect returns (wrapped or not) when this
	// session must not write any more. The session closes and issues nothing again.
	ErrFenced = errors.New("fenced")
	// ErrOffline says that the volume couldn't be reached for Config.MaxOffline.
	ErrOffline = errors.New("volume is unreachable")
	// ErrClosed says that the session was closed.
	ErrClosed = errors.New("session is closed")
	// ErrRange says that blocks outside of the logical unit were asked for.
	ErrRange = errors.New("outside of the volume")
	// ErrAuth says that the target refused the user or the secret.
	ErrAuth = errors.New("wrong CHAP user or password")
	// ErrImpostor says that the target couldn't prove what mutual CHAP asks of
	// it: it may be somebody else's.
	ErrImpostor = errors.New("target doesn't prove that it is the right one")
)

// errLost marks the end of a connection; the session decides what it means
// for a command.
var errLost = errors.New("connection lost")

// LoginError is a login that the target refused, with the codes of RFC 7143,
// section 11.13.5.
type LoginError struct{ Class, Detail byte }

// Error says what the target refused, and what to look at.
func (e *LoginError) Error() string {
	switch {
	case e.Class == 2 && e.Detail == 1:
		return ErrAuth.Error()
	case e.Class == 2 && e.Detail == 2:
		return "target doesn't let this initiator in (check its list of allowed initiator names and addresses)"
	case e.Class == 2 && e.Detail == 3:
		return "no such target there (check the target's name)"
	case e.Class == 2 && e.Detail == 4:
		return "target was removed"
	case e.Class == 2 && e.Detail == 6:
		return "target allows no more connections"
	case e.Class == 3 && e.Detail == 1:
		return "target's service is not available now"
	case e.Class == 3 && e.Detail == 2:
		return "target is out of resources (too many sessions?)"
	}
	return fmt.Sprintf("target refused the login (status 0x%02x%02x)", e.Class, e.Detail)
}

// Is makes a refused password match ErrAuth.
func (e *LoginError) Is(target error) bool {
	return target == ErrAuth && e.Class == 2 && e.Detail == 1
}

// CommandError is a SCSI command that the target failed.
type CommandError struct {
	// Op names the command.
	Op string
	// Status is the SCSI status byte (SAM-5, section 5.3).
	Status byte
	// Sense is the decoded sense data; zero unless Status is CHECK CONDITION.
	Sense Sense
}

// Error names the command and what the target said.
func (e *CommandError) Error() string {
	if e.Status == statusCheckCondition {
		return fmt.Sprintf("%s: %s", e.Op, e.Sense)
	}
	return fmt.Sprintf("%s: %s", e.Op, statusName(e.Status))
}

// Is maps status and sense to this package's errors.
func (e *CommandError) Is(target error) bool {
	switch target {
	case ErrReservationConflict:
		return e.Status == statusConflict
	case ErrUnsupported:
		return e.Status == statusCheckCondition && e.Sense.unsupported()
	case ErrRange:
		return e.Status == statusCheckCondition && e.Sense.Key == senseIllegalRequest && e.Sense.Code == 0x21
	case ErrUnknownOutcome:
		return e.Status == statusTaskAborted
	}
	return false
}
