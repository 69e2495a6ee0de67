package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/duet-ft/duet/hvd/api"
)

// pair has the host show a pairing code, or pairs it with the host that shows the one that is given.
func pair(ctx context.Context, e env) error {
	if len(e.args) == 1 {
		h, err := e.client.ShowCode(ctx)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(e.out, "host %s shows the pairing code %s; on the other host: duet host pair %s\n", h.Name, shownCode(h), h.Code)
		return err
	}
	h, err := e.client.Pair(ctx, e.args[1])
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.out, "host %s and host %s are a pair\n", h.Name, h.Peer)
	return err
}

// shownCode is the host's pairing code with the time when it is over; empty if it shows none.
func shownCode(h api.Host) string {
	if h.Code == "" || h.CodeUntil == nil {
		return h.Code
	}
	return h.Code + " until " + h.CodeUntil.Local().Format("15:04")
}

func unpair(ctx context.Context, e env) error {
	h, err := e.client.Unpair(ctx)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.out, "host %s has no partner any more; the other host doesn't know of that\n", h.Name)
	return err
}

// errUnfit ends duet host check with status 1: the table has said why.
var errUnfit = errors.New("this host can't work as it is: see what is broken above")

// check prints what the host found out about itself.
func check(ctx context.Context, e env) error {
	list, err := e.client.Check(ctx)
	if err != nil {
		return err
	}
	broken := false
	if err := table(e.out, func(w io.Writer) {
		for _, f := range list {
			fmt.Fprintf(w, "%s\t%s\t%s\n", api.OneLine(f.What), api.OneLine(string(f.Grade)), api.OneLine(f.Line))
			broken = broken || f.Grade == api.Broken
		}
	}); err != nil {
		return err
	}
	if broken {
		return errUnfit
	}
	return nil
}
