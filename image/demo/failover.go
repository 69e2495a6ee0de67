package main

import (
	"context"
	"fmt"
	"time"

	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/image/load"
	"github.com/duet-ft/duet/image/pairlab"
)

// failover kills the primary's host at its random moment, and checks what the clients and the guest have to say.
func (s *scenario) failover(ctx context.Context, number int) error {
	victim, survivor := s.primary, s.pair.Peer(s.primary)
	after := killTimes(s.opt.seed)[number]
	if err := sleep(ctx, after); err != nil {
		return err
	}
	vm, err := s.pair.VM(ctx, victim)
	if err != nil {
		return err
	}
	if !vm.Protected { // it would be the death of the guest, as without a pair
		s.out.say("the secondary was dropped a moment ago (%s); waiting until the guest is protected again", vm.Role)
		if _, err := s.lockstep(ctx); err != nil {
			return err
		}
	}
	s.load.Window()
	if err := s.pair.Kill(victim); err != nil {
		return err
	}
	s.tally.killed(victim)
	s.out.say("KILLED host %s (SIGKILL to its QEMU) after %.3f s of load", victim, after.Seconds())
	live, err := s.pair.WaitLive(ctx)
	if err != nil {
		return err
	}
	s.primary = live
	answered, cancel := context.WithTimeout(ctx, answerWithin)
	err = s.load.Answered(answered)
	cancel()
	w := s.load.Window()
	s.result.OutageMS = append(s.result.OutageMS, ms(w.Gap))
	s.tellFailover(ctx, survivor)
	if err == nil {
		s.out.say("all %d connections go on; the longest waited %.0f ms for an answer", clients, ms(w.Gap))
		err = sleep(ctx, settleFor)
	}
	if err != nil {
		s.check(ctx) // what is lost, if it can still be told
		return err
	}
	s.result.Failovers++
	return s.check(ctx)
}

// tellFailover prints how the survivor went live.
func (s *scenario) tellFailover(ctx context.Context, survivor string) {
	vm, err := s.pair.VM(ctx, survivor)
	if err != nil || vm.Failover == nil {
		s.out.say("host %s doesn't tell how it went live: %v", survivor, err)
		return
	}
	f := vm.Failover
	s.result.DetectionMS = append(s.result.DetectionMS, f.DetectionMS)
	s.result.ClaimMS = append(s.result.ClaimMS, f.ClaimMS)
	s.result.LiveMS = append(s.result.LiveMS, f.LiveMS)
	if f.Cause != "" {
		s.out.say("cause: %s", f.Cause)
	}
	s.out.say("host %s is LIVE (epoch %d): suspicion after %.0f ms, arbiter won after %.0f ms, live after %.0f ms; %d disk requests reissued",
		survivor, vm.Epoch, f.DetectionMS, f.ClaimMS, f.LiveMS, f.Reissued)
}

// check reads everything back and asks the agent whether the guest is still the same.
func (s *scenario) check(ctx context.Context) error {
	begin := time.Now()
	r, err := s.load.Check(ctx)
	s.note(r)
	if err != nil {
		return err
	}
	s.out.say("read back: %d acknowledged writes, %s; %d of %d connections reset (%.1f s)",
		r.Acknowledged, r.Findings, r.Resets, r.Connections, time.Since(begin).Seconds())
	if r.Broken != nil {
		s.out.say("reset: %v", r.Broken)
	}
	info, err := s.pair.Info(ctx)
	if err != nil {
		return err
	}
	same := info.BootID == s.first.BootID && info.Uptime > s.last.Uptime
	s.out.say("agent: boot_id %s, uptime %.0f s, before %.0f s", info.BootID, info.Uptime, s.last.Uptime)
	s.result.SameBoot = same
	if !same {
		return fmt.Errorf("the guest has booted anew: boot_id %s was %s, uptime %.0f s was %.0f s",
			info.BootID, s.first.BootID, info.Uptime, s.last.Uptime)
	}
	s.last = info
	return nil
}

// note takes over where the clients stand.
func (s *scenario) note(r load.Result) {
	s.result.Connections, s.result.Resets, s.result.Acknowledged = r.Connections, r.Resets, r.Acknowledged
	s.result.Lost, s.result.Backwards, s.result.Doubled, s.result.Unread = r.Lost, r.Backwards, r.Doubled, r.Unread
}

// comeBack switches the dead host on again, and waits until the guest is protected.
func (s *scenario) comeBack(ctx context.Context) error {
	dead := s.pair.Peer(s.primary)
	begin := time.Now()
	if err := s.pair.Restart(ctx, dead); err != nil {
		return err
	}
	s.out.say("host %s has booted again (%.1f s)", dead, time.Since(begin).Seconds())
	return s.protected(ctx)
}

// finish checks for the last time, ends the load, switches the guest off, and checks its file system.
func (s *scenario) finish(ctx context.Context) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	s.tally.look(ctx, s.pair, true)
	if s.opt.keep {
		return nil
	}
	s.stopLoad()
	begin := time.Now()
	if err := s.pair.Shutdown(ctx); err != nil {
		return err
	}
	s.out.say("the guest has switched itself off (%.1f s)", time.Since(begin).Seconds())
	s.stopWatching()
	if err := s.pair.Fsck(ctx); err != nil {
		s.result.Fsck = firstLine(err)
		return err
	}
	s.result.Fsck = clean
	s.out.say("the guest's file system on the volume is clean (e2fsck -fn)")
	return nil
}

func (s *scenario) stopLoad() {
	if s.load != nil {
		s.load.Close()
		s.load = nil
	}
}

// stopWatching ends the watcher and takes its sums.
func (s *scenario) stopWatching() {
	if s.cancel == nil {
		return
	}
	s.cancel()
	s.watcher.Wait()
	s.cancel = nil
	s.result.Resyncs, s.result.Divergences = s.tally.sums()
}

// close ends everything.
func (s *scenario) close() {
	s.stopLoad()
	s.stopWatching()
	if s.pair != nil {
		if err := s.pair.Close(); err != nil {
			s.out.say("while cleaning up: %v", err)
		}
	}
}

// keep leaves the pair running until ctx ends, and says how to reach it.
func (s *scenario) keep(ctx context.Context) {
	s.out.say("the pair stays until Ctrl-C, and so does the load")
	forward := func(what, remote, how string) {
		local, err := s.pair.Lab.Net.Forward("127.0.0.1:0", remote)
		if err != nil {
			s.out.say("%s: %v", what, err)
			return
		}
		s.out.say("%s: "+how, what, local)
	}
	forward("the guest's Redis", fmt.Sprintf("%s:%d", pairlab.GuestIP(), pairlab.RedisPort), "%s (redis-cli's -h and -p)")
	for _, name := range pairlab.Names {
		h := s.pair.Host(name)
		forward("page of host "+name, h.IP()+":80", "http://gokrazy:"+s.pair.Lab.Password+"@%s/")
		forward("interface of host "+name, fmt.Sprintf("%s:%d", h.IP(), api.Port), "https://%s/v1/vms with the token "+s.pair.Token())
		s.out.say("console of host %s: %s; what its programs print: %s", name, h.ConsoleLog(), h.ProgramsLog())
	}
	s.out.say("to kill a host: kill -9 %d (a), kill -9 %d (b)", s.pid(pairlab.Names[0]), s.pid(pairlab.Names[1]))
	<-ctx.Done()
}

func (s *scenario) pid(name string) int {
	if m := s.pair.Host(name).Machine(); m != nil {
		return m.PID()
	}
	return 0
}
