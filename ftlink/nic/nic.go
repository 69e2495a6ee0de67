// Package nic says which IP addresses a network interface has.
//
// # Place
//
// ftlink/session, hvd/daemon and hvd/daemon/partner use it; nictest makes NICs
// for tests. It imports nothing of ours.
package nic

import (
	"net"
	"net/netip"
)

// Addresses are the IP addresses of a NIC, without zone; none if it isn't there.
func Addresses(name string) (list []netip.Addr) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return nil
	}
	addrs, err := i.Addrs()
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			list = append(list, p.Addr())
		}
	}
	return list
}

// LinkLocals are those that are link-local IPv6 addresses.
func LinkLocals(name string) (list []netip.Addr) {
	for _, ip := range Addresses(name) {
		if ip.Is6() && ip.IsLinkLocalUnicast() {
			list = append(list, ip)
		}
	}
	return list
}
