package vm

import (
	"context"

	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/machine"
)

// Type types at the serial console of a machine that is live: as much of p as
// the UART has room for, which may be nothing. It returns how much, and how much
// was ever typed after that (board.ConsoleRoom). It fails when ctx ends first.
func (e *Engine) Type(ctx context.Context, p []byte) (n int, typed uint64, err error) {
	type result struct {
		n     int
		typed uint64
	}
	done := make(chan result, 1) // a call that was given up may still happen
	err = e.Do(ctx, func(m *machine.Machine) error {
		room, typed := m.Board.ConsoleRoom()
		// What was queued before is applied already: the loop delivers right
		// after its commands.
		n := min(len(p), room)
		if n > 0 && !e.inbox.put(event.Entry{Kind: event.Console, Data: append([]byte(nil), p[:n]...)}) {
			n = 0
		}
		done <- result{n, typed + uint64(n)}
		return nil
	})
	if err != nil {
		return 0, 0, err
	}
	r := <-done
	return r.n, r.typed, nil
}
