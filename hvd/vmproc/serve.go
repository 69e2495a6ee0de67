package vmproc

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/duet-ft/duet/ftlink/pair"
	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/usage"
	"github.com/duet-ft/duet/hvd/vm"
	"github.com/duet-ft/duet/hvd/volume"
)

// serve answers the daemon on api.sock. Closing the server ends it.
func (p *Process) serve(ctx context.Context) (*http.Server, error) {
	if err := os.MkdirAll(p.opt.RunDir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(p.opt.RunDir, "api.sock")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/vm", func(w http.ResponseWriter, _ *http.Request) { answer(w, p.status()) })
	mux.HandleFunc("GET /v1/vm/events", func(w http.ResponseWriter, _ *http.Request) { answer(w, p.history()) })
	mux.HandleFunc("GET /v1/vm/console", p.serveConsole)
	mux.HandleFunc("GET /v1/vm/recording", p.serveRecording)
	for name, verb := range map[string]pair.Verb{
		"start": pair.Start, "stop": pair.Stop, "force-start": pair.ForceStart, "drain": pair.Drain, "undrain": pair.Undrain,
		"unprotect": pair.Unprotect, "protect": pair.Protect,
	} {
		mux.HandleFunc("POST /v1/vm/"+name, func(w http.ResponseWriter, _ *http.Request) {
			p.command(verb)
			answer(w, p.status())
		})
	}
	mux.HandleFunc("POST /v1/vm/peer", p.servePeer)
	mux.HandleFunc("POST /v1/vm/shutdown", p.serveShutdown)
	mux.HandleFunc("POST /v1/vm/switchover", p.serveMove(pair.Switchover))
	mux.HandleFunc("POST /v1/vm/test-failover", p.serveMove(pair.TestFailover))
	s := &http.Server{
		Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	go func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			p.complain(err)
		}
	}()
	return s, nil
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // a client that went away
}

func refuse(w http.ResponseWriter, status int, why string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": why})
}

// here is the guest that runs on this host, or nil.
func (p *Process) here() *guest {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.guest == nil || !p.guest.rim.live.Load() {
		return nil
	}
	return p.guest
}

func (p *Process) serveConsole(w http.ResponseWriter, _ *http.Request) {
	g := p.here()
	if g == nil {
		refuse(w, http.StatusConflict, fmt.Sprintf("VM %q doesn't run on this host", p.def.Name))
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write(g.rim.console.Tail())
}

func (p *Process) serveShutdown(w http.ResponseWriter, _ *http.Request) {
	g := p.here()
	if g == nil {
		refuse(w, http.StatusConflict, fmt.Sprintf("VM %q doesn't run on this host", p.def.Name))
		return
	}
	if !g.engine.Input(event.Entry{Kind: event.Power}) {
		refuse(w, http.StatusServiceUnavailable, fmt.Sprintf("VM %q takes no input at the moment; try again", p.def.Name))
		return
	}
	answer(w, p.status())
}

func (p *Process) history() []api.Event {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]api.Event{}, p.events...)
}

// resting says that devices serve the guest no more; empty if all do.
func resting(faults []string) string {
	if len(faults) == 0 {
		return ""
	}
	return "the guest's driver broke a rule, and the device rests until the guest resets it: " + strings.Join(faults, "; ")
}

// status is this copy as of now.
func (p *Process) status() api.VM {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := api.VM{
		Name: p.def.Name, Role: p.role.String(), Live: p.role.Live(), Protected: p.safe, Epoch: p.epoch,
		Error: p.trouble, Output: p.def.Output, Seed: p.seeded, Failover: p.failed,
		Usage: usage.OfProcess(),
	}
	if s.Output == "" {
		s.Output = volume.OutputVerified
	}
	if p.conn != nil {
		s.LinkMS, s.EchoMS = ms(p.conn.RoundTrip()), ms(p.tie.Load().link.EchoTime())
	}
	g := p.guest
	if g == nil || g.engine == nil {
		return s
	}
	s.Accessed, s.Locator, s.LocatorWhy = g.accessed.String(), p.locator(), p.why
	x := &g.engine.Stats
	s.Error = cmp.Or(s.Error, resting(x.Faults()))
	s.Position, s.ClockNS = x.Position.Load(), x.Clock.Load()
	s.LSN, s.Verified = x.LSN.Load(), x.Verified.Load()
	s.LagMS = ms(g.engine.Lag())
	median, p99 := x.Delays()
	s.Counters = api.Counters{
		Exits: x.Exits.Load(), Ticks: x.Ticks.Load(), Inputs: x.Inputs.Load(),
		Resyncs: x.Resyncs.Load(), ResyncBytes: x.ResyncBytes.Load(), LogBytes: x.LogBytes.Load(),
		AtExit: x.AtExit.Load(), AtTrap: x.AtTrap.Load(), AtPoint: x.AtPoint.Load(), Points: x.Points.Load(), AtResync: x.AtResync.Load(), Traps: strings.Join(vm.TrapNames(x.Traps.Load()), ","),
		Throttled: x.Throttled.Load(), Divergences: x.Divergences.Load() + p.diverged,
		DiskReads: g.rim.reads.Load(), DiskWrites: g.rim.writes.Load(),
		LoggedReads: x.Reads.Load(), ReadLogBytes: x.ReadLogBytes.Load(),
		ReadRefs: x.ReadRefs.Load(), RefLogBytes: x.RefLogBytes.Load(), RefsAsked: p.given.Load(),
		FramesIn: g.rim.framesIn.Load(), FramesOut: g.rim.framesOut.Load(),
		DelayMedianMS: ms(median), DelayP99MS: ms(p99),
	}
	return s
}
