package partner

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/duet-ft/duet/ftlink/pairing"
	"github.com/vishvananda/netlink"
)

// inNamespace is set in the process that TestCable starts.
const inNamespace = "DUET_TEST_NETWORK_NAMESPACE"

// TestCable has two hosts with two NICs each, of which one is cabled to the other host: they find each other and which NIC
// it is, and are paired over it. It needs a network namespace, which it makes for itself.
func TestCable(t *testing.T) {
	if os.Getenv(inNamespace) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestCable$", "-test.v")
		cmd.Env = append(os.Environ(), inNamespace+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		}
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		switch {
		case errors.As(err, &exit):
			t.Fatalf("%v\n%s", err, out)
		case err != nil:
			t.Skipf("no network namespace to test in: %v", err)
		case strings.Contains(string(out), "--- SKIP"):
			t.Skipf("%s", out)
		}
		return
	}
	for _, name := range []string{"direct", "sparea", "spareb"} {
		veth(t, name)
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
	nic, err := netlink.LinkByName("direct0")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetDown(nic); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a is forgotten", func() bool { return len(b.State().Heard) == 0 })
	if _, err := b.Join(t.Context(), "00000000"); err == nil || err.Error() != "no other host is heard on direct1 spareb0 missing0: is it on, and the direct cable in?" {
		t.Errorf("without the cable: %v", err)
	}
	if err := netlink.LinkSetUp(nic); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a is heard again", func() bool { return len(b.State().Heard) == 1 })
}

// veth makes two NICs that are connected: name0 and name1.
func veth(t *testing.T, name string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name + "0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "1"}); err != nil {
		t.Skipf("this kernel makes no virtual cables: %v", err)
	}
	for _, n := range []string{name + "0", name + "1"} {
		nic, err := netlink.LinkByName(n)
		if err == nil {
			err = netlink.LinkSetUp(nic)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
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
