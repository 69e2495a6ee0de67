package matrix

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/duet-ft/duet/image/pairlab"
)

// errLate says that a takeover took too long. It counts if it does so again and again: of a thousand, ten may.
var errLate = errors.New("the takeover was late")

// check looks at everything once more.
func (c *course) check(ctx context.Context) error {
	w := c.load.Window()
	c.out.Gap = w.Gap
	limit := c.cell.Wait + c.frozenFor()
	if c.cell.Serves == Waits || c.cell.Serves == Unseen {
		limit += c.out.Harmed
	}
	errs := []error{c.safe(ctx)}
	if w.Gap > limit && !c.cell.Restarts {
		errs = append(errs, fmt.Errorf("a client waited %.1f s for an answer, and %.1f s are the limit", w.Gap.Seconds(), limit.Seconds()))
	}
	vm, err := c.look(ctx, c.out.To)
	errs = append(errs, err)
	if c.cell.Calm && err == nil && vm.Epoch != c.before.Epoch {
		errs = append(errs, fmt.Errorf("the block went from epoch %d to %d: somebody changed roles", c.before.Epoch, vm.Epoch))
	}
	if f := vm.Failover; f != nil && c.out.To != c.first && (c.before.Failover == nil || f.At != c.before.Failover.At) {
		c.out.LiveMS, c.out.Cause = f.LiveMS, f.Cause
		if live := time.Duration(f.LiveMS * float64(time.Millisecond)); live > suspicion+liveWithin && !c.slowVolume() {
			errs = append(errs, fmt.Errorf("%w: %v after host %s last heard of host %s, and %v are the limit", errLate, live, c.out.To, c.first, suspicion+liveWithin))
		}
	}
	return errors.Join(errs...)
}

// errUnsafe says that something happened which no computer's slowness excuses.
var errUnsafe = errors.New("unsafe")

// safe checks what holds however slow everything is: the guest is the one that it was, nothing that it acknowledged is
// lost, nothing diverged, and who lost it wrote nothing.
func (c *course) safe(ctx context.Context) error {
	var errs []error
	if c.cell.Restarts {
		errs = append(errs, c.restarted(ctx))
	} else {
		errs = append(errs, c.alive(ctx), c.intact(ctx))
	}
	found, err := c.divergences(ctx)
	errs = append(errs, err)
	if found != "" {
		errs = append(errs, errors.New("a divergence: "+found))
	}
	if c.watched {
		n := c.rig.Proxy(c.first).Counts()
		c.out.Refused = n.Refused - c.refused
		if n.Written != c.written {
			errs = append(errs, fmt.Errorf("host %s wrote %d times after host %s had taken over", c.first, n.Written-c.written, c.second))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: %w", errUnsafe, err)
	}
	return nil
}

// slowVolume says that winning the block and fencing take long, too.
func (c *course) slowVolume() bool {
	return slices.ContainsFunc(c.cell.Harm, func(h Harm) bool { return h.Name == volumeSlow.Name })
}

// frozenFor is how long the host that goes on can't answer by itself.
func (c *course) frozenFor() (d time.Duration) {
	if c.cell.Serves != Stays {
		return 0
	}
	for _, h := range c.cell.Harm {
		if h.freezes && h.On != Secondary {
			d = max(d, h.lasts)
		}
	}
	return d
}

// stoodStill is what a host says when it wasn't executed for four heartbeats or longer.
var stoodStill = regexp.MustCompile(`this host stood still for \d+ ms`)

// disturbed says how a host stood still that nobody froze, so that it may rightly have been suspected, or was late; "" if
// none did.
func (c *course) disturbed() string {
	for _, host := range pairlab.Names {
		frozen := slices.ContainsFunc(c.cell.Harm, func(h Harm) bool { return h.freezes && slices.Contains(c.hosts(h.On), host) })
		from, known := c.marks[host]
		if frozen || !known {
			continue // it is meant to say so
		}
		for _, line := range c.rig.Host(host).Log().Lines(from) {
			if s := stoodStill.FindString(line); s != "" {
				return fmt.Sprintf("host %s says %q", host, s)
			}
		}
	}
	return ""
}

// alive checks that the guest is the one that it was.
func (t *Trial) alive(ctx context.Context) error {
	info, err := t.rig.Info(ctx)
	if err != nil {
		return err
	}
	if info.BootID != t.info.BootID || info.Uptime <= t.info.Uptime {
		return fmt.Errorf("the guest has booted anew: boot_id %s was %s, uptime %.1f s was %.1f s",
			info.BootID, t.info.BootID, info.Uptime, t.info.Uptime)
	}
	t.info = info
	return nil
}

// intact reads back what was acknowledged.
func (t *Trial) intact(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleFor)
	defer cancel()
	r, err := t.load.Check(ctx)
	switch {
	case err != nil:
		return err
	case !r.Clean():
		return fmt.Errorf("of %d acknowledged writes: %v; %d of %d connections reset (%w)", r.Acknowledged, r.Findings, r.Resets, r.Connections, r.Broken)
	case r.Acknowledged == 0:
		return errors.New("nothing was written, so nothing was tested")
	}
	return nil
}

// restarted checks a guest that has booted anew, and sets new clients to work.
func (t *Trial) restarted(ctx context.Context) error {
	info, err := t.rig.Info(ctx)
	if err != nil {
		return err
	}
	if info.BootID == t.info.BootID {
		return fmt.Errorf("the guest goes on, boot_id %s, and should have started from its disk", info.BootID)
	}
	t.info = info
	r, err := t.load.Check(ctx)
	t.load.Close()
	if err == nil && !r.OK() {
		err = fmt.Errorf("of %d acknowledged writes: %v", r.Acknowledged, r.Findings)
	}
	return errors.Join(err, t.startLoad(ctx))
}

// divergences returns what the hosts tell of since the cell began.
func (c *course) divergences(ctx context.Context) (found string, err error) {
	for _, host := range pairlab.Names {
		events, err := c.rig.API(host).Events(ctx)
		if err != nil {
			return "", fmt.Errorf("the events of host %s: %w", host, err)
		}
		for _, e := range events {
			if e.Role == "diverged" && e.At.After(c.newest[host]) {
				found = strings.TrimPrefix(found+"; host "+host+": "+e.What, "; ")
			}
		}
	}
	return found, nil
}

// says waits until a host tells what the cell says that it does.
func (c *course) says(ctx context.Context) error {
	if c.cell.Says == "" {
		return nil
	}
	var told []string
	return c.until(ctx, c.cell.Wait, fmt.Sprintf("a host to say %q", c.cell.Says), func(ctx context.Context) (bool, string) {
		told = told[:0]
		for _, host := range pairlab.Names {
			if vm, err := c.look(ctx, host); err == nil && vm.Error != "" {
				told = append(told, vm.Error)
			}
			events, err := c.rig.API(host).Events(ctx)
			if err != nil {
				return false, err.Error()
			}
			for _, e := range events {
				if e.At.After(c.newest[host]) {
					told = append(told, e.What)
				}
			}
		}
		all := strings.Join(told, "; ")
		return strings.Contains(all, c.cell.Says), all
	})
}
