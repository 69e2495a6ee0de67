package daemon

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/duet-ft/duet/ftlink/nic"
	"github.com/duet-ft/duet/hvd/api"
	"github.com/duet-ft/duet/hvd/daemon/checkup"
	"golang.org/x/sys/unix"
)

const (
	// bridge joins the management NIC and the VMs' taps; appliance/netcfg makes it.
	bridge = "br0"
	sysNet = "/sys/class/net"
	// What a NIC is used for.
	useManagement = "management"
	useDirect     = "direct"
	// screenEvery is how often the consoles' text may change.
	screenEvery = time.Second
	// screenPatience is for how many polls the first text waits for an address.
	screenPatience = 5
	// screenLimit bounds how long a console may take it: a serial line may be held up.
	screenLimit = 2 * time.Second
)

// physicalNICs are the Ethernet interfaces that are backed by a device. Use is set for the management network's.
func physicalNICs() (list []checkup.NIC) {
	all, err := net.Interfaces()
	if err != nil {
		return nil
	}
	for _, i := range all {
		if _, err := os.Stat(filepath.Join(sysNet, i.Name, "device")); err != nil || len(i.HardwareAddr) != 6 {
			continue
		}
		n := checkup.NIC{Name: i.Name, MAC: i.HardwareAddr.String(), MTU: i.MTU}
		carrier, _ := os.ReadFile(filepath.Join(sysNet, i.Name, "carrier")) // not to be read while it is down
		n.Carrier = strings.TrimSpace(string(carrier)) == "1"
		if _, err := os.Stat(filepath.Join(sysNet, i.Name, "master")); err == nil {
			n.Use = useManagement
		}
		list = append(list, n)
	}
	return list
}

// addresses are those of the management network at which the API can be reached.
func addresses() (list []string) {
	for _, ip := range nic.Addresses(bridge) {
		if !ip.IsLinkLocalUnicast() {
			list = append(list, ip.String())
		}
	}
	return list
}

// processor reads what Linux says of the first processor: its name, "SVM", "VMX" or neither, whether it has nested page
// tables, and the microcode's version.
func processor(cpuinfo []byte) (h Hardware) {
	first, _, _ := bytes.Cut(cpuinfo, []byte("\n\n"))
	for line := range strings.Lines(string(first)) {
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(name) {
		case "model name":
			h.CPU = value
		case "microcode":
			h.Microcode = value
		case "flags", "vmx flags":
			for _, f := range strings.Fields(value) {
				switch f {
				case "svm":
					h.Virtual = "SVM"
				case "vmx":
					h.Virtual = "VMX"
				case "npt", "ept":
					h.Nested = true
				}
			}
		}
	}
	return h
}

// facts gathers what a check of the host looks at.
func (d *instance) facts() checkup.Facts {
	now := time.Now()
	p := d.partner.State()
	d.mu.Lock()
	h := d.hardware
	f := checkup.Facts{
		Name: d.name, Version: d.opt.Version, Port: api.Port, Local: d.token == "", Fingerprint: api.Fingerprint(d.publicKey()),
		CPU: h.CPU, Virtual: h.Virtual, Nested: h.Nested, Microcode: h.Microcode, KVM: d.kvm, Locator: h.Locator, Why: h.LocatorWhy,
		MemoryMiB: h.MemoryMiB, Volume: d.storage(), Perm: d.keyProblem, Now: now, Session: d.session,
		Code: p.Code.String(), CodeUntil: p.Until, CodeWhy: p.Why,
	}
	cfg := d.cfg
	if d.cfg.Token == "" {
		f.Token = d.token
	}
	d.mu.Unlock()
	f.Addresses = addresses()
	if cfg.Peer != nil {
		f.Peer = cfg.Peer.Name
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(d.opt.Config), &fs); err == nil {
		f.PermFree, f.PermSize = int64(fs.Bavail)*fs.Bsize, int64(fs.Blocks)*fs.Bsize
	}
	var tx unix.Timex
	if _, err := unix.Adjtimex(&tx); err == nil {
		f.Synced = tx.Status&unix.STA_UNSYNC == 0
	}
	direct := cfg.Direct
	for _, n := range p.Heard {
		if direct == "" {
			direct = n.NIC
		}
	}
	if direct == "" {
		direct = usualDirect
	}
	for _, n := range d.opt.NICs() {
		if n.Name == direct && n.Use == "" {
			n.Use = useDirect
		}
		for _, o := range p.Heard {
			if o.NIC == n.Name {
				n.Heard = append(n.Heard, o.Name)
			}
		}
		f.NICs = append(f.NICs, n)
	}
	return f
}

// Check implements server.Backend.
func (d *instance) Check(context.Context) []api.Finding { return checkup.Findings(d.facts()) }

// keepScreen shows on the consoles how this host is reached and paired, whenever that changes. What isn't there yet is no
// trouble until a host has had the time to get an address.
func (d *instance) keepScreen(ctx context.Context) {
	last, patience := "", time.Now().Add(screenPatience*d.opt.Poll)
	for {
		f := d.facts()
		settled := len(f.Addresses) > 0 || last != "" || time.Now().After(patience)
		if text := checkup.Screen(f); settled && text != last {
			last = text
			d.opt.Screen(text)
		}
		if !sleep(ctx, screenEvery, nil) {
			return
		}
	}
}

// showOnConsoles writes text to the machine's consoles: the screen, and the serial line.
func showOnConsoles(text string) {
	active, err := os.ReadFile("/sys/class/tty/console/active")
	if err != nil {
		return
	}
	text = strings.ReplaceAll(text, "\n", "\r\n")
	for _, name := range strings.Fields(string(active)) {
		f, err := os.OpenFile(filepath.Join("/dev", filepath.Base(name)), os.O_WRONLY|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		// Whoever doesn't look at this console misses nothing.
		_ = f.SetWriteDeadline(time.Now().Add(screenLimit))
		_, _ = f.WriteString(text)
		f.Close()
	}
}
