package vmproc

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
)

// moveLimit is how long a user waits for a switchover's end. Normally that is
// there within a heartbeat or two; it takes longer when the volume falls silent
// while it is asked for the block.
const moveLimit = 8 * time.Second

// serveMove has the VM change hosts, and answers when it has, or has not.
func (p *Process) serveMove(verb pair.Verb) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), moveLimit)
		defer cancel()
		decided := make(chan error, 1)
		select {
		case p.later <- func(ctx context.Context) { p.move(ctx, verb, decided) }:
		case <-ctx.Done():
			refuse(w, http.StatusServiceUnavailable, fmt.Sprintf("VM %q's process is busy; try again", p.def.Name))
			return
		}
		select {
		case err := <-decided:
			if err != nil {
				refuse(w, http.StatusConflict, err.Error())
				return
			}
			answer(w, p.status())
		case <-ctx.Done():
			refuse(w, http.StatusGatewayTimeout, fmt.Sprintf(
				"whether VM %q changes hosts isn't decided yet, because the volume doesn't answer; the events say how it ends", p.def.Name))
		}
	}
}

// move gives the protocol a user's command. decided is told its end.
func (p *Process) move(ctx context.Context, verb pair.Verb, decided chan<- error) {
	if why := p.pair.Unmovable(); why != "" {
		decided <- fmt.Errorf("VM %q can't change hosts: %s", p.def.Name, why)
		return
	}
	p.moving.decided, p.moving.verb = decided, verb
	p.step(ctx, pair.Command{Verb: verb})
}

// settle tells who waits for a switchover how it ended, once it has.
func (p *Process) settle(after pair.Role, out []pair.Output) {
	decided := p.moving.decided
	if decided == nil || after == pair.Pausing || after == pair.Yielding {
		return
	}
	p.moving.decided = nil
	if after == pair.Secondary || after == pair.Standby && p.moving.verb == pair.TestFailover {
		decided <- nil
		return
	}
	why := "it is " + after.String() + " here now"
	for _, o := range out {
		if e, ok := o.(pair.Event); ok {
			why = e.What
		}
	}
	decided <- fmt.Errorf("VM %q has not changed hosts: %s", p.def.Name, why)
}
