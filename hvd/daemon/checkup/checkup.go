// Package checkup says in plain words what a host has and what it lacks: the table of duet host check, and the text on
// its screen.
//
// # Place
//
// Pure: hvd/daemon gathers Facts and carries the results to the API and to the consoles. It imports hvd/api.
package checkup

import (
	"fmt"
	"strings"
	"time"

	"github.com/duet-ft/duet/hvd/api"
)

// Facts are what is known of a host. Lines that say what is wrong are empty when nothing is.
type Facts struct {
	Name, Version string
	// Addresses are those on the management network, without prefix length, and Port is the API's. Local says that the API
	// is served on the host itself only.
	Addresses   []string
	Port        int
	Local       bool
	Fingerprint string
	// Token is empty when the user chose it.
	Token string

	CPU       string // the model's name
	Virtual   string // "SVM", "VMX", or empty
	Nested    bool   // nested or extended page tables
	Microcode string
	KVM       string // "ok", or what is wrong
	Locator   string // "pmu", "trap", "resync" or "none"
	Why       string // the reason for it
	MemoryMiB int

	NICs   []NIC
	Volume string // "ok", or what is wrong

	Perm     string // what is wrong with it, or empty
	PermFree int64  // bytes
	PermSize int64

	Now    time.Time
	Synced bool // the kernel was told that the clock is right

	Peer, Session string // Session: "ok", or what is wrong
	Code          string
	CodeUntil     time.Time
	CodeWhy       string // why there is none
}

// NIC is a network interface.
type NIC struct {
	Name, MAC string
	Carrier   bool
	Use       string // "management", "direct", or empty
	MTU       int
	Heard     []string // hosts that were heard on it
}

const (
	// leastMiB is what a host needs beside its VMs' memory, and fewMiB what Linux shows of that at least.
	leastMiB = 512
	fewMiB   = 448
	// fullPerm is how much of /perm must be free, in bytes: events, and what an update keeps.
	fullPerm = 16 << 20
)

// earliest is before any version of Duet: a clock that says less was never set.
var earliest = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func (f Facts) direct() *NIC {
	for i, n := range f.NICs {
		if n.Use == "direct" {
			return &f.NICs[i]
		}
	}
	return nil
}

// Findings are the table's lines, in a fixed order.
func Findings(f Facts) []api.Finding {
	var list []api.Finding
	add := func(what string, g api.Grade, format string, args ...any) {
		list = append(list, api.Finding{What: what, Grade: g, Line: api.OneLine(fmt.Sprintf(format, args...))})
	}
	f.processor(add)
	if f.MemoryMiB < fewMiB {
		add("memory", api.Broken, "%d MiB; a host needs %d beside its VMs' memory", f.MemoryMiB, leastMiB)
	} else {
		add("memory", api.Fine, "%d MiB", f.MemoryMiB)
	}
	f.network(add)
	if f.Volume == "ok" {
		add("volume", api.Fine, "reached, and Duet's")
	} else {
		add("volume", api.Missing, "%s", strings.TrimPrefix(f.Volume, "no volume: "))
	}
	switch {
	case f.Perm != "":
		add("/perm", api.Broken, "%s", f.Perm)
	case f.PermFree < fullPerm:
		add("/perm", api.Broken, "%d MiB of %d free; the host keeps its key, its partner and its events there: remove what isn't Duet's", f.PermFree>>20, f.PermSize>>20)
	default:
		add("/perm", api.Fine, "%d MiB of %d free", f.PermFree>>20, f.PermSize>>20)
	}
	switch at := f.Now.UTC().Format("2006-01-02 15:04:05 UTC"); {
	case f.Now.Before(earliest):
		add("clock", api.Missing, "never set; VMs keep their own time, events get wrong dates: set the clock in the firmware set-up")
	case !f.Synced:
		add("clock", api.Fine, "%s, from the hardware; no time server corrects it", at)
	default:
		add("clock", api.Fine, "%s, kept by a time server", at)
	}
	f.partner(add)
	return list
}

type adder func(what string, g api.Grade, format string, args ...any)

func (f Facts) processor(add adder) {
	switch {
	case f.Virtual == "":
		add("CPU", api.Broken, "%s: it shows neither VMX nor SVM: switch virtualization on in the firmware set-up", or(f.CPU, "unknown"))
	case !f.Nested:
		add("CPU", api.Missing, "%s with %s, without nested page tables: guests run slowly", or(f.CPU, "unknown"), f.Virtual)
	default:
		add("CPU", api.Fine, "%s with %s and nested page tables", or(f.CPU, "unknown"), f.Virtual)
	}
	add("microcode", api.Fine, "%s; both hosts of a pair need the same", or(f.Microcode, "not known"))
	if f.KVM == "ok" {
		add("KVM", api.Fine, "/dev/kvm can be used")
	} else {
		add("KVM", api.Broken, "%s", strings.TrimPrefix(f.KVM, "no KVM: "))
	}
	why := ""
	if f.Why != "" {
		why = ": " + f.Why
	}
	switch f.Locator {
	case "pmu":
		add("intercepts", api.Fine, "this kernel's KVM derives time-stamps and counts traps")
		add("locator", api.Fine, "pmu%s", why)
	case "trap":
		add("intercepts", api.Fine, "this kernel's KVM derives time-stamps and counts traps")
		add("locator", api.Fine, "trap%s", why)
	case "resync":
		add("intercepts", api.Broken, "this kernel's KVM lacks them: boot Duet's own image")
		add("locator", api.Missing, "resync%s", why)
	default:
		add("intercepts", api.Broken, "not known, as there is no KVM")
		add("locator", api.Broken, "none, as there is no KVM")
	}
}

func (f Facts) network(add adder) {
	managed := false
	for _, n := range f.NICs {
		what := "NIC " + n.Name
		line := n.MAC + map[bool]string{true: ", cable in", false: ", no cable"}[n.Carrier]
		grade := api.Fine
		switch n.Use {
		case "management":
			managed = true
			switch {
			case !n.Carrier:
				grade, line = api.Broken, line+"; it is the one for the management network"
			case len(f.Addresses) == 0:
				grade, line = api.Broken, line+", management network, without an address: there is no DHCP server, or add \"static\" to host.json"
			default:
				line += ", management network, " + strings.Join(f.Addresses, " ")
			}
		case "direct":
			line += fmt.Sprintf(", direct link, MTU %d", n.MTU)
			if !n.Carrier {
				grade = api.Missing
			}
		default:
			line += ", not used"
		}
		if len(n.Heard) > 0 {
			line += "; heard there: " + strings.Join(n.Heard, ", ")
		}
		add(what, grade, "%s", line)
	}
	if !managed {
		add("NICs", api.Broken, "no NIC for the management network was found: this kernel lacks its driver, or there is none")
	}
	if f.direct() == nil {
		add("direct link", api.Missing, "no second NIC: without a direct cable to the partner, no VM can be protected")
	}
}

func (f Facts) partner(add adder) {
	switch {
	case f.Peer == "" && f.Code != "":
		add("partner", api.Missing, "none; %s", f.offer())
	case f.Peer == "":
		add("partner", api.Missing, "none; %s", or(f.CodeWhy, "pair this host with another: duet host pair"))
	case f.Session == "ok":
		add("partner", api.Fine, "%s, in session", f.Peer)
	default:
		add("partner", api.Missing, "%s: %s", f.Peer, or(f.Session, "no session yet"))
	}
}

// offer says how the host is paired by its code.
func (f Facts) offer() string {
	return fmt.Sprintf("pairing code %s until %s UTC: say duet host pair %s to the other host", f.Code, f.CodeUntil.UTC().Format("15:04"), f.Code)
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// Screen is the text on the host's consoles: how to reach it, how to pair it, and what is missing. It ends with a line feed.
func Screen(f Facts) string {
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "  %-12s %s\n", name, api.OneLine(fmt.Sprintf(format, args...)))
	}
	fmt.Fprintf(&b, "\nDuet host %s, version %s\n", api.OneLine(f.Name), api.OneLine(f.Version))
	switch {
	case f.Local:
		row("API", "on this host only, as it has no token")
	case len(f.Addresses) == 0:
		row("API", "no address yet")
	}
	if !f.Local {
		for _, a := range f.Addresses {
			if strings.Contains(a, ":") {
				a = "[" + a + "]"
			}
			row("API", "https://%s:%d", a, f.Port)
		}
	}
	row("fingerprint", "%s", f.Fingerprint)
	if f.Token != "" && f.Peer == "" {
		row("token", "%s", f.Token)
	}
	switch {
	case f.Code != "":
		row("pairing code", "%s, until %s UTC; on the other host: duet host pair %s", f.Code, f.CodeUntil.UTC().Format("15:04"), f.Code)
	case f.CodeWhy != "":
		row("pairing code", "%s", f.CodeWhy)
	case f.Peer != "":
		row("partner", "%s, %s", f.Peer, map[bool]string{true: "in session", false: "no session"}[f.Session == "ok"])
	}
	for _, x := range Findings(f) {
		if x.Grade != api.Fine && x.What != "partner" {
			row(string(x.Grade), "%s: %s", x.What, x.Line)
		}
	}
	return b.String()
}
