package vm

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/vishvananda/netlink"

	"github.com/duet-ft/duet/hvd/board"
	"github.com/duet-ft/duet/hvd/event"
	"github.com/duet-ft/duet/hvd/tap"
	"github.com/duet-ft/duet/hvd/virtio/blk"
)

// testRim is a rim within one host: a disk in a file whose writes stay in
// memory, a tap with a DHCP server, the console in a buffer.
type testRim struct {
	engine *Engine
	arrive func(event.Entry) // takes frames that arrive; nil: the engine does
	disk   *os.File
	guest  string // its address

	received atomic.Uint64 // bytes of frames
	mu       sync.Mutex
	overlay  map[uint64][]byte // sector -> content
	console  []byte
	tap      *tap.Tap
	dhcp     *server4.Server
}

func newTestRim(t testing.TB) *testRim {
	t.Helper()
	f, err := os.Open(guestDisk)
	if err != nil {
		t.Fatal(err)
	}
	return &testRim{disk: f, overlay: map[uint64][]byte{}, guest: "10.0.0.2"}
}

// openNetwork gives this host 10.0.0.1 on the guest's tap.
func (r *testRim) openNetwork(t testing.TB) {
	t.Helper()
	dev, err := tap.Open("guest0", "")
	if err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName("guest0")
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr("10.0.0.1/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		t.Fatal(err)
	}
	r.tap = dev
	go func() {
		buf := make([]byte, tap.MaxFrame)
		for {
			n, err := dev.Read(buf)
			if err != nil {
				return
			}
			r.received.Add(uint64(n))
			in := event.Entry{Kind: event.Frame, Data: append([]byte(nil), buf[:n]...)}
			if r.arrive != nil {
				r.arrive(in)
			} else {
				r.engine.Input(in)
			}
		}
	}()
	r.dhcp, err = server4.NewServer("guest0", nil, lease)
	if err != nil {
		t.Fatal(err)
	}
	go r.dhcp.Serve()
}

// lease gives every client the guest's address.
func lease(conn net.PacketConn, _ net.Addr, m *dhcpv4.DHCPv4) {
	kind := dhcpv4.MessageTypeOffer
	if m.MessageType() == dhcpv4.MessageTypeRequest {
		kind = dhcpv4.MessageTypeAck
	}
	reply, err := dhcpv4.NewReplyFromRequest(m,
		dhcpv4.WithMessageType(kind),
		dhcpv4.WithYourIP(net.IPv4(10, 0, 0, 2)),
		dhcpv4.WithServerIP(net.IPv4(10, 0, 0, 1)),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 0, 0, 1))),
		dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
		dhcpv4.WithLeaseTime(36000))
	if err == nil {
		_, _ = conn.WriteTo(reply.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ClientPort})
	}
}

func (r *testRim) close() {
	r.dhcp.Close()
	r.tap.Close()
	r.disk.Close()
}

func (r *testRim) Effect(x board.Effect) {
	switch x.Kind {
	case board.DiskRequest:
		go func() { r.engine.Input(r.serveDisk(x)) }()
	case board.Frame:
		_ = r.tap.Write(x.Data)
	case board.Console:
		r.mu.Lock()
		r.console = append(r.console, x.Data...)
		r.mu.Unlock()
		if testing.Verbose() {
			os.Stdout.Write(x.Data)
		}
	}
}

// serveDisk carries out a disk request; the result is its completion.
func (r *testRim) serveDisk(x board.Effect) event.Entry {
	done := event.Entry{Kind: event.DiskDone, Disk: x.Disk, ID: x.Request.ID}
	switch x.Request.Op {
	case blk.OpRead:
		data := make([]byte, x.Request.Len)
		if _, err := r.disk.ReadAt(data, int64(x.Request.Sector)*512); err != nil {
			done.Status = blk.StatusIOError
		}
		r.mu.Lock()
		for o := 0; o < len(data); o += 512 {
			if s := r.overlay[x.Request.Sector+uint64(o/512)]; s != nil {
				copy(data[o:], s)
			}
		}
		r.mu.Unlock()
		done.Data = data
	case blk.OpWrite:
		r.mu.Lock()
		for o := 0; o < len(x.Request.Data); o += 512 {
			r.overlay[x.Request.Sector+uint64(o/512)] = append([]byte(nil), x.Request.Data[o:o+512]...)
		}
		r.mu.Unlock()
	}
	return done
}

func (r *testRim) tail() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return string(r.console[max(0, len(r.console)-4000):])
}

// redis is a client of one connection (RESP2).
type redis struct {
	w io.Writer
	r *bufio.Reader
}

func newRedis(c io.ReadWriter) *redis { return &redis{c, bufio.NewReader(c)} }

func (c *redis) do(args ...string) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	if _, err := io.WriteString(c.w, b.String()); err != nil {
		return "", err
	}
	line, err := c.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSuffix(line, "\r\n")
	switch line[0] {
	case '+', ':':
		return line[1:], nil
	case '$':
		n, err := strconv.Atoi(line[1:])
		if err != nil || n < 0 {
			return "", fmt.Errorf("reply %q", line)
		}
		buf := make([]byte, n+2)
		_, err = io.ReadFull(c.r, buf)
		return string(buf[:n]), err
	}
	return "", fmt.Errorf("reply %q", line)
}
