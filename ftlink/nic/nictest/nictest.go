// Package nictest gives a test virtual cables, in a network namespace of its own.
//
// # Place
//
// Tests of ftlink/session and hvd/daemon/partner use it. It imports nothing of
// ours.
package nictest

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

// inNamespace is set in the process that Alone starts.
const inNamespace = "DUET_TEST_NETWORK_NAMESPACE"

// Alone runs the test that calls it once more, as a process in a network namespace
// of its own. It is true there; where it is false, the test has been run, and is
// over. Without a namespace the test is skipped.
func Alone(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inNamespace) != "" {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
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
	return false
}

// Cable makes two NICs that are connected, and up: name0 and name1.
func Cable(t *testing.T, name string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name + "0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "1"}); err != nil {
		t.Skipf("this kernel makes no virtual cables: %v", err)
	}
	Set(t, name+"0", netlink.LinkSetUp)
	Set(t, name+"1", netlink.LinkSetUp)
}

// Set changes a NIC: netlink.LinkSetUp, netlink.LinkSetDown.
func Set(t *testing.T, name string, state func(netlink.Link) error) {
	t.Helper()
	nic, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := state(nic); err != nil {
		t.Fatal(err)
	}
}
