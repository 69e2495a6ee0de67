package partner

import (
	"net/netip"
	"testing"

	"github.com/duet-ft/duet/ftlink/nic/nictest"
	"github.com/duet-ft/duet/ftlink/pairing"
	"github.com/vishvananda/netlink"
)

// TestCable has two hosts with two NICs each, of which one is cabled to the other host: they find each other and which NIC
// it is, and are paired over it. It needs a network namespace, which it makes for itself.
func TestCable(t *testing.T) {
	if !nictest.Alone(t) {
		return
	}
	for _, name := range []string{"direct", "sparea", "spareb"} {
		nictest.Cable(t, name)
	}
	a := newTestHost(t, "a", "", pairing.Port, "sparea0", "direct0")
	b := newTestHost(t, "b", "", pairing.Port, "direct1", "spareb0", "missing0")
	heard := func(h *testHost, name, nic string) {
		t.Helper()
		eventually(t, "host "+h.cfg.Name+" hears host "+name+" on "+nic, func() bool {
			list := h.State().Heard
			return len(list) == 1 && list[0].Name == name && list[0].NIC == nic && list[0].Shows
		})
	}
	heard(a, "b", "direct0")
	heard(b, "a", "direct1")
	if _, err := b.Join(t.Context(), a.State().Code); err != nil {
		t.Fatal(err)
	}
	for h, want := range map[*testHost]string{a: "b on direct0", b: "a on direct1"} {
		h.mu.Lock()
		if got := h.peer.Name + " on " + h.nic; got != want {
			t.Errorf("host %s is paired with %s, want %s", h.cfg.Name, got, want)
		}
		h.mu.Unlock()
	}
	eventually(t, "the beacons say that a shows no code any more", func() bool {
		list := b.State().Heard
		return len(list) == 1 && !list[0].Shows && list[0].HasPeer
	})

	// The cable is pulled: who isn't heard is forgotten.
	nictest.Set(t, "direct0", netlink.LinkSetDown)
	eventually(t, "a is forgotten", func() bool { return len(b.State().Heard) == 0 })
	if _, err := b.Join(t.Context(), "00000000"); err == nil || err.Error() != "no other host is heard on direct1 spareb0 missing0: is it on, and the direct cable in?" {
		t.Errorf("without the cable: %v", err)
	}
	nictest.Set(t, "direct0", netlink.LinkSetUp)
	eventually(t, "a is heard again", func() bool { return len(b.State().Heard) == 1 })
}

// nics are those of a test's host: named ones, or an address of the loopback.
func nics(address string, names []string) (list []NIC) {
	for _, n := range names {
		list = append(list, NIC{Name: n})
	}
	if address != "" {
		list = append(list, NIC{Listen: netip.MustParseAddr(address)})
	}
	return list
}
