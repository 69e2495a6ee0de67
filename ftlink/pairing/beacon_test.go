package pairing

import (
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

var here = netip.MustParseAddr("fe80::1")

func TestBeacon(t *testing.T) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	p := Beacon{Side: Side{Name: "a"}, Address: here, Shows: true}.Sign(key)
	b, ok := ParseBeacon(p, here.WithZone("eth1"))
	if !ok || b.Name != "a" || !b.Key.Equal(key.Public()) || b.Address != here || !b.Shows || b.HasPeer {
		t.Fatalf("%+v, %v", b, ok)
	}
	if _, ok := ParseBeacon(p, netip.MustParseAddr("fe80::2")); ok {
		t.Error("a beacon that another machine repeats counts")
	}
	for i := range p {
		bad := slices.Clone(p)
		bad[i] ^= 1
		if _, ok := ParseBeacon(bad, here); ok {
			t.Errorf("byte %d can be changed", i)
		}
		if _, ok := ParseBeacon(p[:i], here); ok {
			t.Errorf("the first %d bytes are a beacon", i)
		}
	}
	for _, b := range []Beacon{
		{Side: Side{Name: ""}, Address: here},
		{Side: Side{Name: "A\n"}, Address: here},
		{Side: Side{Name: "a"}, Address: netip.MustParseAddr("2001:db8::1")},
	} {
		if _, ok := ParseBeacon(b.Sign(key), b.Address); ok {
			t.Errorf("%+v counts", b)
		}
	}
}

func TestNeighbours(t *testing.T) {
	var n Neighbours
	now := time.Unix(0, 0)
	for i := range 2 * maxNeighbours {
		seed := make([]byte, ed25519.SeedSize)
		seed[0] = byte(i)
		b := Beacon{Side: Side{fmt.Sprintf("h%02d", i), ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)}}
		n.Heard(b, "eth1", now)
		n.Heard(b, "eth1", now)
	}
	if list := n.List(now); len(list) != maxNeighbours || list[0].Name != "h00" || list[1].Name != "h01" {
		t.Errorf("%d neighbours, the first %v", len(list), list[0].Name)
	}
	if list := n.List(now.Add(heardFor + 1)); len(list) != 0 {
		t.Errorf("%d neighbours that are silent", len(list))
	}
}

func FuzzParseBeacon(f *testing.F) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	f.Add(Beacon{Side: Side{Name: "a"}, Address: here, HasPeer: true}.Sign(key))
	f.Add([]byte("duetmeet"))
	f.Fuzz(func(t *testing.T, p []byte) {
		b, ok := ParseBeacon(p, here)
		if !ok {
			return
		}
		if !IsName(b.Name) || b.Address != here || len(p) > MaxBeacon {
			t.Errorf("%+v was taken", b)
		}
	})
}
