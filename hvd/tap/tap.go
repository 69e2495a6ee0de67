// Package tap connects a guest's network card to the host's bridge, and tells
// the network where the guest is now.
//
// # Place
//
// Part of the rim of a VM (hvd/vmproc). A tap exists only while its VM is live
// here: opening it is what "open the network" means when a secondary takes
// over. It imports nothing of ours.
package tap

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// MaxFrame is the longest frame that is taken from the network, in bytes.
const MaxFrame = 65536

// Tap is a guest's end of the host's network.
type Tap struct {
	f    *os.File
	name string
}

// Open makes the tap of the given name (at most 15 bytes), puts it into the
// bridge and switches it on. The tap goes when it is closed, or when the
// process dies.
func Open(name, bridge string) (*Tap, error) {
	t, err := create(name)
	if err != nil {
		return nil, fmt.Errorf("make the network interface %s: %w", name, err)
	}
	if err := t.attach(bridge); err != nil {
		t.Close()
		return nil, fmt.Errorf("put %s into the bridge %q: %w", name, bridge, err)
	}
	return t, nil
}

func create(name string) (*Tap, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EBUSY) {
			return nil, errors.New("it is in use; is the VM running here already?")
		}
		return nil, err
	}
	// A non-blocking file is polled by Go's runtime: Close ends a Read.
	return &Tap{f: os.NewFile(uintptr(fd), "/dev/net/tun"), name: name}, nil
}

func (t *Tap) attach(bridge string) error {
	link, err := netlink.LinkByName(t.name)
	if err != nil {
		return err
	}
	if bridge != "" {
		b, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(link, b); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

// Close removes the tap; a Read that waits ends.
func (t *Tap) Close() error { return t.f.Close() }

// Read waits for the next frame and returns its length.
func (t *Tap) Read(p []byte) (int, error) { return t.f.Read(p) }

// Write sends a frame. A frame that the host can't take now is lost, as on a
// busy wire.
func (t *Tap) Write(frame []byte) error {
	_, err := t.f.Write(frame)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EIO) {
		return nil
	}
	return err
}

// Announcement is the frame that tells switches behind which port a MAC
// address is now: a broadcast RARP request (RFC 903) from it for itself, which
// needs no IP address and no answer.
func Announcement(mac net.HardwareAddr) []byte {
	f := make([]byte, 60) // the shortest Ethernet frame
	for i := range 6 {
		f[i] = 0xff
	}
	copy(f[6:], mac)
	copy(f[12:], []byte{
		0x80, 0x35, // RARP
		0, 1, 8, 0, // Ethernet, IPv4
		6, 4, // lengths of both
		0, 3, // request reverse
	})
	copy(f[22:], mac) // sender
	copy(f[32:], mac) // target
	return f
}
