package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/duet-ft/duet/appliance/agent/wire"
	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/volume"
	"github.com/duet-ft/duet/image/load"
	"github.com/duet-ft/duet/image/pairlab"
)

const (
	// clients is how many connections there are.
	clients = 8
	// idleFor and loadFor are how long is measured.
	idleFor = 10 * time.Second
	loadFor = 10 * time.Second
	// settleFor is how long the load runs on before it is looked at: after it starts, and after a failover.
	settleFor = 2 * time.Second
	// answerWithin is how long a connection may take to answer after a kill: TCP backs off meanwhile.
	answerWithin = 90 * time.Second
	// measureTries is how often something is measured whose primary lost its secondary meanwhile.
	measureTries = 3
)

// scenario is one run of the demo.
type scenario struct {
	out    *progress
	opt    options
	dir    string
	result Result

	pair    *pairlab.Pair
	load    *load.Load
	tally   *tally
	watcher sync.WaitGroup
	cancel  context.CancelFunc // of the watcher
	primary string
	idle    rates
	first   wire.Info // what the agent said at first
	last    wire.Info // and the last time
}

// run goes through all steps; the result has what came of them, up to an error.
func (s *scenario) run(ctx context.Context) error {
	for _, step := range []struct {
		stage string
		do    func(context.Context) error
	}{
		{"hosts", s.startHosts},
		{"guest", s.startGuest},
		{"seeding", s.protected},
		{"measuring", s.measureVerified},
		{"failover 1", func(ctx context.Context) error { return s.failover(ctx, 0) }},
		{"back again", s.comeBack},
		{"failover 2", func(ctx context.Context) error { return s.failover(ctx, 1) }},
		{"back again", s.comeBack},
		{"measuring", s.measureReceived},
		{"the end", s.finish},
	} {
		s.out.stage(step.stage)
		if err := step.do(ctx); err != nil {
			if ctx.Err() != nil {
				err = errors.Join(context.Cause(ctx), err)
			}
			return err
		}
	}
	return nil
}

func (s *scenario) startHosts(ctx context.Context) (err error) {
	s.pair, err = pairlab.Start(ctx, pairlab.Config{Dir: s.dir, Log: func(line string) { s.out.say("%s", line) }})
	if err != nil {
		return err
	}
	s.tally = newTally()
	watch, cancel := context.WithCancel(ctx)
	s.cancel = cancel
	s.watcher.Go(func() { s.tally.watch(watch, s.pair) })
	return nil
}

func (s *scenario) startGuest(ctx context.Context) (err error) {
	begin := time.Now()
	if err := s.pair.StartGuest(ctx, pairlab.Names[0]); err != nil {
		return err
	}
	if s.primary, err = s.pair.WaitLive(ctx); err != nil {
		return err
	}
	if s.first, err = s.pair.Info(ctx); err != nil {
		return err
	}
	s.last = s.first
	s.out.say("guest %s (Linux %s) runs on host %s at %s, Redis answers; boot_id %s, uptime %.0f s (%.1f s)", s.first.Hostname,
		s.first.Kernel, s.primary, pairlab.GuestIP(), s.first.BootID, s.first.Uptime, time.Since(begin).Seconds())
	return nil
}

// protected waits for lockstep and tells how the seeding went.
func (s *scenario) protected(ctx context.Context) error {
	vm, err := s.lockstep(ctx)
	if err != nil {
		return err
	}
	if seed := vm.Seed; seed != nil {
		s.result.SeedMS = append(s.result.SeedMS, seed.TotalMS)
		s.result.SeedBytes = append(s.result.SeedBytes, seed.Bytes)
		s.result.SeedPerUsed = append(s.result.SeedPerUsed, perUsed(*seed))
		s.result.PauseMS = append(s.result.PauseMS, seed.PauseMS)
		s.out.say("seeded: %d pages in %d rounds, %.1f MB (%.2f times the guest's used memory) in %.1f s; the guest stood still for %.0f ms",
			seed.Pages, seed.Rounds, float64(seed.Bytes)/1e6, perUsed(*seed), seed.TotalMS/1e3, seed.PauseMS)
	}
	s.out.say("PROTECTED: primary %s, secondary %s in lockstep (epoch %d, output rule %q), lag %.1f ms",
		s.primary, s.pair.Peer(s.primary), vm.Epoch, vm.Output, vm.LagMS)
	return nil
}

// lockstep waits until the primary is protected. Another primary than the last one means a failover that nobody asked
// for: the demo has failed then.
func (s *scenario) lockstep(ctx context.Context) (api.VM, error) {
	primary, err := s.pair.WaitProtected(ctx)
	if err != nil {
		return api.VM{}, err
	}
	if primary != s.primary {
		s.result.Failovers++
		return api.VM{}, fmt.Errorf("host %s took over from %s although nobody killed it", primary, s.primary)
	}
	return s.pair.VM(ctx, primary)
}

// measureVerified measures the idle guest, starts the load, and measures again.
func (s *scenario) measureVerified(ctx context.Context) error {
	var err error
	if s.idle, _, _, err = s.measure(ctx, idleFor); err != nil {
		return err
	}
	s.result.LogBytesPerTickIdle, s.result.ExitsPerTick = s.idle.logPerTick(), s.idle.exitsPerTick()
	s.result.LogBytesPerSecondIdle, s.result.ResyncBytesPerTickIdle = s.idle.logPerSecond(), s.idle.resyncPerTick()
	s.out.say("idle: %.0f ticks a second, %.2f exits and %.1f bytes of log a tick (%.1f of them resyncs), %.0f bytes of log a second",
		s.idle.ticksPerSecond(), s.idle.exitsPerTick(), s.idle.logPerTick(), s.idle.resyncPerTick(), s.idle.logPerSecond())

	s.load, err = load.Start(context.WithoutCancel(ctx), load.Config{Dial: s.pair.Dial, Clients: clients})
	if err != nil {
		return err
	}
	if err := s.load.Answered(ctx); err != nil {
		return err
	}
	s.out.say("load: %d TCP connections from outside, each with INCRs of its own counter and SETs of fresh values", clients)
	if err := sleep(ctx, settleFor); err != nil {
		return err
	}
	busy, vm, w, err := s.measure(ctx, loadFor)
	if err != nil {
		return err
	}
	r := &s.result
	r.LogBytesPerRequest, r.ExitsPerRequest = busy.perRequest(s.idle, w.Requests)
	r.LogBytesPerSecond, r.RequestsPerSecond, r.LagMS = busy.logPerSecond(), w.Rate(), vm.LagMS
	r.RequestMS = Delay{ms(w.Median), ms(w.P99)}
	r.LinkMS, r.EchoMS = vm.LinkMS, vm.EchoMS
	r.OutputDelayMS.Verified, r.OutputDelayRoundTrips.Verified, r.OutputDelayEchoes.Verified = delays(vm)
	s.out.say("under load: %.0f requests a second (median %.1f ms, p99 %.1f ms), %.0f bytes of log and %.1f exits a request, %.0f bytes of log a second",
		w.Rate(), ms(w.Median), ms(w.P99), r.LogBytesPerRequest, r.ExitsPerRequest, r.LogBytesPerSecond)
	s.sayDelay(vm)
	// Copies that start from now on follow the other level: after two failovers, the live one is of them.
	return s.pair.SetOutput(ctx, volume.OutputReceived)
}

// measureReceived measures the delay under the other level.
func (s *scenario) measureReceived(ctx context.Context) error {
	_, vm, _, err := s.measure(ctx, loadFor)
	if err != nil {
		return err
	}
	if vm.Output != volume.OutputReceived {
		return fmt.Errorf("the guest's output rule on host %s is %q and should be %q by now", s.primary, vm.Output, volume.OutputReceived)
	}
	r := &s.result
	r.OutputDelayMS.Received, r.OutputDelayRoundTrips.Received, r.OutputDelayEchoes.Received = delays(vm)
	s.sayDelay(vm)
	return nil
}

// delays are how long effects waited, in ms, in round trips of the link and in those from program to program.
func delays(vm api.VM) (inMS, inTrips, inEchoes Delay) {
	inMS = Delay{vm.Counters.DelayMedianMS, vm.Counters.DelayP99MS}
	return inMS, inMS.roundTrips(vm.LinkMS), inMS.roundTrips(vm.EchoMS)
}

func (s *scenario) sayDelay(vm api.VM) {
	s.out.say("output rule %q: effects waited: %s; the link's round trip is %.2f ms, from program to program %.2f ms, the secondary's lag %.1f ms",
		vm.Output, delay(delays(vm)), vm.LinkMS, vm.EchoMS, vm.LagMS)
}

// measure looks at the primary's counters before and after d. A secondary that was dropped meanwhile comes back by
// itself; then it is measured again.
func (s *scenario) measure(ctx context.Context, d time.Duration) (r rates, after api.VM, w load.Window, err error) {
	for range measureTries {
		if r, after, w, err = s.measureOnce(ctx, d); !errors.Is(err, errChanged) {
			return r, after, w, err
		}
		s.out.say("%v: once more", err)
		if _, err := s.lockstep(ctx); err != nil {
			return r, after, w, err
		}
	}
	return r, after, w, err
}

func (s *scenario) measureOnce(ctx context.Context, d time.Duration) (r rates, after api.VM, w load.Window, err error) {
	before, err := s.pair.VM(ctx, s.primary)
	if err != nil {
		return r, after, w, err
	}
	if s.load != nil {
		s.load.Window()
	}
	begin := time.Now()
	if err := sleep(ctx, d); err != nil {
		return r, after, w, err
	}
	if after, err = s.pair.VM(ctx, s.primary); err != nil {
		return r, after, w, err
	}
	if s.load != nil {
		w = s.load.Window()
	}
	r, err = between(before, after, time.Since(begin))
	return r, after, w, err
}

// sleep lets d pass.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
