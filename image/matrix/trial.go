package matrix

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/duet-ft/duet/appliance/agent/wire"
	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/image/lab/transcript"
	"github.com/duet-ft/duet/image/load"
	"github.com/duet-ft/duet/image/pairlab"
)

const (
	// loadClients, loadSlots and loadShared keep the load small enough for a shared core.
	loadClients, loadSlots, loadShared = 4, 200, 4
	// lookEvery is the pause between two looks at the pair.
	lookEvery = 50 * time.Millisecond
	// lookFor is how long one look may take.
	lookFor = 3 * time.Second
	// settleFor is how long the pair may take to come to where it should be, beside a cell's own times.
	settleFor = time.Minute
	// seedTries is how often a state transfer may be over before it is seen.
	seedTries = 4
	// tries is how often a cell is run, in all, that was disturbed or late.
	tries = 3
	// suspicion is how long an emulated host is silent until it is suspected.
	suspicion = time.Second
	// liveWithin is how long a secondary that suspects its primary may take to be live: five heartbeats.
	liveWithin = 250 * time.Millisecond
	// held is how long a fault stays after its outcome was seen, if it has no time of its own.
	held = time.Second
)

// Trial is a protected pair with a guest under load, on which cells are run.
type Trial struct {
	rig  *rig
	log  func(line string)
	load *load.Load
	ours bool      // the load
	info wire.Info // what the guest said of itself, the last time
	// newest is when, by its own clock, the last event happened that a host told of when the present cell began.
	newest map[string]time.Time
	// stagger is how long after a switchover's beginning something broke, the last time.
	stagger time.Duration
}

// New is a trial on a pair whose guest runs, and which has proxies before its volume. Without clients, it sets some to
// work; they end with Close.
func New(ctx context.Context, pair *pairlab.Pair, clients *load.Load, log func(line string)) (*Trial, error) {
	t := &Trial{rig: &rig{Pair: pair, throttled: map[string]func(){}}, log: log, load: clients, newest: map[string]time.Time{}}
	if _, err := pair.WaitProtected(ctx); err != nil {
		return nil, err
	}
	var err error
	if t.info, err = pair.Info(ctx); err != nil {
		return nil, err
	}
	if clients != nil {
		return t, nil
	}
	return t, t.startLoad(ctx)
}

func (t *Trial) startLoad(ctx context.Context) (err error) {
	t.load, err = load.Start(context.WithoutCancel(ctx), load.Config{
		Dial: t.rig.Dial, Clients: loadClients, Slots: loadSlots, Shared: loadShared,
	})
	if err != nil {
		return err
	}
	t.ours = true
	return t.answered(ctx, settleFor)
}

// Close ends the clients.
func (t *Trial) Close() {
	if t.ours {
		t.load.Close()
	}
}

// Outcome is what was seen.
type Outcome struct {
	Cell    Cell
	From    string        // the primary before
	To      string        // who ran the guest then
	Gap     time.Duration // the longest that a client went without an answer
	Harmed  time.Duration // from the fault to its end
	LiveMS  float64       // a takeover: from the last heartbeat on; else 0
	Cause   string        // of the takeover
	Again   time.Duration // from healing to protected
	LagMS   float64       // of a cell that slows the primary: the longest lag, where it settled
	Refused uint64        // late writes that the volume refused
}

func (o Outcome) String() string {
	s := fmt.Sprintf("%-60s %s -> %s", o.Cell.Name(), o.From, o.To)
	if o.LiveMS > 0 {
		s += fmt.Sprintf(" live after %.0f ms (%s)", o.LiveMS, o.Cause)
	}
	s += fmt.Sprintf("; a client waited %.1f s; protected again in %.1f s", o.Gap.Seconds(), o.Again.Seconds())
	if o.LagMS > 0 {
		s += fmt.Sprintf("; lag %.0f ms", o.LagMS)
	}
	if o.Refused > 0 {
		s += fmt.Sprintf("; %d late writes refused", o.Refused)
	}
	return s
}

// course is a cell under way.
type course struct {
	*Trial
	cell          Cell
	first, second string // primary and secondary before
	before        api.VM // of the first
	out           Outcome
	written       uint64 // by the first, when the second had taken over
	refused       uint64
	watched       bool // the two were noted
	moving        chan error
	marks         map[string]transcript.Mark // of the hosts' logs, when the cell began
}

// Run runs a cell on the protected pair. The error says what isn't as the table has it. A cell during which a host stood
// still by itself is run again: a computer that does other work may not execute an emulated host for seconds, and then it
// is rightly suspected. So is one whose takeover was late.
func (t *Trial) Run(ctx context.Context, cell Cell) (Outcome, error) {
	for try := 1; ; try++ {
		c := &course{Trial: t, cell: cell, out: Outcome{Cell: cell}}
		err := c.run(ctx)
		if err == nil {
			return c.out, nil
		}
		err = fmt.Errorf("%s: %w", cell.Name(), errors.Join(err, c.calmDown(context.WithoutCancel(ctx))))
		why := c.disturbed()
		if errors.Is(err, errLate) {
			why = "its time"
		}
		if why == "" || try == tries || ctx.Err() != nil || cell.Restarts || errors.Is(err, errUnsafe) {
			return c.out, err
		}
		if unsafe := c.safe(ctx); unsafe != nil { // it may have failed before that was looked at
			return c.out, errors.Join(err, unsafe)
		}
		t.log(fmt.Sprintf("once more, for %s: %v", why, err))
	}
}

func (c *course) run(ctx context.Context) error {
	if err := c.begin(ctx); err != nil {
		return err
	}
	if err := c.reach(ctx); err != nil {
		return err
	}
	c.load.Window()
	start := time.Now()
	if err := c.each(ctx, func(h Harm, host string) error { return h.apply(ctx, c.rig, host) }); err != nil {
		return err
	}
	// What nobody notices is over before anything can be seen of it.
	brief := c.cell.lasts() > 0 && c.cell.lasts() < suspicion
	if !brief {
		if err := c.outcome(ctx); err != nil {
			return err
		}
	}
	if err := c.last(ctx, start); err != nil {
		return err
	}
	if err := c.says(ctx); err != nil {
		return err
	}
	healed := time.Now()
	c.out.Harmed = healed.Sub(start)
	if err := c.each(ctx, func(h Harm, host string) error { return h.heal(ctx, c.rig, host) }); err != nil {
		return err
	}
	if err := c.afterwards(ctx); err != nil {
		return err
	}
	c.out.Again = time.Since(healed)
	return c.check(ctx)
}

// begin notes where the pair stands.
func (c *course) begin(ctx context.Context) (err error) {
	if c.first, err = c.rig.WaitProtected(ctx); err != nil {
		return err
	}
	c.second = c.rig.Peer(c.first)
	c.out.From, c.out.To = c.first, c.first
	if err := c.answered(ctx, settleFor); err != nil {
		return err
	}
	c.marks = map[string]transcript.Mark{}
	for _, host := range pairlab.Names {
		c.marks[host] = c.rig.Host(host).Log().Now()
		events, err := c.rig.API(host).Events(ctx)
		if err != nil {
			return fmt.Errorf("the events of host %s: %w", host, err)
		}
		for _, e := range events {
			c.newest[host] = e.At
		}
	}
	c.before, err = c.look(ctx, c.first)
	return err
}

// each goes through what breaks, host by host.
func (c *course) each(_ context.Context, do func(h Harm, host string) error) error {
	for _, h := range c.cell.Harm {
		for _, host := range c.hosts(h.On) {
			if err := do(h, host); err != nil {
				return fmt.Errorf("%s on host %s: %w", h.Name, host, err)
			}
		}
	}
	return nil
}

func (c *course) hosts(s Side) []string {
	switch s {
	case Primary:
		return []string{c.first}
	case Secondary:
		return []string{c.second}
	}
	return []string{c.first, c.second}
}

// reach brings the pair to where the cell begins.
func (c *course) reach(ctx context.Context) error {
	switch c.cell.When {
	case Seeding:
		return c.reachSeeding(ctx)
	case SwitchingOver:
		c.moving = make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(ctx, lookFor)
			defer cancel()
			c.moving <- c.rig.API(c.first).Switchover(ctx, pairlab.Guest)
		}()
		// It takes some 20 ms, and what breaks comes in the middle, or just before it or behind: each time at another moment.
		c.stagger = (c.stagger + 7*time.Millisecond) % (40 * time.Millisecond)
		return sleep(ctx, c.stagger)
	}
	return nil
}

// reachSeeding has the secondary's process begin anew, and waits until it is being seeded.
func (c *course) reachSeeding(ctx context.Context) error {
	for range seedTries {
		if err := c.rig.Host(c.second).KillLargest(ctx); err != nil {
			return err
		}
		var missed bool
		err := c.until(ctx, settleFor, "a state transfer", func(ctx context.Context) (bool, string) {
			from, err := c.look(ctx, c.first)
			if err != nil {
				return false, describe(from, err)
			}
			if from.Role == "primary" && from.Epoch > c.before.Epoch+1 {
				missed = true
				return true, ""
			}
			return from.Role == "seeding", describe(from, nil)
		})
		if err != nil || !missed {
			return err
		}
		if c.before, err = c.look(ctx, c.first); err != nil {
			return err
		}
	}
	return fmt.Errorf("%d times, a state transfer was over before it was seen", seedTries)
}

// outcome waits for what the cell says of the guest while the fault lasts.
func (c *course) outcome(ctx context.Context) error {
	switch c.cell.Serves {
	case Waits, Unseen:
		return nil // nobody can be asked
	case Stays:
		if c.frozenFor() > 0 {
			return nil // it goes on when it wakes up
		}
	case Moves:
		err := c.until(ctx, c.cell.Wait, "host "+c.second+" to take over", func(ctx context.Context) (bool, string) {
			vm, err := c.look(ctx, c.second)
			return err == nil && vm.Live && vm.Role != "primary" || err == nil && vm.Live && vm.Epoch > c.before.Epoch+1, describe(vm, err)
		})
		if err != nil && c.cell.When == SwitchingOver { // it may be a primary that knows of no fault
			vm, lookErr := c.look(ctx, c.second)
			if lookErr == nil && vm.Live {
				err = nil
			}
		}
		if err != nil {
			return err
		}
		c.out.To = c.second
		n := c.rig.Proxy(c.first).Counts()
		c.written, c.refused, c.watched = n.Written, n.Refused, true
	}
	return c.answered(ctx, c.cell.Wait)
}

// last lets the fault stay for its time.
func (c *course) last(ctx context.Context, start time.Time) error {
	d := c.cell.lasts() - time.Since(start)
	if c.cell.lasts() == 0 {
		d = held
		if c.cell.Serves != Moves && c.cell.Serves != Either {
			d = 5 * time.Second // for what must not happen to have its chance
		}
	}
	if c.cell.Slows {
		return c.watchLag(ctx, d)
	}
	return sleep(ctx, d)
}

// afterwards waits until the pair is protected again, and the clients served.
func (c *course) afterwards(ctx context.Context) error {
	if c.moving != nil {
		<-c.moving // however it ended: the roles say
	}
	if c.cell.Restarts {
		if err := c.rig.StartGuest(ctx, c.first); err != nil {
			return err
		}
	}
	primary, err := c.rig.WaitProtected(ctx)
	if err != nil {
		return err
	}
	if c.cell.Serves != Moves {
		c.out.To = primary
	}
	wrong := c.cell.Serves == Moves && primary != c.second || (c.cell.Serves == Stays || c.cell.Serves == Unseen) && primary != c.first
	if wrong {
		return fmt.Errorf("host %s is primary; it was %s before, and %s should run the guest", primary, c.first, c.cell.Serves)
	}
	if c.cell.Restarts {
		return nil
	}
	return c.answered(ctx, c.cell.Wait)
}

// calmDown heals what an aborted cell left.
func (c *course) calmDown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleFor)
	defer cancel()
	return c.each(ctx, func(h Harm, host string) error {
		if h.reboots {
			return nil
		}
		return h.heal(ctx, c.rig, host)
	})
}

// look asks a host for its copy.
func (t *Trial) look(ctx context.Context, host string) (api.VM, error) {
	ctx, cancel := context.WithTimeout(ctx, lookFor)
	defer cancel()
	return t.rig.VM(ctx, host)
}

func describe(vm api.VM, err error) string {
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(fmt.Sprintf("%s, epoch %d %s", vm.Role, vm.Epoch, vm.Error))
}

// answered waits until each client has got an answer to a new request.
func (t *Trial) answered(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if err := t.load.Answered(ctx); err != nil {
		return fmt.Errorf("the clients: %w", err)
	}
	return nil
}

// until waits for a condition.
func (t *Trial) until(ctx context.Context, within time.Duration, what string, look func(context.Context) (bool, string)) error {
	begin := time.Now()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		ok, detail := look(ctx)
		if ok {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		if ctx.Err() != nil || time.Since(begin) > within {
			return fmt.Errorf("waited %.1f s for %s: %s", time.Since(begin).Seconds(), what, detail)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
