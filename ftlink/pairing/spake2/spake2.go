// Package spake2 is SPAKE2, a password-authenticated key exchange: two sides that know the same password find out that
// they do, and whoever is between them, or plays one of them, can try one password per run and learns nothing else.
//
// # Place
//
// ftlink/pairing runs it with a pairing code for the password. It imports nothing of ours. Points of the curve are
// filippo.io/nistec's, the code of Go's own crypto/ecdh, which doesn't offer their addition.
//
// # The protocol
//
// RFC 9382 with the ciphersuite P256-SHA256-HKDF-HMAC. w is the password as a scalar, G the generator, n its order,
// M and N two points of which nobody knows the logarithm (section 4):
//
//	A                                     B
//	x random, pA = xG + wM  -- pA -->     y random, pB = yG + wN
//	                        <-- pB --
//	K = x(pB - wN)                        K = y(pA - wM)
//	          TT = A, B, pA, pB, K, w, each behind its length (u64, little endian)
//	          Ke | Ka = SHA-256(TT);  KcA | KcB = HKDF(Ka, "ConfirmationKeys" | aad)
//	cA = HMAC(KcA, TT)      -- cA -->     compared
//	compared                <-- cB --     cB = HMAC(KcB, TT)
//
// A share is uniform over the group whatever the password is, so it tells nothing. Who doesn't know w has to choose one
// password with the share, since for any other x or y is unknown, and a confirmation can be tested for that one only. The
// security proof is Abdalla and Pointcheval's (CT-RSA 2005; in the form of the RFC: Abdalla, Barbosa, Bradley, Jarecki,
// Katz and Xu, ASIACRYPT 2020).
//
// The cofactor of P-256 is 1: a point that is on the curve and isn't infinity is in the group.
package spake2

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/big"

	"filippo.io/nistec"
)

const (
	// ShareSize is the length of a share: an uncompressed point (SEC 1, section 2.3.3).
	ShareSize = 65
	// ConfirmSize is the length of a confirmation.
	ConfirmSize = sha256.Size
	// SecretSize is how many random bytes a run takes: 128 bits more than the order has, so that the scalar that they
	// are reduced to is uniform (FIPS 186-5, section A.2.1).
	SecretSize = scalarSize + 16

	scalarSize = 32
	half       = sha256.Size / 2
)

// Role is the side that a run is: A sends the first share, and confirms first.
type Role uint8

// The roles.
const (
	A Role = iota
	B
)

// Errors of Finish and Verify.
var (
	ErrShare   = errors.New("a share that is no point of the curve")
	ErrConfirm = errors.New("the other side has another password, or somebody is in between")
)

// order is the order of P-256's group (SP 800-186, section 3.2.1.3).
var order, _ = new(big.Int).SetString("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", 16)

// blinds are M and N (RFC 9382, section 4).
var blinds = [2]*nistec.P256Point{
	mustPoint("02886e2f97ace46e55ba9dd7242579f2993b64e16ef3dcab95afd497333d8fa12f"),
	mustPoint("03d8bbd6c639c62937b04d997f38c3770719c629d7014d49a24b4f98baa1292b49"),
}

func mustPoint(text string) *nistec.P256Point {
	b, err := hex.DecodeString(text)
	if err == nil {
		var p *nistec.P256Point
		if p, err = nistec.NewP256Point().SetBytes(b); err == nil {
			return p
		}
	}
	panic(err)
}

// Run is one side of one exchange. It is used once.
type Run struct {
	role  Role
	w, x  []byte // scalars, big endian
	share []byte

	transcript []byte
	own, other []byte // the confirmations' keys
	key        []byte
}

// New begins a run. secret is fresh and random. The password may be short: only a guess per run can be tried.
func New(role Role, password, secret [SecretSize]byte) *Run {
	return begin(role, reduce(password[:]), reduce(secret[:]))
}

// Password makes the bytes that New takes of a password, for a purpose that context names.
func Password(text, context string) (p [SecretSize]byte) {
	b, err := hkdf.Key(sha256.New, []byte(text), nil, context, len(p))
	if err != nil {
		panic(err) // it fails for lengths above 8,160 bytes only
	}
	copy(p[:], b)
	return p
}

func reduce(b []byte) []byte {
	n := new(big.Int).SetBytes(b)
	return n.Mod(n, order).FillBytes(make([]byte, scalarSize))
}

func begin(role Role, w, x []byte) *Run {
	r := &Run{role: role, w: w, x: x}
	public, err := nistec.NewP256Point().ScalarBaseMult(x)
	if err != nil {
		panic(err) // the scalar has the right size
	}
	r.share = public.Add(public, times(blinds[role], w)).Bytes()
	return r
}

func times(p *nistec.P256Point, scalar []byte) *nistec.P256Point {
	q, err := nistec.NewP256Point().ScalarMult(p, scalar)
	if err != nil {
		panic(err) // the scalar has the right size
	}
	return q
}

// Share is what goes to the other side.
func (r *Run) Share() []byte { return r.share }

// Finish takes the other side's share. idA and idB are who the sides are, and aad whatever else both have to agree on:
// where they differ on anything, confirmations don't fit.
func (r *Run) Finish(share []byte, idA, idB, aad []byte) error {
	// SetBytes takes the point at infinity, one byte, and compressed points as well.
	if len(share) != ShareSize {
		return ErrShare
	}
	theirs, err := nistec.NewP256Point().SetBytes(share)
	if err != nil {
		return ErrShare
	}
	blind := times(blinds[1-r.role], r.w)
	shared := times(theirs.Add(theirs, blind.Negate(blind)), r.x)
	if shared.IsInfinity() == 1 {
		return ErrShare
	}
	pA, pB := r.share, share
	if r.role == B {
		pA, pB = pB, pA
	}
	for _, part := range [][]byte{idA, idB, pA, pB, shared.Bytes(), r.w} {
		r.transcript = binary.LittleEndian.AppendUint64(r.transcript, uint64(len(part)))
		r.transcript = append(r.transcript, part...)
	}
	keys := sha256.Sum256(r.transcript)
	r.key = keys[:half]
	confirm, err := hkdf.Key(sha256.New, keys[half:], nil, "ConfirmationKeys"+string(aad), sha256.Size)
	if err != nil {
		return err
	}
	r.own, r.other = confirm[:half], confirm[half:]
	if r.role == B {
		r.own, r.other = r.other, r.own
	}
	return nil
}

// Confirm is what proves to the other side that this one has the password. It comes after Finish.
func (r *Run) Confirm() []byte { return tag(r.own, r.transcript) }

// Verify compares the other side's confirmation.
func (r *Run) Verify(confirm []byte) error {
	if r.other == nil || !hmac.Equal(confirm, tag(r.other, r.transcript)) {
		return ErrConfirm
	}
	return nil
}

func tag(key, transcript []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(transcript)
	return h.Sum(nil)
}
