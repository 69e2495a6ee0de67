// Package bundle is the format of an update: what a release puts on a host's boot and root partitions, and who says so.
//
// Used by image, which makes and checks bundles. Imports nothing of ours. Reading needs no seeking and keeps nothing but
// the manifest in memory, so that a bundle can be written to a partition while it arrives.
//
// A bundle is a zip archive of stored (not compressed) files, gokrazy's archive layout (.gaf: sbom.json, mbr.img, boot.img
// and root.img), with two files before them. Any zip tool reads it. There is one way to write each bundle, and [Open] refuses
// all others: no flags, no extra fields, no comments, no gaps, no bytes before or after. Numbers are little-endian.
//
//	for each file: local header (APPNOTE.TXT 6.3.10, section 4.3.7)
//	     0  4  "PK" 3 4
//	     4  2  version needed: 10         6  2  flags: 0        8  2  method: 0, stored
//	    10  2  time: 0                   12  2  date: 33, 1980-01-01
//	    14  4  CRC32 of the content      18  4  size           22  4  size again
//	    26  2  length of the name        28  2  length of the extra field: 0
//	    30     name, then the content
//	for each file once more: central header (section 4.3.12)
//	     0  4  "PK" 1 2                   4  2  version made by: 10
//	     6     24 bytes as in the local header from its byte 4 on (version needed to the length of the name)
//	    30     16 bytes, all 0 but the last four: the offset of its local header
//	    46     name
//	end (section 4.3.16)
//	     0  4  "PK" 5 6                   4  4  0
//	     8  2  number of files           10  2  again
//	    12  4  size of all central headers
//	    16  4  offset of the first       20  2  0
//
// The files, in this order:
//
//	manifest.json  [Manifest], JSON, at most [MaxManifest] bytes
//	manifest.sig   176 bytes, see [Certificate] and [Open]
//	the parts that the manifest lists, in its order, of the sizes and hashes that it says
//
// manifest.sig:
//
//	  0   8  "DUETSIG1"
//	  8   4  serial number of the release key
//	 12   4  0
//	 16  32  release key, Ed25519 (RFC 8032)
//	 48  64  signature of the root key over "duet release key 1\n" and bytes 8 to 47
//	112  64  signature of the release key over "duet manifest 1\n" and the bytes of manifest.json
//
// The command line in boot.img names root by the GUID that the packer gives all disks. Who writes it to a disk puts that
// disk's own there (appliance/perm, Identify).
//
// The root key signs release keys only and can stay on paper. A release key that got lost or stolen is followed by one with
// a higher serial number, and a release that accepts none below it.
package bundle

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
)

const (
	// Format is the version of the manifest that this package reads and writes.
	Format = 1
	// MaxManifest is the largest manifest.json, in bytes.
	MaxManifest = 64 << 10
	// MaxParts is how many parts a bundle may have.
	MaxParts = 8

	manifestName  = "manifest.json"
	signatureName = "manifest.sig"
)

// The parts of a release: gokrazy's names.
const (
	SBOM = "sbom.json" // what the programs were built from
	MBR  = "mbr.img"   // boot code of the disk's first sector, for firmware without UEFI
	Boot = "boot.img"  // the EFI system partition: boot loader and kernel
	Root = "root.img"  // the root file system
)

// maxSize is the largest size of each part, in bytes: what has room in gokrazy's partitions.
var maxSize = map[string]int64{SBOM: 4 << 20, MBR: 512, Boot: 100 << 20, Root: 500 << 20}

// Manifest tells what a bundle holds and for whom it is.
type Manifest struct {
	// Format is the version of this structure, 1.
	Format int `json:"format"`
	// Product is "duet".
	Product string `json:"product"`
	// Machine is the kind of machine that the release is for, such as "amd64-uefi".
	Machine string `json:"machine"`
	// Version names the release for people. Number orders releases.
	Version string `json:"version"`
	Number  uint64 `json:"number"`
	// Floor is the lowest number of a release that a host with this one will still accept.
	Floor uint64 `json:"floor"`
	// Protocol is the version of the link's protocol that the release speaks, and MinProtocol the lowest version that
	// it can speak to a peer.
	Protocol    int `json:"protocol"`
	MinProtocol int `json:"min_protocol"`
	// Parts are the files that follow.
	Parts []Part `json:"parts"`
}

// Part is one file of a bundle.
type Part struct {
	Name string `json:"name"`
	// Size is in bytes.
	Size int64 `json:"size"`
	// SHA256 is the hash of the content in hexadecimal, 64 digits.
	SHA256 string `json:"sha256"`
}

var versionText = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z.+-]{0,63}$`)

// parseManifest reads and checks a manifest. What is wrong with one that carries a right signature is told as well: the
// release key is used by people.
func parseManifest(b []byte) (*Manifest, error) {
	// The version first: a later one may have other fields.
	var version struct {
		Format  int    `json:"format"`
		Product string `json:"product"`
	}
	if err := json.Unmarshal(b, &version); err != nil {
		return nil, fmt.Errorf("the manifest is no JSON: %w", err)
	}
	if version.Product != "duet" {
		return nil, fmt.Errorf("it is for %.20q, not for Duet", version.Product)
	}
	if version.Format != Format {
		return nil, fmt.Errorf("its manifest has version %d, and this release reads %d: update to a release in between first", version.Format, Format)
	}
	var m Manifest
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return nil, fmt.Errorf("the manifest: %w", err)
	}
	return &m, m.check()
}

func (m *Manifest) check() error {
	switch {
	case !versionText.MatchString(m.Version):
		return fmt.Errorf("the manifest's version %.20q is none", m.Version)
	case m.Number == 0 || m.Floor == 0 || m.Floor > m.Number:
		return fmt.Errorf("the manifest's numbers are none of a release: number %d, floor %d", m.Number, m.Floor)
	case m.Protocol <= 0 || m.MinProtocol <= 0 || m.MinProtocol > m.Protocol:
		return fmt.Errorf("the manifest's protocol versions are none: %d, at least %d", m.Protocol, m.MinProtocol)
	case len(m.Parts) == 0 || len(m.Parts) > MaxParts:
		return fmt.Errorf("the manifest lists %d parts", len(m.Parts))
	}
	seen := map[string]bool{}
	for _, p := range m.Parts {
		most, known := maxSize[p.Name]
		sum, err := hex.DecodeString(p.SHA256)
		switch {
		case !known || seen[p.Name]:
			return fmt.Errorf("the manifest lists a part %.20q that is unknown or there twice", p.Name)
		case p.Size < 0 || p.Size > most:
			return fmt.Errorf("%s is too big: %d bytes, and its place on the disk has %d", p.Name, p.Size, most)
		case err != nil || len(sum) != 32:
			return fmt.Errorf("the manifest's hash of %s is none", p.Name)
		}
		seen[p.Name] = true
	}
	if !seen[Root] || !seen[Boot] {
		return errors.New("the manifest lists no " + Boot + " or no " + Root)
	}
	return nil
}
