// Package lab runs hosts in QEMU for nested tests and for the demo: the built image on emulated servers, a management
// network with DHCP and a gateway to this process, and direct links. Everything is in user space; nothing needs root.
//
// Used by tests and the demo. Imports image/disk, image/sparse and image/lab/{ether,qemu,transcript}.
//
//	this process --- gateway .1 ---+            192.168.127.0/24
//	127.0.0.1 ------ .254 (NAT) ---+--- hub ---+--- host a, NIC 0 (br0 and the VMs on it)
//	                                           +--- host b, NIC 0
//	                          host a, NIC 1 === cable === host b, NIC 1
//
// Station number n has the address MAC(n) and by DHCP IP(n), hosts and guests alike.
package lab

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"github.com/duet-ft/duet/image/disk"
	"github.com/duet-ft/duet/image/lab/ether"
	"github.com/duet-ft/duet/image/sparse"
)

// maxSocketPath is what a Unix socket's address holds, with room for the names in it (unix(7): 108).
const maxSocketPath = 80

// Lab is a set of hosts and their networks.
type Lab struct {
	// Net is the management network.
	Net *Network
	// Image is what the hosts boot.
	Image *disk.Image
	// Password is that of the hosts' gokrazy page, user gokrazy.
	Password string
	// Report gets one line for what the watchdogs notice; nil means standard error.
	Report func(line string)

	dir     string // disks and consoles
	kernel  string
	sockets string // a short path, removed by Close

	mu     sync.Mutex
	hosts  []*Host
	cables []*Cable
}

// New makes a lab that keeps disks and consoles in dir and boots img.
func New(dir string, img *disk.Image) (*Lab, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	sockets, err := os.MkdirTemp("", "duet-lab-")
	if err != nil {
		return nil, err
	}
	if len(sockets) > maxSocketPath {
		return nil, fmt.Errorf("the directory for temporary files has too long a name for sockets: set TMPDIR to a shorter one than %s",
			filepath.Dir(sockets))
	}
	// A kernel of our own: the cache may drop the image while hosts are still to be booted again.
	kernel := filepath.Join(dir, "vmlinuz")
	err = copyFile(kernel, img.Kernel)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(sockets))
	}
	net, err := NewNetwork(sockets)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(sockets))
	}
	return &Lab{Net: net, Image: img, Password: rand.Text(), dir: dir, kernel: kernel, sockets: sockets}, nil
}

func copyFile(dst, src string) error {
	b, err := os.ReadFile(src)
	if err != nil {
		return err
	}
	return os.WriteFile(dst, b, 0o644)
}

// Close kills all hosts and takes the networks down. Disks and consoles stay.
func (l *Lab) Close() error {
	l.mu.Lock()
	hosts, cables := l.hosts, l.cables
	l.mu.Unlock()
	var errs []error
	for _, h := range hosts {
		errs = append(errs, h.Kill(), h.syslog.close())
	}
	for _, c := range cables {
		errs = append(errs, c.A.Close(), c.B.Close())
	}
	return errors.Join(append(errs, l.Net.Close(), os.RemoveAll(l.sockets))...)
}

// Cable is a direct link between the second NICs of two hosts. Its ports cut and delay.
type Cable struct{ A, B *ether.Port }

// Cut pulls the cable, or plugs it in again.
func (c *Cable) Cut(cut bool) {
	for _, d := range ether.Both {
		c.A.Cut(d, cut)
		c.B.Cut(d, cut)
	}
}

// NewCable makes a direct link.
func (l *Lab) NewCable(name string) (*Cable, error) {
	a, err := ether.NewPort(filepath.Join(l.sockets, name+"-a.sock"))
	if err != nil {
		return nil, err
	}
	b, err := ether.NewPort(filepath.Join(l.sockets, name+"-b.sock"))
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	ether.Join(a, b)
	c := &Cable{A: a, B: b}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cables = append(l.cables, c)
	return c, nil
}

// NewHost prepares a host: its disk, a copy of the image with the given /perm, and its place on the network. It is
// off until [Host.Boot].
func (l *Lab) NewHost(ctx context.Context, cfg HostConfig) (*Host, error) {
	if cfg.Number < 2 || cfg.Number >= 2+leases {
		return nil, fmt.Errorf("host %s: number %d is not between 2 and %d", cfg.Name, cfg.Number, 1+leases)
	}
	if cfg.MemoryMiB == 0 {
		cfg.MemoryMiB = defaultMemoryMiB
	}
	dir := filepath.Join(l.dir, cfg.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	h := &Host{lab: l, cfg: cfg, dir: dir, disk: filepath.Join(dir, "disk.img")}
	var err error
	if h.syslog, err = newSyslog(filepath.Join(dir, "programs.log")); err != nil {
		return nil, err
	}
	perm := maps.Clone(cfg.Perm)
	if perm == nil {
		perm = map[string][]byte{}
	}
	perm[syslogTarget] = []byte(h.syslog.target())
	perm["gokr-pw.txt"] = []byte(l.Password)
	if err := l.makeDisk(ctx, h, perm); err != nil {
		return nil, errors.Join(fmt.Errorf("disk of host %s: %w", cfg.Name, err), h.syslog.close())
	}
	if h.Port, err = l.Net.NewPort(cfg.Name); err != nil {
		return nil, errors.Join(err, h.syslog.close())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hosts = append(l.hosts, h)
	return h, nil
}

// makeDisk copies the image for a host: with a /perm that has the given files, or as it is flashed.
func (l *Lab) makeDisk(ctx context.Context, h *Host, perm map[string][]byte) error {
	if h.cfg.Flashed == 0 {
		return l.Image.Copy(ctx, h.disk, perm)
	}
	if err := sparse.Copy(h.disk, l.Image.Path, 0o600); err != nil {
		return err
	}
	return os.Truncate(h.disk, h.cfg.Flashed)
}
