package iscsi

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Abilities are what a target can do beyond reading and writing.
type Abilities struct {
	// CompareAndWrite decides between hosts; without it none may run a VM.
	CompareAndWrite bool
	// Reservations keep a fenced host's writes out.
	Reservations bool
	// WriteSame fills blocks with zeros by itself, as far as is known.
	WriteSame bool
	// Unmap gives blocks back.
	Unmap bool
}

// ErrNoCompareAndWrite says that a target lacks the one command that makes a
// volume safe to share. It is an ErrUnsupported, too.
var ErrNoCompareAndWrite = errors.New("it has no COMPARE AND WRITE, by which two hosts decide who runs a VM: " +
	"use a target that has it, such as Linux's own (LIO) or istgt")

// lacksCompareAndWrite names the target that lacks it.
func (s *Session) lacksCompareAndWrite(why error) error {
	i := s.unit.inquiry
	name := strings.Join(strings.Fields(i.Vendor+" "+i.Product), " ")
	return s.named(fmt.Errorf("the target is a %s; %w (%w)", name, ErrNoCompareAndWrite, bare(why)))
}

// bare is the innermost word about a command, without the volume's name.
func bare(err error) error {
	var ce *CommandError
	if errors.As(err, &ce) {
		return ce
	}
	return err
}

// Abilities asks the target what it can do. It changes nothing.
func (s *Session) Abilities(ctx context.Context) (a Abilities, err error) {
	err = s.RequireCompareAndWrite(ctx)
	if err != nil && !errors.Is(err, ErrNoCompareAndWrite) {
		return a, err
	}
	a.CompareAndWrite = err == nil
	if _, _, err = s.Keys(ctx); err != nil && !errors.Is(err, ErrUnsupported) {
		return a, err
	}
	a.Reservations = err == nil
	a.WriteSame = s.unit.limits.writeSame > 0 || s.unit.provision.writeSame
	a.Unmap = s.unit.provision.unmap
	return a, nil
}

// RequireCompareAndWrite fails with ErrNoCompareAndWrite if the target lacks the
// command. What a target says of it (page B0h) can't be trusted: tgt names a limit
// and doesn't know the command. So it is asked to compare zeros with the block
// behind the last one, which isn't there; and if it were, the same zeros would be
// written.
func (s *Session) RequireCompareAndWrite(ctx context.Context) error {
	c := cdbCompareAndWrite(s.blocks.Load(), 1)
	_, err := s.exec(ctx, command{op: "COMPARE AND WRITE", cdb: c, out: make([]byte, 2*s.unit.blockSize), once: true})
	var ce *CommandError
	switch {
	case errors.As(err, &ce) && ce.Status == statusCheckCondition && ce.Sense.Key == senseIllegalRequest && ce.Sense.Code == 0x20:
		return s.lacksCompareAndWrite(err)
	case errors.As(err, &ce) && (ce.Status == statusCheckCondition || ce.Status == statusConflict):
		return nil // it knows the command: the request is what it refuses
	}
	return err
}
