// Package plan decides how a host's network is set up: which interface carries the management network, which one is
// the direct link, what a DHCP answer means, what resolv.conf says, and when to try again.
//
// Pure: it is given what the rim (package main of netcfg) found, and returns what shall be. Used by netcfg only;
// imports hvd/hostcfg.
//
//	management NIC --- br0 (address, default route, IPv6 by SLAAC) --- taps of VMs (hvd adds them)
//	direct NIC ------- IPv6 link-local only, MTU up to 9000, no router advertisements
//	other NICs ------- the same: hvd looks for a partner on them, and finds out which one is direct
package plan

import (
	"cmp"
	"fmt"
	"net"
	"slices"

	"github.com/duet-ft/duet/hvd/hostcfg"
)

const (
	// Bridge is the name of the bridge that joins the management NIC and the VMs' taps.
	Bridge = "br0"
	// DirectMTU is the packet size that is tried on the direct link, in bytes: jumbo frames halve the work per byte of log.
	DirectMTU = 9000
)

// NIC is a physical network interface as the kernel shows it.
type NIC struct {
	// Name is the kernel's name, for example eth0.
	Name string
	// Bus is the device's place on its bus, for example 0000:00:03.0 for PCI; empty if it is not known.
	Bus string
	// MAC is the permanent hardware address.
	MAC net.HardwareAddr
}

// Roles says which interface does what.
type Roles struct {
	// Management is enslaved to the bridge; its MAC is also the bridge's.
	Management NIC
	// Direct is the NIC that is cabled to the peer; nil if the host has none.
	Direct *NIC
	// Others are set up like the direct one, because the peer may turn out to be on any of them.
	Others []NIC
}

// Assign gives the NICs their roles: those that cfg names, else the first in bus order for management and the next
// one for the direct link. Bus order, because the kernel's numbering depends on which driver was faster.
// It fails with one line for people when an interface that is needed is not there.
func Assign(nics []NIC, cfg *hostcfg.Config) (Roles, error) {
	rest := slices.Clone(nics)
	slices.SortFunc(rest, func(a, b NIC) int {
		return cmp.Or(cmp.Compare(a.Bus, b.Bus), cmp.Compare(len(a.Name), len(b.Name)), cmp.Compare(a.Name, b.Name))
	})
	take := func(name string) (NIC, bool) {
		i := slices.IndexFunc(rest, func(n NIC) bool { return n.Name == name })
		if i < 0 {
			return NIC{}, false
		}
		n := rest[i]
		rest = slices.Delete(rest, i, i+1)
		return n, true
	}

	var r Roles
	if cfg.Direct != "" {
		n, ok := take(cfg.Direct)
		if !ok {
			return Roles{}, fmt.Errorf("no interface %q for the direct link: plug it in, or correct \"direct\" in host.json (found: %s)",
				cfg.Direct, names(nics))
		}
		r.Direct = &n
	}
	switch {
	case cfg.Management != "":
		n, ok := take(cfg.Management)
		if !ok {
			return Roles{}, fmt.Errorf("no interface %q for management: plug it in, or correct \"management\" in host.json (found: %s)",
				cfg.Management, names(nics))
		}
		r.Management = n
	case len(rest) == 0:
		return Roles{}, fmt.Errorf("no network interface is left for management (found: %s)", names(nics))
	default:
		r.Management, rest = rest[0], rest[1:]
	}
	if r.Direct == nil && len(rest) > 0 {
		n := rest[0]
		r.Direct, rest = &n, rest[1:]
	}
	if len(rest) > 0 {
		r.Others = rest
	}
	return r, nil
}

func names(nics []NIC) string {
	if len(nics) == 0 {
		return "none"
	}
	s := ""
	for i, n := range nics {
		if i > 0 {
			s += ", "
		}
		s += n.Name
	}
	return s
}
