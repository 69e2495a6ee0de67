package session

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"math/big"
	"slices"
)

// macSize is the size of the tag that ends a datagram: HMAC-SHA-256, cut.
const macSize = 16

const macContext = "duet datagram 1"

// macKeys are the keys of the datagrams of one VM between two hosts.
type macKeys struct {
	out, in []byte
}

// newMACKeys derives the keys that only the holders of the two hosts' private
// keys can make. There is one for each direction and VM.
func newMACKeys(self ed25519.PrivateKey, peer ed25519.PublicKey, vm string) (macKeys, error) {
	secret, err := agree(self, peer)
	if err != nil {
		return macKeys{}, err
	}
	derive := func(from, to ed25519.PublicKey) ([]byte, error) {
		info := slices.Concat([]byte(macContext), from, to, []byte(vm))
		return hkdf.Key(sha256.New, secret, nil, string(info), sha256.Size)
	}
	own := publicHalf(self)
	out, err := derive(own, peer)
	if err != nil {
		return macKeys{}, err
	}
	in, err := derive(peer, own)
	return macKeys{out: out, in: in}, err
}

// appendTag appends the tag of b to dst.
func appendTag(dst, key, b []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(b)
	return append(dst, h.Sum(nil)[:macSize]...)
}

// agree runs X25519 between two Ed25519 keys.
func agree(self ed25519.PrivateKey, peer ed25519.PublicKey) ([]byte, error) {
	private, err := montgomeryPrivate(self)
	if err != nil {
		return nil, err
	}
	public, err := montgomeryPublic(peer)
	if err != nil {
		return nil, err
	}
	return private.ECDH(public)
}

// montgomeryPrivate is the X25519 form of a private key: the scalar that
// Ed25519 signs with (RFC 8032, section 5.1.5, steps 1 and 2).
func montgomeryPrivate(key ed25519.PrivateKey) (*ecdh.PrivateKey, error) {
	h := sha512.Sum512(key.Seed())
	return ecdh.X25519().NewPrivateKey(h[:32])
}

// montgomeryPublic is the X25519 form of a public key: u = (1+y)/(1-y), the
// map between the curves in RFC 7748, section 4.1.
func montgomeryPublic(key ed25519.PublicKey) (*ecdh.PublicKey, error) {
	if len(key) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("an Ed25519 key of %d bytes", len(key))
	}
	one := big.NewInt(1)
	p := new(big.Int).Lsh(one, 255)
	p.Sub(p, big.NewInt(19))

	b := slices.Clone(key)
	b[31] &= 0x7f // the sign of x
	slices.Reverse(b)
	y := new(big.Int).SetBytes(b)
	inverse := new(big.Int).ModInverse(new(big.Int).Mod(new(big.Int).Sub(one, y), p), p)
	if inverse == nil {
		return nil, errors.New("the Ed25519 key is the neutral point")
	}
	u := y.Add(y, one)
	u.Mod(u.Mul(u, inverse), p)
	u.FillBytes(b)
	slices.Reverse(b)
	return ecdh.X25519().NewPublicKey(b)
}

// publicHalf is the public half of a private key of the right size.
func publicHalf(key ed25519.PrivateKey) ed25519.PublicKey {
	return ed25519.PublicKey(key[ed25519.PrivateKeySize-ed25519.PublicKeySize:])
}
