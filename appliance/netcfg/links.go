package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/duet-ft/duet/appliance/netcfg/plan"
	"github.com/vishvananda/netlink"
)

// sysNet is where the kernel shows its interfaces.
const sysNet = "/sys/class/net"

// physicalNICs finds the Ethernet interfaces that are backed by a device: not the loopback, bridges, taps, VLANs.
func physicalNICs() ([]plan.NIC, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("cannot list interfaces: %w", err)
	}
	var nics []plan.NIC
	for _, i := range all {
		bus, err := filepath.EvalSymlinks(filepath.Join(sysNet, i.Name, "device"))
		if err != nil || len(i.HardwareAddr) != 6 {
			continue
		}
		nics = append(nics, plan.NIC{Name: i.Name, Bus: bus, MAC: i.HardwareAddr})
	}
	return nics, nil
}

// watchLinks sends a value after the kernel has reported a change of a link; several changes may become one value.
func watchLinks(ctx context.Context) <-chan struct{} {
	changed := make(chan struct{}, 1)
	updates := make(chan netlink.LinkUpdate, 64)
	if err := netlink.LinkSubscribe(updates, ctx.Done()); err != nil {
		return changed // the periodic check remains
	}
	go func() {
		for range updates {
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return changed
}

// ensureLinks makes the links as r says. It changes only what is not so already, and may be called at any time.
func ensureLinks(r plan.Roles) error {
	if lo, err := netlink.LinkByName("lo"); err == nil && lo.Attrs().Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(lo); err != nil {
			return fmt.Errorf("lo: %w", err)
		}
	}
	br, err := ensureBridge(r.Management.MAC)
	if err != nil {
		return err
	}
	if err := enslave(r.Management.Name, br); err != nil {
		return err
	}
	if err := setUp(br); err != nil {
		return err
	}
	if r.Direct != nil {
		if err := ensureDirect(r.Direct.Name); err != nil {
			return err
		}
	}
	for _, n := range r.Others {
		if err := ensureDirect(n.Name); err != nil {
			return err
		}
	}
	return nil
}

// ensureBridge makes br0 without spanning tree and without a learning delay: a VM that moves here must be reachable
// at once. Multicast snooping is off because there is no querier, and a moved VM would miss groups it has joined.
func ensureBridge(mac net.HardwareAddr) (netlink.Link, error) {
	br, err := netlink.LinkByName(plan.Bridge)
	var absent netlink.LinkNotFoundError
	if errors.As(err, &absent) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = plan.Bridge
		attrs.HardwareAddr = mac
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return nil, fmt.Errorf("making %s: %w", plan.Bridge, err)
		}
		br, err = netlink.LinkByName(plan.Bridge)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", plan.Bridge, err)
	}
	if br.Attrs().HardwareAddr.String() != mac.String() {
		if err := netlink.LinkSetHardwareAddr(br, mac); err != nil {
			return nil, fmt.Errorf("setting the address of %s: %w", plan.Bridge, err)
		}
	}
	for attr, value := range map[string]string{"stp_state": "0", "forward_delay": "0"} {
		if err := setSys(filepath.Join(sysNet, plan.Bridge, "bridge", attr), value); err != nil {
			return nil, err
		}
	}
	// Absent from a kernel that was built without snooping, which is as good.
	snooping := filepath.Join(sysNet, plan.Bridge, "bridge", "multicast_snooping")
	if err := setSys(snooping, "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return br, nil
}

// enslave puts the NIC into the bridge. The NIC itself gets no IPv6 address: the bridge has one.
func enslave(name string, br netlink.Link) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := setIPv6(name, "disable_ipv6", "1"); err != nil {
		return err
	}
	if l.Attrs().MasterIndex != br.Attrs().Index {
		if err := netlink.LinkSetMaster(l, br); err != nil {
			return fmt.Errorf("adding %s to %s: %w", name, plan.Bridge, err)
		}
	}
	return setUp(l)
}

// ensureDirect sets up the NIC to the peer: it learns nothing from routers, since there must be none, and takes
// jumbo frames if the hardware does.
func ensureDirect(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := setIPv6(name, "accept_ra", "0"); err != nil {
		return err
	}
	if l.Attrs().MTU < plan.DirectMTU && l.Attrs().Flags&net.FlagUp == 0 {
		// A NIC that can't is no fault: the link works with its own size.
		_ = netlink.LinkSetMTU(l, plan.DirectMTU)
	}
	return setUp(l)
}

func setUp(l netlink.Link) error {
	if l.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("bringing %s up: %w", l.Attrs().Name, err)
	}
	return nil
}

// setIPv6 sets an IPv6 parameter of an interface; a kernel without IPv6 has none to set.
func setIPv6(name, parameter, value string) error {
	err := setSys(filepath.Join("/proc/sys/net/ipv6/conf", name, parameter), value)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// setSys writes value to a kernel parameter unless it is there already.
func setSys(path, value string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(old)) == value {
		return nil
	}
	return os.WriteFile(path, []byte(value), 0o644)
}
