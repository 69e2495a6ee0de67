package iscsi

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// maxIssues limits how often a command is issued anew because connections
	// were lost under it: it may be what kills them.
	maxIssues = 16
	// maxAttentions limits unit attentions and aborts in a row.
	maxAttentions = 16
)

// exec runs a command to its end: it waits for the target while it's busy,
// goes past unit attentions, and issues the command again after a lost
// connection if that is harmless. The task returned has status GOOD; other ends are errors.
func (s *Session) exec(ctx context.Context, cmd command) (*task, error) {
	if _, pinned := ctx.Value(connKey{}).(*conn); !pinned { // OnReconnect goes before those who wait
		select {
		case s.slots <- struct{}{}:
		case <-ctx.Done():
			return nil, s.named(ctx.Err())
		}
		defer func() { <-s.slots }()
	}
	t, err := s.run(ctx, cmd)
	if err != nil {
		return t, s.named(err)
	}
	return t, nil
}

// retry remembers what a command went through.
type retry struct {
	issues, attentions int
	pause              time.Duration
	busySince          time.Time
}

func (s *Session) run(ctx context.Context, cmd command) (*task, error) {
	var r retry
	for {
		c, pinned, err := s.online(ctx)
		if err != nil {
			return nil, err
		}
		t, err := c.do(ctx, cmd)
		switch {
		case err == nil && t.status == statusGood:
			return t, nil
		case err == nil:
			if err := s.again(ctx, t, &r); err != nil {
				return t, err
			}
			if t.sense.capacityChanged() {
				s.measure(ctx, c)
			}
		case errors.Is(err, errLost):
			if t.sent && cmd.once {
				return t, fmt.Errorf("%s: %w (%w)", cmd.op, ErrUnknownOutcome, err)
			}
			if r.issues++; pinned || r.issues >= maxIssues {
				return t, fmt.Errorf("%s: %w", cmd.op, err)
			}
		default: // ctx
			if t.sent && len(cmd.out) > 0 {
				err = fmt.Errorf("%w (%w)", ErrUnknownOutcome, err)
			}
			return t, fmt.Errorf("%s: %w", cmd.op, err)
		}
	}
}

// again decides about a command that the target didn't do. A nil error means
// to issue it again, after the pause that it has taken.
func (s *Session) again(ctx context.Context, t *task, r *retry) error {
	failed := &CommandError{Op: t.op, Status: t.status, Sense: t.sense}
	attention := t.status == statusCheckCondition && t.sense.Key == senseUnitAttention
	aborted := t.status == statusTaskAborted || t.status == statusCheckCondition && t.sense.Key == senseAborted
	busy := t.status == statusBusy || t.status == statusTaskSetFull ||
		t.status == statusCheckCondition && t.sense.becomingReady()
	switch {
	case attention, aborted && !t.once:
		// With a unit attention, the command was not executed (SAM-5, section
		// 5.14).
		if r.attentions++; r.attentions > maxAttentions {
			return failed
		}
		return nil
	case busy:
		now := time.Now()
		if r.busySince.IsZero() {
			r.busySince = now
		}
		if now.Sub(r.busySince) > 3*s.cfg.Timeout {
			return failed
		}
		r.pause = min(max(2*r.pause, 2*time.Millisecond), 200*time.Millisecond)
		timer := time.NewTimer(r.pause)
		defer timer.Stop()
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", failed, ctx.Err())
		}
	}
	return failed
}

// look asks the unit for what it is. It runs on the connection in ctx.
func (s *Session) look(ctx context.Context) (u unit, err error) {
	// The first commands of a session get its unit attentions.
	if _, err := s.run(ctx, command{op: "TEST UNIT READY"}); err != nil {
		return u, err
	}
	b, err := s.ask(ctx, "INQUIRY", cdbInquiry(false, 0, 96), 96)
	if err != nil {
		return u, err
	}
	if u.inquiry, err = parseInquiry(b); err != nil {
		return u, err
	}
	// Pages that a target lacks are no error.
	if body, err := s.vital(ctx, 0x80); err == nil {
		u.inquiry.Serial = ascii(body)
	} else if errors.Is(err, errLost) {
		return u, err
	}
	if body, err := s.vital(ctx, 0xb0); err == nil {
		u.limits = parseBlockLimits(body)
	} else if errors.Is(err, errLost) {
		return u, err
	}
	if body, err := s.vital(ctx, 0xb2); err == nil {
		u.provision = parseProvisioning(body)
	} else if errors.Is(err, errLost) {
		return u, err
	}
	u.capacity, err = s.capacity(ctx)
	return u, err
}

// capacity asks the unit for its size.
func (s *Session) capacity(ctx context.Context) (capacity, error) {
	b, err := s.ask(ctx, "READ CAPACITY(16)", cdbReadCapacity16(), 32)
	if err == nil {
		return parseCapacity16(b)
	}
	if !errors.Is(err, ErrUnsupported) {
		return capacity{}, err
	}
	b, err = s.ask(ctx, "READ CAPACITY(10)", cdb{scsiReadCapacity10}, 8)
	if err != nil {
		return capacity{}, err
	}
	return parseCapacity10(b)
}

// measure takes over the size of a unit that grew. If it did anything else, the
// connection ends: the next login finds out whether it's still the same unit.
func (s *Session) measure(ctx context.Context, c *conn) {
	now := s.blocks.Load()
	size, err := s.capacity(withConn(ctx, c))
	switch {
	case now == 0: // the first login asks by itself
	case err != nil || size.blockSize != s.unit.blockSize || size.blocks < now:
		c.fail(errors.New("logical unit's capacity changed"))
	default:
		s.blocks.CompareAndSwap(now, size.blocks)
	}
}

// vital reads a page of vital product data.
func (s *Session) vital(ctx context.Context, page byte) ([]byte, error) {
	b, err := s.ask(ctx, "INQUIRY", cdbInquiry(true, page, 255), 255)
	if err != nil {
		return nil, err
	}
	return vitalPage(page, b)
}

// ask runs a command that answers with up to n bytes.
func (s *Session) ask(ctx context.Context, op string, c cdb, n int) ([]byte, error) {
	p := make([]byte, n)
	t, err := s.run(ctx, command{op: op, cdb: c, in: p, short: true})
	if err != nil {
		return nil, err
	}
	return p[:t.got], nil
}
