package hostcfg

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/renameio/v2"
)

// pairingName is the file beside host.json that pairing leaves.
const pairingName = "pair.json"

// Pairing is what a host learned by being paired. It is kept apart from host.json, which is its user's, and replaced as a
// whole:
//
//	{
//	  "name": "duet-1a2b3c",
//	  "peer": {"name": "duet-5e6f7a", "key": "<64 hex digits>"},
//	  "direct": "eth1", "direct_mac": "52:54:00:d1:e7:0b",
//	  "volume": {"portal": "192.0.2.1:3260", "target": "iqn.2026-01.example:duet", "lun": 0}
//	}
//
// Its peer takes the place of host.json's, also when it has none: then the host was unpaired. The rest fills what
// host.json leaves out. The direct interface is known by its hardware address, since kernels don't always give an interface the
// same name. A file that is damaged counts as one without a peer, so that the host can be reached and paired
// again.
type Pairing struct {
	// Name is the host's own, as the peer knows it.
	Name string `json:"name,omitempty"`
	// Peer is nil after the host was unpaired.
	Peer *Peer `json:"peer,omitempty"`
	// Direct is the interface on which the peer was found, and DirectMAC its hardware address, six hex bytes with colons.
	Direct    string `json:"direct,omitempty"`
	DirectMAC string `json:"direct_mac,omitempty"`
	// Volume is the peer's, if this host had none.
	Volume *Volume `json:"volume,omitempty"`
}

// PairingPath is where the pairing of the host of a host.json is kept.
func PairingPath(config string) string { return filepath.Join(filepath.Dir(config), pairingName) }

// LoadPairing reads the file at path; nil if there is none. Errors are one line.
func LoadPairing(path string) (*Pairing, error) { return loadFile(path, ParsePairing) }

// ParsePairing decodes and checks the bytes of a pair.json.
func ParsePairing(b []byte) (*Pairing, error) {
	var p Pairing
	if err := decode(b, &p); err != nil {
		return nil, err
	}
	if err := (&Config{}).with(&p).check(); err != nil {
		return nil, err
	}
	if p.DirectMAC != "" {
		if mac, err := net.ParseMAC(p.DirectMAC); err != nil || mac.String() != p.DirectMAC {
			return nil, fmt.Errorf("direct_mac %.40q is no hardware address, such as 52:54:00:d1:e7:0b", p.DirectMAC)
		}
	}
	return &p, nil
}

// Store writes the file in one step: after a power cut it is the old one or the new one, and once Store has returned the new
// one.
func (p *Pairing) Store(path string) error {
	b, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	b = append(b, '\n')
	if _, err := ParsePairing(b); err != nil { // what can't be read back isn't written
		return err
	}
	if err := renameio.WriteFile(path, b, 0o600, renameio.IgnoreUmask()); err != nil {
		return err
	}
	// The partner is told that it is kept: the file's name must be on the disk as well, which else takes a file system's
	// next commit, seconds later.
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// with returns c with what the host learned by being paired.
func (c *Config) with(p *Pairing) *Config {
	merged := *c
	merged.Peer = p.Peer
	if c.Name == "" {
		merged.Name = p.Name
	}
	if c.Direct == "" && p.Direct != c.Management {
		merged.Direct = p.Direct
	}
	if c.Volume == nil {
		merged.Volume = p.Volume
	}
	return &merged
}

// renamed gives the direct interface the name that the kernel has given it this time. nics has the interfaces' names and
// hardware addresses.
func (p *Pairing) renamed(nics []net.Interface) {
	is := func(i net.Interface) bool { return i.HardwareAddr.String() == p.DirectMAC }
	same := func(i net.Interface) bool { return i.Name == p.Direct && is(i) }
	if p.DirectMAC == "" || slices.ContainsFunc(nics, same) {
		return
	}
	if i := slices.IndexFunc(nics, is); i >= 0 {
		p.Direct = nics[i].Name
	}
}

// paired returns c with what is in the pair.json at path.
func (c *Config) paired(path string) *Config {
	p, err := LoadPairing(path)
	if p != nil {
		nics, _ := net.Interfaces() // if they can't be listed, the name is all there is
		p.renamed(nics)
	}
	switch {
	case err != nil:
		return c.with(&Pairing{})
	case p == nil:
		return c
	}
	merged := c.with(p)
	if merged.check() != nil { // host.json was changed since, to the peer's name for instance
		return c.with(&Pairing{})
	}
	return merged
}
