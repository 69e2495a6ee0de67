package vmproc

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/duet-ft/duet/ftlink/session"
	"github.com/duet-ft/duet/ftlink/wire"
	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/machine"
)

// divergenceReport is of a Control frame: a secondary tells its primary what
// differs and which exits it made since both were known to be equal. Only the
// primary can say which of them is the first that differs.
type divergenceReport struct {
	Kind     string          `json:"kind"`
	Position uint64          `json:"position"`
	Detail   string          `json:"detail"`
	Exits    []machine.Crumb `json:"exits"`
}

// tellDiverged sends the report before the protocol drops this copy.
func (p *Process) tellDiverged(g *guest, err error) {
	d, exits := g.engine.Diverged(err)
	p.mu.Lock()
	conn := p.conn
	p.mu.Unlock()
	if d == nil || conn == nil {
		return
	}
	b := control{Divergence: &divergenceReport{d.Kind, d.Position, d.Detail, exits}}.encode()
	if len(b) > wire.TypeControl.Limit() {
		p.say(fmt.Sprintf("the report of %d exits is too long to be sent", len(exits)))
		return
	}
	// A stream that broke shows elsewhere.
	_ = conn.Send(wire.Frame{Type: wire.TypeControl, Payload: b})
}

// heardControl takes a Control frame.
func (p *Process) heardControl(c *session.Conn, payload []byte) error {
	var m control
	if err := json.Unmarshal(payload, &m); err != nil {
		return fmt.Errorf("%w: control: %w", wire.ErrFrame, err)
	}
	if m.Points != nil {
		p.mu.Lock()
		p.blind = !*m.Points
		p.mu.Unlock()
	}
	if m.Divergence != nil {
		p.heardDiverged(c, *m.Divergence)
	}
	return nil
}

// heardDiverged notes what the secondary reports, with the first exit that
// differs.
func (p *Process) heardDiverged(c *session.Conn, r divergenceReport) {
	p.mu.Lock()
	g := p.guest
	p.mu.Unlock()
	if g == nil || !g.rim.live.Load() {
		return
	}
	// Not here: the engine may wait for the loop, which may wait for this
	// stream.
	go func() {
		d := api.Divergence{Kind: plain(r.Kind), Position: r.Position, Detail: plain(r.Detail)}
		ctx, cancel := context.WithTimeout(g.ctx, arbiterTimeout)
		defer cancel()
		err := g.engine.Do(ctx, func(m *machine.Machine) error {
			if here, there, ok := m.FirstDifference(r.Exits); ok {
				d.Exit, d.Here, d.There = there.Position, here.String(), there.String()
				if here == (machine.Crumb{}) {
					d.Here = "none"
				}
			}
			return nil
		})
		p.complain(err)
		p.noteDivergence(c, d)
	}()
}

func (p *Process) noteDivergence(c *session.Conn, d api.Divergence) {
	what := fmt.Sprintf("the secondary on host %s diverged at exit %d (%s): %s", plain(c.Peer().Host), d.Position, d.Kind, d.Detail)
	if d.Exit != 0 {
		what += fmt.Sprintf("; the first exit that differs is %d: here %s; there %s", d.Exit, d.Here, d.There)
	}
	p.mu.Lock()
	p.diverged++
	e := api.Event{VM: p.def.Name, Kind: api.EventDivergence, Cause: plain(d.Kind), Epoch: p.epoch, Role: p.role.String(), What: what, Divergence: &d}
	p.mu.Unlock()
	p.record(e)
}
