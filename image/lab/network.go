package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/containers/gvisor-tap-vsock/pkg/types"
	"github.com/containers/gvisor-tap-vsock/pkg/virtualnetwork"
	"github.com/duet-ft/duet/image/lab/ether"
	"github.com/sirupsen/logrus"
)

const (
	// Subnet is the management network.
	Subnet = "192.168.127.0/24"
	// GatewayIP is the network's gateway, DHCP and name server; connections of the test process come from it.
	GatewayIP = "192.168.127.1"
	// TargetIP reaches this computer's 127.0.0.1, where the tests' iSCSI target listens, on the same port.
	TargetIP = "192.168.127.254"
	// mtu is Ethernet's usual one.
	mtu = 1500
	// leases is how many stations have a fixed address: numbers 2 to leases+1.
	leases = 98
	// forwardTimeout is how long a forwarded connection may take to be made.
	forwardTimeout = 10 * time.Second
)

// gatewayMAC is the hardware address of the gateway.
var gatewayMAC = ether.MAC{0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd}

// MAC is the hardware address of station number n (2 to 99), to which DHCP gives the address IP(n).
func MAC(n int) string { return fmt.Sprintf("52:54:00:d0:e7:%02x", n) }

// IP is the address of station number n.
func IP(n int) string { return fmt.Sprintf("192.168.127.%d", n) }

// Network is the management network: a learning switch with a gateway in this process.
type Network struct {
	// Hub is the switch, to ask where an address is.
	Hub *ether.Hub

	dir    string
	stack  *virtualnetwork.VirtualNetwork
	cancel context.CancelFunc
	served chan struct{}

	mu        sync.Mutex
	ports     []*ether.Port
	listeners []net.Listener
}

// quietOnce sends the network stack's own log away: it reports every machine that goes as an error.
var quietOnce sync.Once

// NewNetwork makes a network whose sockets lie in dir.
func NewNetwork(dir string) (*Network, error) {
	quietOnce.Do(func() { logrus.SetOutput(io.Discard) })
	static := map[string]string{}
	for n := 2; n < 2+leases; n++ {
		static[IP(n)] = MAC(n)
	}
	stack, err := virtualnetwork.New(&types.Configuration{
		MTU: mtu, Subnet: Subnet, GatewayIP: GatewayIP, GatewayMacAddress: gatewayMAC.String(),
		DHCPStaticLeases:  static,
		NAT:               map[string]string{TargetIP: "127.0.0.1"},
		GatewayVirtualIPs: []string{TargetIP},
	})
	if err != nil {
		return nil, fmt.Errorf("management network: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := &Network{Hub: ether.NewHub(), dir: dir, stack: stack, cancel: cancel, served: make(chan struct{})}
	port, conn := ether.NewPipe("gateway")
	n.Hub.AttachFixed(port, gatewayMAC)
	n.ports = append(n.ports, port)
	go func() {
		defer close(n.served)
		_ = stack.AcceptQemu(ctx, conn) // ends when the port is closed
	}()
	return n, nil
}

// NewPort adds a port to the switch.
func (n *Network) NewPort(name string) (*ether.Port, error) {
	p, err := ether.NewPort(filepath.Join(n.dir, name+".sock"))
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	n.ports = append(n.ports, p)
	n.mu.Unlock()
	n.Hub.Attach(p)
	return p, nil
}

// Dial connects to a TCP address on the network, such as "192.168.127.20:6379", from the gateway's address.
func (n *Network) Dial(ctx context.Context, address string) (net.Conn, error) {
	return n.stack.DialContextTCP(ctx, address)
}

// Listen accepts TCP connections that stations make to an address of the gateway, such as "192.168.127.1:8080".
func (n *Network) Listen(address string) (net.Listener, error) {
	return n.stack.Listen("tcp", address)
}

// Forward makes a TCP address on the network reachable from this computer, at local ("127.0.0.1:0" for any port),
// until the network is closed. It returns the address that it listens on.
func (n *Network) Forward(local, remote string) (string, error) {
	ln, err := net.Listen("tcp", local)
	if err != nil {
		return "", err
	}
	n.mu.Lock()
	n.listeners = append(n.listeners, ln)
	n.mu.Unlock()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go n.forward(conn, remote)
		}
	}()
	return ln.Addr().String(), nil
}

// forward copies both ways until both sides have said all.
func (n *Network) forward(conn net.Conn, remote string) {
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), forwardTimeout)
	far, err := n.Dial(ctx, remote)
	cancel()
	if err != nil {
		return
	}
	defer far.Close()
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(conn, far)
		closeWrite(conn)
	}()
	_, _ = io.Copy(far, conn)
	closeWrite(far)
	<-back
}

func closeWrite(c net.Conn) {
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite() // fails only if the connection is gone, which was the aim
	}
}

// Resets counts the TCP segments with RST that stations sent and that were sent to them.
func (n *Network) Resets() (from, to uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.ports[1:] {
		from += p.Counters(ether.FromMachine).Resets
		to += p.Counters(ether.ToMachine).Resets
	}
	return from, to
}

// Close takes the network down.
func (n *Network) Close() error {
	n.cancel()
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for _, ln := range n.listeners {
		errs = append(errs, ln.Close())
	}
	for _, p := range n.ports {
		errs = append(errs, p.Close())
	}
	<-n.served
	return errors.Join(errs...)
}
