package hostcfg

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"

func TestParseFull(t *testing.T) {
	got, err := Parse([]byte(`{"name": "a", "peer": {"name": "b", "key": "` + key + `"},
		"volume": {"portal": "192.0.2.1", "target": "iqn.2026-01.example:duet", "lun": 1, "user": "u", "secret": "s",
			"portal2": "[2001:db8::1]", "target_user": "v", "target_secret": "w", "digests": true},
		"management": "eth2", "direct": "eth3", "token": "t",
		"static": {"address": "192.0.2.10/24", "gateway": "192.0.2.1", "dns": ["192.0.2.2"]}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Name: "a", Peer: &Peer{Name: "b", Key: key},
		Volume: &Volume{
			Portal: "192.0.2.1:3260", Target: "iqn.2026-01.example:duet", LUN: 1, User: "u", Secret: "s",
			Portal2: "[2001:db8::1]:3260", TargetUser: "v", TargetSecret: "w", Digests: true,
		},
		Management: "eth2", Direct: "eth3", Token: "t",
		Static: &Static{
			Address: netip.MustParsePrefix("192.0.2.10/24"), Gateway: netip.MustParseAddr("192.0.2.1"),
			DNS: []netip.Addr{netip.MustParseAddr("192.0.2.2")},
		},
	}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Error(d)
	}
	if pub, err := got.Peer.PublicKey(); err != nil || len(pub) != 32 || pub[0] != 0xd7 {
		t.Errorf("PublicKey: %x, %v", pub, err)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"unknown field", `{"nmae": "a"}`, `unknown field "nmae"`},
		{"unknown nested field", `{"volume": {"portal": "192.0.2.1", "size": 1}}`, `unknown field "size"`},
		{"wrong type", `{"volume": {"lun": "0"}}`, `field "volume.lun" must not be a JSON string`},
		{"syntax", "{\n\"name\": }", "line 2: not valid JSON"},
		{"empty", ``, "ends too early"},
		{"trailing", `{} {}`, "after the closing brace"},
		{"name", `{"name": "A b"}`, "not a host name"},
		{"own peer", `{"name": "a", "peer": {"name": "a", "key": "` + key + `"}}`, "its own peer"},
		{"short key", `{"peer": {"name": "b", "key": "d75a"}}`, "64 hex digits"},
		{"portal", `{"volume": {"portal": "storage", "target": "iqn.x", "lun": 0}}`, "not an IP address"},
		{"target", `{"volume": {"portal": "192.0.2.1", "target": "x", "lun": 0}}`, "not an iSCSI name"},
		{"lun", `{"volume": {"portal": "192.0.2.1", "target": "iqn.x", "lun": -1}}`, "volume.lun -1"},
		{"half CHAP", `{"volume": {"portal": "192.0.2.1", "target": "iqn.x", "user": "u"}}`, "belong together"},
		{"second portal", `{"volume": {"portal": "192.0.2.1", "portal2": "x", "target": "iqn.x"}}`, "volume.portal2 \"x\" is not an IP address"},
		{"same portal", `{"volume": {"portal": "192.0.2.1", "portal2": "192.0.2.1:3260", "target": "iqn.x"}}`, "two ways to the target"},
		{"half mutual CHAP", `{"volume": {"portal": "192.0.2.1", "target": "iqn.x", "user": "u", "secret": "s", "target_user": "v"}}`, "target_secret belong together"},
		{"mutual CHAP alone", `{"volume": {"portal": "192.0.2.1", "target": "iqn.x", "target_user": "v", "target_secret": "w"}}`, "needs volume.user"},
		{"one secret", `{"volume": {"portal": "192.0.2.1", "target": "iqn.x", "user": "u", "secret": "s", "target_user": "v", "target_secret": "s"}}`, "must differ"},
		{"interface", `{"management": "a/b"}`, "not the name of a network interface"},
		{"same interface", `{"management": "eth0", "direct": "eth0"}`, "two interfaces"},
		{"control character", `{"token": "a\u000ab"}`, "control character"},
		{"no object", `[]`, "must be a JSON object, and not a JSON array"},
		{"static", `{"static": {"address": "192.0.2.10"}}`, "static.address must be an IPv4 address with its prefix length"},
		{"gateway's name", `{"static": {"address": "192.0.2.10/24", "gateway": "router"}}`, `static.gateway and static.dns must be IP addresses: ("router")`},
		{"static v6", `{"static": {"address": "2001:db8::1/64"}}`, "IPv4 address with its prefix length"},
		{"gateway", `{"static": {"address": "192.0.2.10/24", "gateway": "198.51.100.1"}}`, "not in the network"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse([]byte(c.in))
			if err == nil {
				t.Fatalf("accepted %s", c.in)
			}
			if !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(c.want)) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q, want one line with %q", err, c.want)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	c, err := Load(filepath.Join(dir, "absent.json"))
	if err != nil || c.Name != "" {
		t.Errorf("absent file: %+v, %v; want defaults", c, err)
	}
	path := filepath.Join(dir, "host.json")
	if err := os.WriteFile(path, []byte(`{"name": "_"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v does not name the file", err)
	}
	if err := os.WriteFile(path, bytes.Repeat([]byte(" "), MaxSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("oversized file: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"name": "a", "peer": {"name": "b", "key": "` + key + `"}}`))
	f.Add([]byte(`{"volume": {"portal": "[2001:db8::1]:3260", "target": "iqn.x", "lun": 3}}`))
	f.Add([]byte(`{"static": {"address": "192.0.2.10/24", "gateway": "192.0.2.1", "dns": ["192.0.2.2"]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse(b)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error of several lines: %q", err)
			}
			return
		}
		again, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(again); err != nil {
			t.Errorf("%s was accepted, but what it means, %s, is not: %v", b, again, err)
		}
	})
}
