package pairing

import (
	"cmp"
	"crypto/ed25519"
	"net/netip"
	"slices"
	"time"
)

// Beacon is what a host says of itself on each NIC, each second. Its bytes:
//
//	magic      8 bytes "duetmeet"
//	version    u8, 1
//	flags      u8: 1 shows a pairing code, 2 has a partner
//	address    16 bytes, the sender's link-local address on that NIC
//	key        32 bytes, its Ed25519 public key
//	name       1 to MaxName bytes
//	signature  64 bytes, Ed25519 by that key over all before
//
// It counts only if it came from the address that it names, so that another machine can't repeat it to attract the
// operator's attention. What it says of the name and the code is proven by pairing, and not by this.
type Beacon struct {
	Side
	Address netip.Addr // link-local, without zone
	Shows   bool       // a pairing code
	HasPeer bool
}

// BeaconEvery is the time between two beacons, and heardFor how long one counts.
const (
	BeaconEvery = time.Second
	heardFor    = 4 * BeaconEvery
)

// MaxBeacon is the largest beacon, in bytes.
const MaxBeacon = beaconHead + MaxName + ed25519.SignatureSize

const (
	beaconMagic = "duetmeet"
	flagShows   = 1
	flagHasPeer = 2
	beaconHead  = len(beaconMagic) + 2 + 16 + ed25519.PublicKeySize
)

// Sign makes the bytes of a beacon; b.Key is taken from the private key.
func (b Beacon) Sign(key ed25519.PrivateKey) []byte {
	flags := byte(0)
	if b.Shows {
		flags |= flagShows
	}
	if b.HasPeer {
		flags |= flagHasPeer
	}
	a := b.Address.As16()
	p := append([]byte(beaconMagic), version, flags)
	p = append(p, a[:]...)
	p = append(p, key.Public().(ed25519.PublicKey)...)
	p = append(p, b.Name...)
	return append(p, ed25519.Sign(key, p)...)
}

// ParseBeacon reads a beacon that came from an address. ok is false for anything else than a proper one.
func ParseBeacon(p []byte, from netip.Addr) (b Beacon, ok bool) {
	if len(p) <= beaconHead+ed25519.SignatureSize || len(p) > MaxBeacon ||
		string(p[:len(beaconMagic)]) != beaconMagic || p[len(beaconMagic)] != version {
		return Beacon{}, false
	}
	body, signature := p[:len(p)-ed25519.SignatureSize], p[len(p)-ed25519.SignatureSize:]
	rest := body[len(beaconMagic)+1:]
	flags := rest[0]
	b.Address = netip.AddrFrom16([16]byte(rest[1:17]))
	b.Key = ed25519.PublicKey(slices.Clone(rest[17 : 17+ed25519.PublicKeySize]))
	b.Name = string(body[beaconHead:])
	b.Shows, b.HasPeer = flags&flagShows != 0, flags&flagHasPeer != 0
	if flags > flagShows|flagHasPeer || !IsName(b.Name) || !b.Address.IsLinkLocalUnicast() ||
		from.WithZone("") != b.Address || !ed25519.Verify(b.Key, body, signature) {
		return Beacon{}, false
	}
	return b, true
}

// maxNeighbours bounds what strangers can make a host remember.
const maxNeighbours = 32

// Neighbour is a host that was heard on a NIC.
type Neighbour struct {
	Beacon
	NIC string
	At  time.Time
}

// Neighbours are the hosts that were heard of late. The zero value is ready.
type Neighbours struct{ list []Neighbour }

// Heard notes a beacon.
func (n *Neighbours) Heard(b Beacon, nic string, now time.Time) {
	n.forget(now)
	i := slices.IndexFunc(n.list, func(o Neighbour) bool { return o.NIC == nic && o.Key.Equal(b.Key) })
	switch {
	case i >= 0:
		n.list[i] = Neighbour{b, nic, now}
	case len(n.list) < maxNeighbours:
		n.list = append(n.list, Neighbour{b, nic, now})
	}
}

// List returns who was heard of late, by NIC and name.
func (n *Neighbours) List(now time.Time) []Neighbour {
	n.forget(now)
	list := slices.Clone(n.list)
	slices.SortFunc(list, func(a, b Neighbour) int {
		return cmp.Or(cmp.Compare(a.NIC, b.NIC), cmp.Compare(a.Name, b.Name))
	})
	return list
}

func (n *Neighbours) forget(now time.Time) {
	n.list = slices.DeleteFunc(n.list, func(o Neighbour) bool { return now.Sub(o.At) > heardFor })
}
