// Command init is process 1 of a throw-away host that runs one Go test binary
// and switches itself off: image/nested builds the machine around it.
//
// The command line has duet.args, the test's arguments, separated by commas.
// The last line on the console is "NESTED EXIT n", n being the test's status.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func main() {
	code := 99
	if err := prepare(); err != nil {
		fmt.Println("init:", err)
	} else {
		code = runTest()
	}
	fmt.Printf("NESTED EXIT %d\n", code)
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func prepare() error {
	for _, m := range []struct{ kind, at string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	eth, err := netlink.LinkByName("eth0")
	if err != nil {
		return nil // none was asked for
	}
	addr, err := netlink.ParseAddr(userNet)
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(eth, addr), netlink.LinkSetUp(eth))
}

// userNet is the address that QEMU's user network forwards to.
const userNet = "10.0.2.15/24"

func runTest() int {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		fmt.Println("init:", err)
		return 99
	}
	var args []string
	for _, f := range strings.Fields(string(line)) {
		if list, ok := strings.CutPrefix(f, "duet.args="); ok {
			args = strings.Split(list, ",")
		}
	}
	cmd := exec.Command("/test", args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	cmd.Env = append(os.Environ(), "PATH=/", "HOME=/tmp")
	cmd.Dir = "/tmp"
	err = cmd.Run()
	if cmd.ProcessState != nil {
		return cmd.ProcessState.ExitCode()
	}
	fmt.Println("init:", err)
	return 99
}
