package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/duet-ft/duet/hvd/api"
)

const (
	// followEvery is how often hosts are asked for new events.
	followEvery = time.Second
	// lateness is how much later than a newer one an event may become known, on hosts whose clocks differ a little.
	lateness = 10 * time.Second
	// hostLimit is how long one of two hosts is waited for.
	hostLimit = 5 * time.Second
)

// asked is which events are to be shown, and how.
type asked struct {
	vm     string
	since  time.Time // zero: from the beginning
	json   bool
	follow bool
}

// parseEvents reads the arguments of the command; now is for a time that is given as an age.
func parseEvents(args []string, now time.Time) (a asked, err error) {
	f := flag.NewFlagSet("events", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&a.vm, "vm", "", "")
	f.BoolVar(&a.json, "json", false, "")
	f.BoolVar(&a.follow, "follow", false, "")
	f.Func("since", "", func(text string) (err error) {
		a.since, err = parseSince(text, now)
		return err
	})
	for name := ""; ; name = "" { // a VM's name may stand before the flags, and behind
		if err := f.Parse(args); err != nil {
			return a, fmt.Errorf("%w: %w", errUsage, err)
		}
		if f.NArg() == 0 {
			return a, nil
		}
		if name, args = f.Arg(0), f.Args()[1:]; a.vm != "" {
			return a, fmt.Errorf("%w: events of one VM only: %.40q or %.40q", errUsage, a.vm, name)
		}
		a.vm = name
	}
}

// parseSince reads a time: an age such as 90m, or a date, with the time of day if that is wanted.
func parseSince(text string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateTime, time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%.40q: expected an age such as 90m, or a time such as %q", text, time.DateTime)
}

// showEvents shows what happened on both hosts, or on the one that is known.
func showEvents(ctx context.Context, e env) error {
	a, err := parseEvents(e.args, time.Now())
	if err != nil {
		return err
	}
	shown := map[api.Event]bool{} // of the last moments
	silent := ""                  // what was said about hosts that don't answer
	for tick := time.NewTicker(followEvery); ; {
		list, missing, err := gather(ctx, e, a)
		switch {
		case ctx.Err() != nil && a.follow:
			return nil // interrupted
		case err != nil && !(a.follow && silent != ""):
			return err
		case missing != silent && missing != "":
			fmt.Fprintf(e.notes, "events of one host are missing: %s\n", missing)
		}
		silent = cmp.Or(missing, oneLine(err))
		list = slices.DeleteFunc(list, func(v api.Event) bool { return shown[plain(v)] })
		if err := printEvents(e.out, list, a.json); err != nil || !a.follow {
			tick.Stop()
			return err
		}
		a.since = remember(shown, list, a.since)
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return nil
		}
	}
}

// oneLine is an error's text, or nothing.
func oneLine(err error) string {
	if err == nil {
		return ""
	}
	return api.OneLine(err.Error())
}

// plain is an event as a key: a divergence is in its line, too.
func plain(v api.Event) api.Event {
	v.Divergence = nil
	v.At = v.At.UTC()
	return v
}

// remember notes what was shown, forgets what is long past, and says from when on to ask next.
func remember(shown map[api.Event]bool, list []api.Event, since time.Time) time.Time {
	for _, v := range list {
		shown[plain(v)] = true
		if from := v.At.Add(-lateness); from.After(since) {
			since = from
		}
	}
	for v := range shown {
		if v.At.Before(since) {
			delete(shown, v)
		}
	}
	return since
}

// gather asks both hosts, and merges what they tell by its times. missing says why a host's are missing; it is an error
// if that goes for all.
func gather(ctx context.Context, e env, a asked) (list []api.Event, missing string, err error) {
	if e.peer == nil {
		list, err = ask(ctx, e.client, e.timeout, a)
		return list, "", err
	}
	var theirs []api.Event
	var perr error
	var both sync.WaitGroup
	limit := min(e.timeout, hostLimit) // one of them may be dead, which is when people look
	both.Go(func() { list, err = ask(ctx, e.client, limit, a) })
	both.Go(func() { theirs, perr = ask(ctx, e.peer, limit, a) })
	both.Wait()
	if err != nil && perr != nil {
		return nil, "", errors.Join(err, perr)
	}
	list = append(list, theirs...)
	slices.SortStableFunc(list, func(a, b api.Event) int {
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Epoch, b.Epoch))
	})
	return list, oneLine(cmp.Or(err, perr)), nil
}

func ask(ctx context.Context, c *api.Client, limit time.Duration, a asked) ([]api.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return c.EventsSince(ctx, a.since, a.vm)
}

// printEvents prints a table, or a line of JSON for each.
func printEvents(out io.Writer, list []api.Event, asJSON bool) error {
	if asJSON {
		w := json.NewEncoder(out)
		for _, v := range list {
			if err := w.Encode(v); err != nil {
				return err
			}
		}
		return nil
	}
	return table(out, func(w io.Writer) {
		for _, v := range list {
			at := ""
			if v.Position > 0 {
				at = fmt.Sprintf("at %d", v.Position)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", stamp(v.At), api.OneLine(v.Host), api.OneLine(v.VM), api.OneLine(v.Kind),
				api.OneLine(roleOf(v)), at, api.OneLine(v.What))
		}
	})
}

// roleOf is what an event makes of a copy, and in which epoch.
func roleOf(v api.Event) string {
	role := v.Role
	if v.From != "" {
		role = v.From + " > " + v.Role
	}
	if v.Epoch > 0 {
		role += fmt.Sprintf(" %d", v.Epoch)
	}
	return role
}
