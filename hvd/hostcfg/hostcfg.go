// Package hostcfg reads host.json, the file in which its user tells a host who it is: its name, its peer, the shared volume
// and its network interfaces. It also keeps pair.json, what the host learned by being paired (see Pairing).
//
// Used by hvd (name, peer, volume, token) and by appliance/netcfg (interfaces, static addresses). Imports nothing
// of ours.
//
// The file is a single JSON object, at most [MaxSize] bytes, and every field is optional, so that a host without
// one still boots, gets its address by DHCP and shows its page:
//
//	{
//	  "name": "a",
//	  "peer": {"name": "b", "key": "<Ed25519 public key, 64 hex digits>"},
//	  "volume": {"portal": "192.0.2.1:3260", "target": "iqn.2026-01.example:duet", "lun": 0,
//	             "user": "duet", "secret": "...",
//	             "portal2": "192.0.2.129:3260", "target_user": "box", "target_secret": "...", "digests": true},
//	  "management": "eth0",
//	  "direct": "eth1",
//	  "token": "...",
//	  "static": {"address": "192.0.2.10/24", "gateway": "192.0.2.1", "dns": ["192.0.2.1"]}
//	}
//
// A field that is not known is refused: a mistyped name must not become a silent default.
package hostcfg

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

const (
	// DefaultPath is where a host keeps its file: on the partition that updates never touch.
	DefaultPath = "/perm/duet/host.json"
	// MaxSize is the largest file that is read, in bytes.
	MaxSize = 64 << 10
	// DefaultPort is the TCP port of an iSCSI portal that names none (RFC 7143, section 4.2.7.2: 3260).
	DefaultPort = 3260
	// maxName is the longest host name: one DNS label (RFC 1035, section 2.3.4).
	maxName = 63
	// maxInterfaceName is Linux's IFNAMSIZ less its terminator.
	maxInterfaceName = 15
	// maxLUN is the largest logical unit number of the flat addressing that targets use in practice (SAM-5, 4.7.7.3).
	maxLUN = 16383
	// maxText bounds the strings that have no format of their own (user, secret, token, target).
	maxText = 255
	// maxDNS is how many name servers resolv.conf can use (resolv.conf(5), MAXNS).
	maxDNS = 3
)

// Config is the content of host.json. The zero value is a host with defaults: DHCP on the first interface, no peer,
// no volume.
type Config struct {
	// Name is the host's name within its pair, one DNS label; empty means the image's own host name.
	Name string `json:"name,omitempty"`
	// Peer is the other host of the pair; nil for a host that is alone.
	Peer *Peer `json:"peer,omitempty"`
	// Volume is the shared iSCSI logical unit; nil for a host that has none yet.
	Volume *Volume `json:"volume,omitempty"`
	// Management is the interface that carries the management network and the VMs' traffic; empty means the first.
	Management string `json:"management,omitempty"`
	// Direct is the interface that is cabled to the peer; empty means the second, if there is one.
	Direct string `json:"direct,omitempty"`
	// Token authorizes clients of the host's API; empty means that the API is reachable locally only.
	Token string `json:"token,omitempty"`
	// Static replaces DHCP on the management network; nil means DHCP.
	Static *Static `json:"static,omitempty"`
}

// Peer names the other host of a pair.
type Peer struct {
	// Name is the peer's own name; it must differ from the host's.
	Name string `json:"name"`
	// Key is the peer's Ed25519 public key in hexadecimal, 64 digits.
	Key string `json:"key"`
}

// PublicKey decodes Key. [Parse] has checked it, so it fails only for a Peer that was made otherwise.
func (p *Peer) PublicKey() (ed25519.PublicKey, error) {
	b, err := hex.DecodeString(p.Key)
	if err != nil || len(b) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("peer.key must be %d hex digits (an Ed25519 public key)", 2*ed25519.PublicKeySize)
	}
	return ed25519.PublicKey(b), nil
}

// Volume tells how to reach the shared logical unit.
type Volume struct {
	// Portal is the target's "address:port"; port 3260 is added when it is missing.
	Portal string `json:"portal"`
	// Target is the iSCSI name of the target (RFC 7143, section 4.2.7: iqn., eui. or naa.).
	Target string `json:"target"`
	// LUN is the logical unit number.
	LUN int `json:"lun"`
	// User and Secret are the CHAP name and secret (RFC 7143, section 12.1.3); both empty means no authentication.
	User   string `json:"user,omitempty"`
	Secret string `json:"secret,omitempty"`
	// Portal2 is another portal of the same target, of the same portal group (RFC 7143, section 4.1.1), written as
	// Portal is: the way to the volume when the first one is cut. Empty: there is one way.
	Portal2 string `json:"portal2,omitempty"`
	// TargetUser and TargetSecret are what the target must prove itself with (mutual CHAP); both empty: it needn't.
	// They need User and Secret, and another secret than that.
	TargetUser   string `json:"target_user,omitempty"`
	TargetSecret string `json:"target_secret,omitempty"`
	// Digests insists on CRC32C digests of headers and data on every session. Without it the daemon asks for them and
	// does without them where the target has none, and VMs' data go without.
	Digests bool `json:"digests,omitempty"`
}

// Static is a fixed IPv4 configuration of the management network.
type Static struct {
	// Address is the host's address with its prefix length, for example 192.0.2.10/24.
	Address netip.Prefix `json:"address"`
	// Gateway is the default router; the zero Addr means none.
	Gateway netip.Addr `json:"gateway"`
	// DNS are the name servers, at most three.
	DNS []netip.Addr `json:"dns,omitempty"`
}

// Load reads and checks the file at path, and adds what the host learned by being paired (see Pairing). A file that does
// not exist is no error: it gives the zero Config. Every error is one line that names the file and the field.
func Load(path string) (*Config, error) {
	c, err := load(path)
	if err != nil {
		return nil, err
	}
	return c.paired(PairingPath(path)), nil
}

func load(path string) (*Config, error) {
	c, err := loadFile(path, Parse)
	if c == nil && err == nil {
		c = &Config{}
	}
	return c, err
}

// loadFile reads and parses the file at path; nil if there is none.
func loadFile[T any](path string, parse func([]byte) (*T, error)) (*T, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, err
	}
	v, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return v, nil
}

// decode decodes the bytes of a file that is one JSON object.
func decode(b []byte, to any) error {
	if len(b) > MaxSize {
		return fmt.Errorf("larger than %d bytes", MaxSize)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(to); err != nil {
		return readable(err, b)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something after the closing brace of the JSON object")
	}
	return nil
}

// Parse decodes and checks the bytes of a host.json. Errors are one line each.
func Parse(b []byte) (*Config, error) {
	var c Config
	if err := decode(b, &c); err != nil {
		return nil, err
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	return &c, nil
}

// readable turns the decoder's error into a line that says where the mistake is.
func readable(err error, b []byte) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		line := 1 + bytes.Count(b[:min(int(syntax.Offset), len(b))], []byte("\n"))
		return fmt.Errorf("line %d: not valid JSON: %w", line, err)
	case errors.As(err, &kind) && kind.Field == "":
		return fmt.Errorf("it must be a JSON object, and not a JSON %s", kind.Value)
	case errors.As(err, &kind):
		return fmt.Errorf("field %q must not be a JSON %s", kind.Field, kind.Value)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("not valid JSON: the file ends too early")
	}
	// Only static has addresses; netip's errors begin with a function's name and say no field.
	text := strings.TrimPrefix(err.Error(), "json: ")
	switch {
	case strings.HasPrefix(text, "netip.ParsePrefix"):
		return errStaticAddress
	case strings.HasPrefix(text, "ParseAddr"):
		return fmt.Errorf("static.gateway and static.dns must be IP addresses: %s", strings.TrimPrefix(text, "ParseAddr"))
	}
	return errors.New(text)
}

var errStaticAddress = errors.New("static.address must be an IPv4 address with its prefix length, for example 192.0.2.10/24")

func (c *Config) check() error {
	if c.Name != "" && !isLabel(c.Name) {
		return fmt.Errorf("name %q is not a host name (1 to %d of a-z, 0-9 and inner hyphens)", c.Name, maxName)
	}
	for _, i := range []struct{ field, name string }{{"management", c.Management}, {"direct", c.Direct}} {
		if len(i.name) > maxInterfaceName || strings.ContainsAny(i.name, "/ \t\n:") || i.name == "." || i.name == ".." {
			return fmt.Errorf("%s %q is not the name of a network interface", i.field, i.name)
		}
	}
	if c.Management != "" && c.Management == c.Direct {
		return fmt.Errorf("management and direct are both %q: they must be two interfaces", c.Direct)
	}
	if err := checkText("token", c.Token); err != nil {
		return err
	}
	if err := c.checkPeer(); err != nil {
		return err
	}
	if c.Volume != nil {
		if err := c.Volume.check(); err != nil {
			return err
		}
	}
	if c.Static != nil {
		return c.Static.check()
	}
	return nil
}

func (c *Config) checkPeer() error {
	if c.Peer == nil {
		return nil
	}
	if !isLabel(c.Peer.Name) {
		return fmt.Errorf("peer.name %q is not a host name (1 to %d of a-z, 0-9 and inner hyphens)", c.Peer.Name, maxName)
	}
	if c.Peer.Name == c.Name {
		return fmt.Errorf("name and peer.name are both %q: a host cannot be its own peer", c.Name)
	}
	_, err := c.Peer.PublicKey()
	return err
}

func (v *Volume) check() error {
	var err error
	if v.Portal, err = withPort("portal", v.Portal); err != nil {
		return err
	}
	if v.Portal2 != "" {
		if v.Portal2, err = withPort("portal2", v.Portal2); err != nil {
			return err
		}
	}
	if v.Portal == v.Portal2 {
		return fmt.Errorf("volume.portal and volume.portal2 are both %s: they must be two ways to the target", v.Portal)
	}
	if !strings.HasPrefix(v.Target, "iqn.") && !strings.HasPrefix(v.Target, "eui.") && !strings.HasPrefix(v.Target, "naa.") {
		return fmt.Errorf("volume.target %q is not an iSCSI name (iqn., eui. or naa.)", v.Target)
	}
	if v.LUN < 0 || v.LUN > maxLUN {
		return fmt.Errorf("volume.lun %d is not between 0 and %d", v.LUN, maxLUN)
	}
	if (v.User == "") != (v.Secret == "") {
		return errors.New("volume.user and volume.secret belong together: give both or none")
	}
	switch {
	case (v.TargetUser == "") != (v.TargetSecret == ""):
		return errors.New("volume.target_user and volume.target_secret belong together: give both or none")
	case v.TargetSecret != "" && v.Secret == "":
		return errors.New("volume.target_secret (mutual CHAP) needs volume.user and volume.secret, too")
	case v.TargetSecret != "" && v.TargetSecret == v.Secret:
		return errors.New("volume.target_secret must differ from volume.secret, or anybody could answer with it")
	}
	for _, t := range []struct{ field, text string }{
		{"volume.target", v.Target},
		{"volume.user", v.User},
		{"volume.secret", v.Secret},
		{"volume.target_user", v.TargetUser},
		{"volume.target_secret", v.TargetSecret},
	} {
		if err := checkText(t.field, t.text); err != nil {
			return err
		}
	}
	return nil
}

// withPort checks that s is an IP address, with or without a port, and returns it with one. Names are not accepted:
// a host must reach its volume while the network's name server is down.
func withPort(field, s string) (string, error) {
	if ap, err := netip.ParseAddrPort(s); err == nil && ap.Port() != 0 {
		return ap.String(), nil
	}
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return netip.AddrPortFrom(a, DefaultPort).String(), nil
	}
	return "", fmt.Errorf("volume.%s %q is not an IP address with an optional port", field, s)
}

func (s *Static) check() error {
	if !s.Address.IsValid() || !s.Address.Addr().Is4() {
		return errStaticAddress
	}
	if s.Gateway.IsValid() && !s.Address.Masked().Contains(s.Gateway) {
		return fmt.Errorf("static.gateway %s is not in the network of static.address %s", s.Gateway, s.Address)
	}
	if len(s.DNS) > maxDNS {
		return fmt.Errorf("static.dns names %d servers: at most %d are used", len(s.DNS), maxDNS)
	}
	return nil
}

func checkText(field, s string) error {
	if len(s) > maxText {
		return fmt.Errorf("%s is longer than %d bytes", field, maxText)
	}
	for _, r := range s {
		if r < 0x20 || r == 0x7f {
			return fmt.Errorf("%s holds a control character", field)
		}
	}
	return nil
}

// isLabel reports whether s is one DNS label in lower case (RFC 1123, section 2.1).
func isLabel(s string) bool {
	if s == "" || len(s) > maxName || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return false
		}
	}
	return true
}

// DrainedPath is the file that says, by being there, that the host of a host.json is drained: no VM is to be on it.
func DrainedPath(config string) string { return filepath.Join(filepath.Dir(config), "drained") }
