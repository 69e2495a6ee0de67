package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/duet-ft/duet/appliance/agent/wire"
)

// linux is the System of a Linux guest.
type linux struct{}

// maxAddresses limits what is reported of a guest with very many.
const maxAddresses = 256

// Info implements System.
func (linux) Info() (wire.Info, error) {
	var i wire.Info
	read := func(path string) (string, error) {
		b, err := os.ReadFile(path)
		return strings.TrimSpace(string(b)), err
	}
	var err error
	if i.BootID, err = read("/proc/sys/kernel/random/boot_id"); err != nil {
		return i, err
	}
	if i.Kernel, err = read("/proc/sys/kernel/osrelease"); err != nil {
		return i, err
	}
	if i.Hostname, err = os.Hostname(); err != nil {
		return i, err
	}
	uptime, err := read("/proc/uptime") // seconds since boot, seconds idle
	if err != nil {
		return i, err
	}
	up, _, _ := strings.Cut(uptime, " ")
	if i.Uptime, err = strconv.ParseFloat(up, 64); err != nil {
		return i, fmt.Errorf("/proc/uptime: %w", err)
	}
	i.Addresses, err = addresses()
	return i, err
}

func addresses() ([]wire.Address, error) {
	list := []wire.Address{}
	ifs, err := net.Interfaces()
	if err != nil {
		return list, err
	}
	for _, f := range ifs {
		if f.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := f.Addrs()
		if err != nil {
			continue // it went away meanwhile
		}
		for _, a := range addrs {
			if len(list) < maxAddresses {
				list = append(list, wire.Address{Interface: f.Name, Address: a.String()})
			}
		}
	}
	return list, nil
}

// Shutdown implements System by the command that every distribution has.
func (linux) Shutdown(mode string) error {
	cmd := exec.Command(mode) // poweroff, reboot
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/sbin:/usr/bin:/bin")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", mode, err, strings.TrimSpace(string(out)))
	}
	return nil
}
