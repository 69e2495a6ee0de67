package hostcfg

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPairing(t *testing.T) {
	const (
		other  = "ad75980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
		volume = `"volume": {"portal": "192.0.2.1", "target": "iqn.x", "lun": 1}`
	)
	config := filepath.Join(t.TempDir(), "host.json")
	for _, c := range []struct {
		name, host, pair         string
		want, peer, direct, disk string // disk is the volume's target
	}{
		{"fresh", ``, ``, "", "", "", ""},
		{"by hand", `{"name": "a", "peer": {"name": "b", "key": "` + key + `"}}`, ``, "a", "b", "", ""},
		{"paired", ``, `{"name": "x", "peer": {"name": "y", "key": "` + other + `"}, "direct": "eth2", ` + volume + `}`, "x", "y", "eth2", "iqn.x"},
		{
			"paired anew", `{"name": "a", "direct": "eth3", "volume": {"portal": "192.0.2.1", "target": "iqn.own", "lun": 0}, "peer": {"name": "b", "key": "` + key + `"}}`,
			`{"name": "x", "peer": {"name": "y", "key": "` + other + `"}, "direct": "eth2", ` + volume + `}`, "a", "y", "eth3", "iqn.own",
		},
		{"management's NIC", `{"management": "eth2"}`, `{"direct": "eth2"}`, "", "", "", ""},
		{"unpaired", `{"name": "a", "peer": {"name": "b", "key": "` + key + `"}}`, `{"name": "a"}`, "a", "", "", ""},
		{"damaged", `{"name": "a", "peer": {"name": "b", "key": "` + key + `"}}`, `{"name": "a", "pe`, "a", "", "", ""},
		{"the peer's name", `{"name": "y"}`, `{"name": "x", "peer": {"name": "y", "key": "` + other + `"}}`, "y", "", "", ""},
	} {
		for path, text := range map[string]string{config: c.host, PairingPath(config): c.pair} {
			os.Remove(path)
			if text != "" {
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		got, err := Load(config)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		peer, disk := "", ""
		if got.Peer != nil {
			peer = got.Peer.Name
		}
		if got.Volume != nil {
			disk = got.Volume.Target
		}
		if got.Name != c.want || peer != c.peer || got.Direct != c.direct || disk != c.disk {
			t.Errorf("%s: name %q, peer %q, direct %q, volume %q; want %q, %q, %q, %q", c.name, got.Name, peer, got.Direct, disk, c.want, c.peer, c.direct, c.disk)
		}
	}
}

func TestPairingIsStored(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pair.json")
	if p, err := LoadPairing(path); p != nil || err != nil {
		t.Errorf("without a file: %+v, %v", p, err)
	}
	p := Pairing{Name: "a", Peer: &Peer{Name: "b", Key: key}, Direct: "eth1"}
	if err := p.Store(path); err != nil {
		t.Fatal(err)
	}
	got, err := LoadPairing(path)
	if err != nil || got.Name != "a" || *got.Peer != *p.Peer || got.Direct != "eth1" || got.Volume != nil {
		t.Errorf("%+v, %v", got, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its rights are %v, %v", info.Mode(), err)
	}
	if err := (&Pairing{Name: "a", Peer: &Peer{Name: "a", Key: key}}).Store(path); err == nil {
		t.Error("a host was paired with itself")
	}
	if again, err := LoadPairing(path); err != nil || again.Peer == nil {
		t.Errorf("what can't be kept replaced what was: %+v, %v", again, err)
	}
}

func TestDirectInterfaceIsRenamed(t *testing.T) {
	nic := func(name, mac string) net.Interface {
		a, err := net.ParseMAC(mac)
		if err != nil {
			t.Fatal(err)
		}
		return net.Interface{Name: name, HardwareAddr: a}
	}
	const x, y, z = "52:54:00:00:00:01", "52:54:00:00:00:02", "52:54:00:00:00:03"
	for _, c := range []struct {
		name string
		mac  string
		nics []net.Interface
		want string
	}{
		{"as it was", y, []net.Interface{nic("eth0", x), nic("eth1", y)}, "eth1"},
		{"exchanged", y, []net.Interface{nic("eth0", y), nic("eth1", x)}, "eth0"},
		{"gone", y, []net.Interface{nic("eth0", x), nic("eth1", z)}, "eth1"},
		{"shared with a virtual one", y, []net.Interface{nic("br0", y), nic("eth1", y)}, "eth1"},
		{"not kept", "", []net.Interface{nic("eth0", y)}, "eth1"},
	} {
		p := Pairing{Direct: "eth1", DirectMAC: c.mac}
		if p.renamed(c.nics); p.Direct != c.want {
			t.Errorf("%s: %s, want %s", c.name, p.Direct, c.want)
		}
	}
	if _, err := ParsePairing([]byte(`{"direct": "eth1", "direct_mac": "52:54"}`)); err == nil {
		t.Error("half a hardware address was accepted")
	}
}

func FuzzParsePairing(f *testing.F) {
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"name": "a", "peer": {"name": "b", "key": "` + key + `"}, "direct": "eth1"}`))
	f.Add([]byte(`{"volume": {"portal": "[2001:db8::1]:3260", "target": "iqn.x", "lun": 3}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParsePairing(b)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error of several lines: %q", err)
			}
			return
		}
		if p.Peer != nil {
			if _, err := p.Peer.PublicKey(); err != nil {
				t.Errorf("%s was accepted: %v", b, err)
			}
		}
	})
}
