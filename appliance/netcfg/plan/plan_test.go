package plan

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/duet-ft/duet/hvd/hostcfg"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

func nics(spec ...string) []NIC {
	var out []NIC
	for _, s := range spec {
		name, bus, _ := strings.Cut(s, "@")
		out = append(out, NIC{Name: name, Bus: bus})
	}
	return out
}

func TestAssign(t *testing.T) {
	for _, c := range []struct {
		name               string
		nics               []NIC
		cfg                hostcfg.Config
		management, direct string
		others             string
		err                string
	}{
		{name: "one", nics: nics("eth0"), management: "eth0"},
		{name: "two", nics: nics("eth1", "eth0"), management: "eth0", direct: "eth1"},
		{name: "ten before two by name length", nics: nics("eth10", "eth2"), management: "eth2", direct: "eth10"},
		{name: "bus before name", nics: nics("eth0@0000:03:00.0", "eth1@0000:02:00.0"), management: "eth1", direct: "eth0"},
		{name: "named", nics: nics("eth0", "eth1", "eth2"), cfg: hostcfg.Config{Management: "eth2"}, management: "eth2", direct: "eth0", others: "eth1"},
		{name: "four", nics: nics("eth0", "eth1", "eth2", "eth3"), cfg: hostcfg.Config{Direct: "eth2"}, management: "eth0", direct: "eth2", others: "eth1, eth3"},
		{name: "direct named", nics: nics("eth0", "eth1"), cfg: hostcfg.Config{Direct: "eth0"}, management: "eth1", direct: "eth0"},
		{name: "none", err: "no network interface is left for management (found: none)"},
		{name: "only direct", nics: nics("eth0"), cfg: hostcfg.Config{Direct: "eth0"}, err: "left for management (found: eth0)"},
		{name: "absent", nics: nics("eth0"), cfg: hostcfg.Config{Management: "eth9"}, err: `no interface "eth9" for management`},
		{name: "direct absent", nics: nics("eth0"), cfg: hostcfg.Config{Direct: "eth9"}, err: `no interface "eth9" for the direct link`},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := Assign(c.nics, &c.cfg)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("error %v, want %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			direct := ""
			if r.Direct != nil {
				direct = r.Direct.Name
			}
			others := ""
			if len(r.Others) > 0 {
				others = names(r.Others)
			}
			if r.Management.Name != c.management || direct != c.direct || others != c.others {
				t.Errorf("management %s, direct %q, others %q; want %s, %q, %q", r.Management.Name, direct, others, c.management, c.direct, c.others)
			}
		})
	}
}

func ack(t testing.TB, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{
		dhcpv4.WithYourIP(net.IPv4(192, 0, 2, 10)),
		dhcpv4.WithMessageType(dhcpv4.MessageTypeAck),
	}, mods...)...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestFromACK(t *testing.T) {
	s, err := FromACK(ack(t,
		dhcpv4.WithNetmask(net.CIDRMask(25, 32)),
		dhcpv4.WithRouter(net.IPv4(198, 51, 100, 1), net.IPv4(192, 0, 2, 1)),
		dhcpv4.WithDNS(net.IPv4(192, 0, 2, 2), net.IPv4zero, net.IPv4(192, 0, 2, 3)),
		dhcpv4.WithOption(dhcpv4.OptDomainName("example.org")),
		dhcpv4.WithLeaseTime(7200)))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := s.Line(), "192.0.2.10/25, router 192.0.2.1, DNS 192.0.2.2, DNS 192.0.2.3, domain example.org"; got != want {
		t.Errorf("settings %q, want %q", got, want)
	}
	if s.Renew != time.Hour || s.Expire != 2*time.Hour {
		t.Errorf("renew %v, expire %v; want 1h, 2h", s.Renew, s.Expire)
	}
	if got, want := s.ResolvConf(), ResolvMark+"\nsearch example.org\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n"; got != want {
		t.Errorf("resolv.conf %q, want %q", got, want)
	}
}

func TestFromACKDefaults(t *testing.T) {
	s, err := FromACK(ack(t, dhcpv4.WithLeaseTime(1), dhcpv4.WithOption(dhcpv4.OptDomainName("x\nnameserver 203.0.113.1"))))
	if err != nil {
		t.Fatal(err)
	}
	if s.Address.Bits() != 24 || s.Gateway.IsValid() || s.Domain != "" {
		t.Errorf("%+v: want /24, no router, and no domain that would forge a line", s)
	}
	if s.Expire != shortestLease || s.Renew != shortestLease/2 {
		t.Errorf("renew %v, expire %v: a lease of 1 s must be stretched", s.Renew, s.Expire)
	}
	s, err = FromACK(ack(t, dhcpv4.WithOption(dhcpv4.OptIPAddressLeaseTime(time.Hour)), dhcpv4.WithOption(dhcpv4.OptRenewTimeValue(time.Second))))
	if err != nil || s.Renew != time.Hour/2 {
		t.Errorf("renew %v, %v: a host must not ask each second", s.Renew, err)
	}
	if _, err := FromACK(ack(t, dhcpv4.WithYourIP(net.IPv4zero))); err == nil {
		t.Error("the address 0.0.0.0 was accepted")
	}
	if _, err := FromACK(ack(t, dhcpv4.WithOption(dhcpv4.Option{
		Code: dhcpv4.OptionSubnetMask, Value: dhcpv4.IPMask(net.IPMask{255, 0, 255, 0}),
	}))); err == nil {
		t.Error("a mask with a hole was accepted")
	}
}

func TestBackoff(t *testing.T) {
	last := time.Duration(0)
	for i := range 100 {
		d := Backoff(i)
		if d < last || d < time.Second || d > time.Minute {
			t.Fatalf("Backoff(%d) = %v after %v", i, d, last)
		}
		last = d
	}
	if last != time.Minute {
		t.Errorf("it stays at %v, want 1m", last)
	}
}

func FuzzFromACK(f *testing.F) {
	f.Add(ack(f, dhcpv4.WithNetmask(net.CIDRMask(25, 32)), dhcpv4.WithRouter(net.IPv4(192, 0, 2, 1))).ToBytes())
	f.Add(ack(f, dhcpv4.WithDNS(net.IPv4(192, 0, 2, 2)), dhcpv4.WithLeaseTime(0)).ToBytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := dhcpv4.FromBytes(b)
		if err != nil {
			return
		}
		s, err := FromACK(m)
		if err != nil {
			return
		}
		if !s.Address.IsValid() || s.Renew <= 0 || s.Renew >= s.Expire || len(s.DNS) > maxNameServers {
			t.Errorf("accepted %+v", s)
		}
		if strings.Count(s.ResolvConf(), "\n") > 2+maxNameServers {
			t.Errorf("resolv.conf has lines of the server's making: %q", s.ResolvConf())
		}
	})
}
