package main

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/duet-ft/duet/hvd/api"
)

// table prints rows of columns; the cells of a row are separated by tabs.
func table(out io.Writer, print func(w io.Writer)) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	print(w)
	return w.Flush()
}

// row prints a name and a value, unless it is empty.
func row(w io.Writer, name, format string, args ...any) {
	if value := api.OneLine(fmt.Sprintf(format, args...)); value != "" {
		fmt.Fprintf(w, "%s\t%s\n", name, value)
	}
}

func showHost(ctx context.Context, e env) error {
	h, err := e.client.Host(ctx)
	if err != nil {
		return err
	}
	return table(e.out, func(w io.Writer) {
		row(w, "name", "%s", h.Name)
		row(w, "version", "%s", h.Version)
		row(w, "KVM", "%s", h.KVM)
		row(w, "volume", "%s", h.Volume)
		row(w, "peer", "%s", h.Peer)
		row(w, "session", "%s", h.Session)
		row(w, "pairing code", "%s", shownCode(h))
		for _, o := range h.Heard {
			row(w, "heard", "host %s on %s", o.Name, o.NIC)
		}
		row(w, "key", "%s", h.Key)
		if key, err := hex.DecodeString(h.Key); err == nil && len(key) == ed25519.PublicKeySize {
			row(w, "fingerprint", "%s", api.Fingerprint(key))
		}
		row(w, "locator", "%s", because(h.Locator, h.LocatorWhy))
		row(w, "drained", "%s", map[bool]string{true: "yes"}[h.Drained])
		row(w, "trouble", "%s", h.Trouble)
	})
}

// because is what, with the reason for it.
func because(what, why string) string {
	if why == "" {
		return what
	}
	return what + " (" + why + ")"
}

func showVMs(ctx context.Context, e env) error {
	list, err := e.client.VMs(ctx)
	if err != nil {
		return err
	}
	return table(e.out, func(w io.Writer) {
		fmt.Fprintln(w, "NAME\tROLE\tRUNS HERE\tPROTECTED\tEPOCH\tLAG\tOUTPUT\tACCESSED BITS\tERROR")
		for _, v := range list {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%.1f ms\t%s\t%s\t%s\n",
				api.OneLine(v.Name), api.OneLine(v.Role), yes(v.Live), protection(v), v.Epoch, v.LagMS,
				api.OneLine(v.Output), api.OneLine(firstWord(v.Accessed)), api.OneLine(v.Error))
		}
	})
}

// firstWord is what a line begins with: steady of "steady: ...".
func firstWord(line string) string {
	return strings.TrimRight(strings.SplitN(line, " ", 2)[0], ":,")
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// protection says whether a VM is protected, and whether a user wants it otherwise.
func protection(v api.VM) string {
	switch {
	case v.Unprotected && v.Protected:
		return "yes, until it knows"
	case v.Unprotected:
		return "no, as told"
	}
	return yes(v.Protected)
}

func showVM(ctx context.Context, e env) error {
	v, err := e.client.VM(ctx, e.args[0])
	if err != nil {
		return err
	}
	return table(e.out, func(w io.Writer) {
		row(w, "name", "%s", v.Name)
		row(w, "role", "%s", v.Role)
		row(w, "runs here", "%s", yes(v.Live))
		row(w, "protected", "%s", protection(v))
		row(w, "unprotected", "%s", map[bool]string{true: "by a user, until duet vm protect " + v.Name}[v.Unprotected])
		row(w, "epoch", "%d", v.Epoch)
		row(w, "output", "%s", v.Output)
		row(w, "accessed bits", "%s", v.Accessed)
		row(w, "error", "%s", v.Error)
		row(w, "position", "%d exits", v.Position)
		row(w, "guest time", "%s", time.Duration(v.ClockNS).Round(time.Millisecond))
		row(w, "lag", "%.1f ms", v.LagMS)
		row(w, "LSN", "%d, verified %d", v.LSN, v.Verified)
		c := v.Counters
		row(w, "exits", "%d (ticks %d, inputs %d)", c.Exits, c.Ticks, c.Inputs)
		row(w, "log", "%d bytes, of them %d of %d resyncs (%d each)", c.LogBytes, c.ResyncBytes, c.Resyncs, c.ResyncBytes/max(1, c.Resyncs))
		row(w, "locator", "%s", because(v.Locator, v.LocatorWhy))
		placed := float64(max(1, c.AtExit+c.AtTrap+c.AtPoint+c.AtResync)) / 100
		row(w, "inputs placed", "%.1f %% at exits, %.1f %% at traps, %.1f %% at points, %.1f %% by resync; counted: %s",
			float64(c.AtExit)/placed, float64(c.AtTrap)/placed, float64(c.AtPoint)/placed, float64(c.AtResync)/placed, cmp.Or(c.Traps, "nothing"))
		row(w, "throttled", "%d times", c.Throttled)
		row(w, "divergences", "%d", c.Divergences)
		row(w, "disk", "%d reads, %d writes", c.DiskReads, c.DiskWrites)
		if n := c.LoggedReads; n > 0 {
			row(w, "reads in the log", "%d of %d bytes each, of them %d by reference of %d; %d of those asked for",
				n, c.ReadLogBytes/n, c.ReadRefs, c.RefLogBytes/max(1, c.ReadRefs), c.RefsAsked)
		}
		row(w, "network", "%d frames in, %d out", c.FramesIn, c.FramesOut)
		row(w, "output delay", "%.2f ms, 99 %% below %.2f ms", c.DelayMedianMS, c.DelayP99MS)
		if v.EchoMS > 0 {
			row(w, "round trip", "%.2f ms of the direct link, %.2f ms from program to program", v.LinkMS, v.EchoMS)
		}
		if s := v.Seed; s != nil {
			row(w, "last transfer", "%d pages (%d were there), %d bytes, %d rounds, %.0f ms, pause %.1f ms", s.Pages, s.Known, s.Bytes, s.Rounds, s.TotalMS, s.PauseMS)
		}
		if f := v.Failover; f != nil {
			row(w, "last failover", "%s, %s: detected %.0f ms, won %.0f ms, live %.0f ms, %d disk requests reissued",
				stamp(f.At), f.Cause, f.DetectionMS, f.ClaimMS, f.LiveMS, f.Reissued)
		}
	})
}

func stamp(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05.000") }
