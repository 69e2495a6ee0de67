package session

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"testing"
)

// TestConvert uses the vector of libsodium's test/default/ed25519_convert.
func TestConvert(t *testing.T) {
	seed, _ := hex.DecodeString("421151a459faeade3d247115f94aedae42318124095afabe4d1451a559faedee")
	want := "f1814f0e8ff1043d8a44d25babff3cedcae6c22c3edaa48f857ae70de2baae50"
	public, err := montgomeryPublic(ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(public.Bytes()); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	// The two halves of a key stay a pair.
	for i := range 20 {
		k := key(fmt.Sprint(i))
		private, err := montgomeryPrivate(k)
		if err != nil {
			t.Fatal(err)
		}
		public, err := montgomeryPublic(publicHalf(k))
		if err != nil {
			t.Fatal(err)
		}
		if !private.PublicKey().Equal(public) {
			t.Errorf("key %d: the halves don't fit", i)
		}
	}
}

func TestMACKeys(t *testing.T) {
	keys := func(self, peer, vm string) macKeys {
		k, err := newMACKeys(key(self), public(peer), vm)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	a, b := keys("alpha", "beta", "vm-1"), keys("beta", "alpha", "vm-1")
	if !bytes.Equal(a.out, b.in) || !bytes.Equal(a.in, b.out) {
		t.Error("the two sides derive different keys")
	}
	seen := map[string]bool{}
	for _, k := range []macKeys{a, keys("alpha", "beta", "vm-2"), keys("alpha", "gamma", "vm-1"), keys("gamma", "beta", "vm-1")} {
		for _, half := range [][]byte{k.out, k.in} {
			if seen[string(half)] {
				t.Error("one key serves two purposes")
			}
			seen[string(half)] = true
		}
	}
	// Points of low order would give a key that everyone knows.
	for _, weak := range [][]byte{
		append([]byte{1}, make([]byte, 31)...), // neutral: y = 1
		make([]byte, 32),                       // order 4: y = 0
		append(append([]byte{0xec}, bytes.Repeat([]byte{0xff}, 30)...), 0x7f), // order 2: y = -1
		make([]byte, 31),
	} {
		if _, err := newMACKeys(key("alpha"), weak, "vm-1"); err == nil {
			t.Errorf("key %x: no error", weak)
		}
	}
}

func BenchmarkDatagram(b *testing.B) {
	k, err := newMACKeys(key("alpha"), public("beta"), "vm-1")
	if err != nil {
		b.Fatal(err)
	}
	d := datagram{kind: kindHeartbeat, path: Direct, payload: make([]byte, 100)}
	var buf []byte
	for b.Loop() {
		buf = seal(buf[:0], d, k.out)
		if !authentic(buf, k.out) {
			b.Fatal("not authentic")
		}
	}
}
