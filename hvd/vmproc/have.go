package vmproc

import (
	"context"
	"errors"

	"github.com/duet-ft/duet/ftlink/session"
	"github.com/duet-ft/duet/ftlink/wire"
	"github.com/duet-ft/duet/hvd/mem"
	"github.com/duet-ft/duet/hvd/transfer"
)

// A copy that was halted, because it diverged or its link broke, leaves its
// memory behind. The next state transfer sends only pages that differ from it:
// the receiver tells the hashes of all that it has before the first page is
// sent.

// keep destroys a guest that was never live and keeps its memory for the next
// state transfer.
func (p *Process) keep(g *guest) {
	memory, err := g.destroyButMemory()
	p.complain(err)
	p.mu.Lock()
	old := p.kept
	p.kept = memory
	p.mu.Unlock()
	if old != nil {
		p.complain(old.Close())
	}
}

// takeKept gives away the memory that was kept, if it has that size; other
// memory is freed. nil means that there is none.
func (p *Process) takeKept(size uint64) *mem.Memory {
	p.mu.Lock()
	memory := p.kept
	p.kept = nil
	p.mu.Unlock()
	if memory == nil || memory.Size() == size {
		return memory
	}
	p.complain(memory.Close())
	return nil
}

// tellHave sends the hashes of the pages that are here. It is the transfer's
// until it has ended, or was dropped.
func (in *incoming) tellHave(c *session.Conn, salt uint64, old bool) error {
	m := in.g.m.Memory
	var sums, payload []byte
	for first := 0; old && first < m.Pages(); first += wire.MaxHave {
		sums = sums[:0]
		for n := first; n < min(first+wire.MaxHave, m.Pages()); n++ {
			sum := transfer.SumOf(m.Page(n), salt)
			sums = append(sums, sum[:]...)
		}
		if in.dropped.Load() {
			return session.ErrClosed
		}
		var err error
		if payload, err = wire.AppendHave(payload[:0], first, sums); err != nil {
			return err
		}
		if err := c.Send(wire.Frame{Type: wire.TypeHave, Payload: payload}); err != nil {
			return err
		}
	}
	return c.Send(wire.Frame{Type: wire.TypeHave})
}

// have is what the sender of a state transfer knows of the receiver's pages.
type have struct {
	salt  uint64
	sums  []byte        // of the pages from 0 on
	limit int           // pages
	whole chan struct{} // closed at the list's end
}

func newHave(salt uint64, pages int) *have {
	return &have{salt: salt, limit: pages, whole: make(chan struct{})}
}

// errHave says that a peer's list of pages isn't one.
var errHave = errors.New("the peer's list of pages has gaps or no end")

// take adds a Have frame. Frames come in the order of their pages.
func (h *have) take(payload []byte) error {
	first, sums, err := wire.ParseHave(payload)
	if err != nil {
		return err
	}
	select {
	case <-h.whole:
		return errHave
	default:
	}
	switch {
	case len(sums) == 0:
		close(h.whole)
	case first*wire.SumSize != len(h.sums) || len(h.sums)+len(sums) > h.limit*wire.SumSize:
		return errHave
	default:
		h.sums = append(h.sums, sums...)
	}
	return nil
}

// wait returns when the list is whole.
func (h *have) wait(ctx context.Context) error {
	select {
	case <-h.whole:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// known says that the peer has a page with this content. Only after wait.
func (h *have) known(page int, content []byte) bool {
	at := page * wire.SumSize
	return at+wire.SumSize <= len(h.sums) &&
		transfer.SumOf(content, h.salt) == transfer.Sum(h.sums[at:at+wire.SumSize])
}
