package vmproc

import (
	"context"
	"errors"
	"fmt"

	"github.com/duet-ft/duet/ftlink/session"
	"github.com/duet-ft/duet/ftlink/wire"
	"github.com/duet-ft/duet/hvd/lockstep"
	"github.com/duet-ft/duet/hvd/vm"
)

// source gives a secondary what its primary's log only refers to: from the
// volume, which both hosts reach, or from the primary.
type source struct {
	p  *Process
	in *incoming
	c  *session.Conn
}

var _ vm.Source = source{}

// ReadDisk reads from the volume; vm.Source. A secondary may: the reservation
// keeps it from writing only.
func (s source) ReadDisk(ctx context.Context, disk int, sector uint64, b []byte) error {
	if disk >= len(s.p.disks) {
		return fmt.Errorf("%w: the log refers to disk %d of %d", wire.ErrFrame, disk, len(s.p.disks))
	}
	return s.p.disks[disk].Read(ctx, sector, b)
}

// Ask sends a Want frame; vm.Source.
func (s source) Ask(disk int, id uint64, why error) {
	// A stream that broke shows as Down. Its primary may have gone on alone, and
	// written what it likes.
	err := s.c.Send(wire.Frame{Type: wire.TypeWant, Payload: wire.AppendWant(nil, disk, id)})
	if err == nil && errors.Is(why, vm.ErrOtherBytes) {
		s.p.say(fmt.Sprintf("disk %d: %v (request %d); the peer sends them. Who else writes to the volume, or has it lost a write?", disk, why, id))
	}
}

// Holds tells the primary, if that is what it waits for; vm.Source.
func (s source) Holds(lsn uint64) { _ = s.in.holds(s.c, lsn) }

// holds acknowledges, at level received, what this copy can execute by itself.
func (in *incoming) holds(c *session.Conn, lsn uint64) error {
	if in.p.level() != lockstep.Received {
		return nil
	}
	in.receivedUpTo(lsn)
	return in.ack(in.p, c)
}

// blocks takes what Ask asked for.
func (in *incoming) blocks(payload []byte) error {
	disk, id, data, err := wire.ParseBlocks(payload)
	if err != nil {
		return err
	}
	if !in.whole {
		return fmt.Errorf("%w: disk data before the state is complete", wire.ErrFrame)
	}
	if in.g.sealed.Load() {
		return nil
	}
	return in.g.engine.Give(disk, id, append([]byte(nil), data...))
}

// giveBlocks answers a secondary that can't read what the log refers to.
func (p *Process) giveBlocks(c *session.Conn, payload []byte) error {
	disk, id, err := wire.ParseWant(payload)
	if err != nil {
		return err
	}
	p.mu.Lock()
	g, current := p.guest, p.conn == c
	p.mu.Unlock()
	if g == nil || !g.rim.live.Load() || !current {
		return nil // what is going away needs nothing
	}
	data, ok := g.engine.Referred(disk, id)
	if !ok {
		return fmt.Errorf("%w: it wants what request %d of disk %d has read, which it holds", wire.ErrFrame, id, disk)
	}
	p.given.Add(1)
	return c.Send(wire.Frame{Type: wire.TypeBlocks, Payload: wire.AppendBlocks(nil, disk, id, data)})
}
