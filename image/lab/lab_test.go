package lab

import (
	"context"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/image/lab/ether"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

func TestAddresses(t *testing.T) {
	subnet := netip.MustParsePrefix(Subnet)
	seen := map[string]bool{GatewayIP: true, TargetIP: true}
	for n := 2; n < 2+leases; n++ {
		if !subnet.Contains(netip.MustParseAddr(IP(n))) || seen[IP(n)] {
			t.Errorf("station %d: address %s", n, IP(n))
		}
		seen[IP(n)] = true
		if hw, err := net.ParseMAC(MAC(n)); err != nil || hw[0]&3 != 2 {
			t.Errorf("station %d: %s is not a local unicast address: %v", n, MAC(n), err)
		}
	}
}

func TestSyslogLine(t *testing.T) {
	for in, want := range map[string]string{
		"<14>2026-01-02T03:04:05Z duet netcfg[7]: DHCP gave 192.0.2.1/24\n": "netcfg: DHCP gave 192.0.2.1/24\n",
		"no head": "no head\n",
		"":        "\n",
	} {
		if got := string(syslogLine([]byte(in))); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func TestSyslogCollects(t *testing.T) {
	s, err := newSyslog(t.TempDir() + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if !strings.HasPrefix(s.target(), TargetIP+":") {
		t.Errorf("target %s", s.target())
	}
	conn, err := net.Dial("udp4", s.conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "<14>2026-01-02T03:04:05Z duet hvd[7]: ready\n"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if line, err := s.log.Wait(ctx, regexp.MustCompile("^hvd: ready$"), 0); err != nil {
		t.Errorf("%q, %v", line, err)
	}
}

// TestNetworkGivesFixedAddresses plays a station on the wire: DHCP must give it the address of its number.
func TestNetworkGivesFixedAddresses(t *testing.T) {
	n, err := NewNetwork(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	port, err := n.NewPort("station")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", port.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	hw, _ := net.ParseMAC(MAC(42))
	discover, err := dhcpv4.NewDiscovery(hw)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(ether.AppendFrame(nil, dhcpFrame(hw, discover.ToBytes()))); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for {
		f, err := ether.ReadFrame(conn)
		if err != nil {
			t.Fatalf("no DHCP answer: %v", err)
		}
		const headers = 14 + 20 + 8
		if len(f) < headers || f[12] != 0x08 || f[13] != 0x00 {
			continue
		}
		m, err := dhcpv4.FromBytes(f[headers:])
		if err != nil {
			continue
		}
		if m.YourIPAddr.String() != IP(42) {
			t.Errorf("DHCP gives %s, want %s", m.YourIPAddr, IP(42))
		}
		return
	}
}

// dhcpFrame puts a DHCP message into UDP, IPv4 and Ethernet, from a station without an address to all.
func dhcpFrame(hw net.HardwareAddr, message []byte) []byte {
	f := append(append(append([]byte{}, ether.Broadcast[:]...), hw...), 0x08, 0x00)
	length := 20 + 8 + len(message)
	ip := []byte{
		0x45, 0, byte(length >> 8), byte(length), 0, 0, 0, 0, 64, 17, 0, 0,
		0, 0, 0, 0, 255, 255, 255, 255,
	}
	sum := uint32(0)
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(ip[i])<<8 | uint32(ip[i+1])
	}
	sum = sum>>16 + sum&0xffff
	ip[10], ip[11] = byte(^sum>>8), byte(^sum)
	udp := []byte{0, 68, 0, 67, byte((length - 20) >> 8), byte(length - 20), 0, 0}
	return append(append(append(f, ip...), udp...), message...)
}
