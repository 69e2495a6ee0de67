package iscsi

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

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
