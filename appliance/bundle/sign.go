package bundle

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

const (
	signatureSize = 176
	signatureText = "DUETSIG1"
	keyContext    = "duet release key 1\n"
	textContext   = "duet manifest 1\n"
	// certificateSize is manifest.sig without the manifest's signature.
	certificateSize = signatureSize - ed25519.SignatureSize
)

// Certificate is a release key, signed by the root key: the first 112 bytes of each manifest.sig that the key makes.
type Certificate []byte

// Certify has the root key sign a release key.
func Certify(root ed25519.PrivateKey, release ed25519.PublicKey, serial uint32) Certificate {
	c := []byte(signatureText)
	c = binary.LittleEndian.AppendUint32(c, serial)
	c = binary.LittleEndian.AppendUint32(c, 0)
	c = append(c, release...)
	return append(c, ed25519.Sign(root, append([]byte(keyContext), c[8:]...))...)
}

// Check verifies the certificate and returns its release key.
func (c Certificate) Check(root ed25519.PublicKey) (release ed25519.PublicKey, serial uint32, err error) {
	if len(c) != certificateSize || string(c[:8]) != signatureText || binary.LittleEndian.Uint32(c[12:]) != 0 {
		return nil, 0, errors.New("its signature has an unknown form")
	}
	if !ed25519.Verify(root, append([]byte(keyContext), c[8:48]...), c[48:]) {
		return nil, 0, errors.New("wrong signature: its release key isn't signed by the root key of Duet's makers that this host knows")
	}
	return ed25519.PublicKey(c[16:48]), binary.LittleEndian.Uint32(c[8:]), nil
}

func sign(release ed25519.PrivateKey, manifest []byte) []byte {
	return ed25519.Sign(release, append([]byte(textContext), manifest...))
}

// verify checks a manifest.sig.
func verify(sig, manifest []byte, p Policy) error {
	if len(sig) != signatureSize {
		return errors.New("its signature has an unknown form")
	}
	release, serial, err := Certificate(sig[:certificateSize]).Check(p.Root)
	if err != nil {
		return err
	}
	if serial < p.KeyFloor {
		return fmt.Errorf("wrong signature: its release key has the serial number %d, and keys before %d are revoked", serial, p.KeyFloor)
	}
	if !ed25519.Verify(release, append([]byte(textContext), manifest...), sig[certificateSize:]) {
		return errors.New("wrong signature: the manifest was changed after it was signed")
	}
	return nil
}

// Paper form of a root key: its seed (RFC 8032, section 5.1.5) and the first three bytes of the seed's SHA-256, in base32
// (RFC 4648, section 6), in 14 groups of four letters.
const (
	paperSum   = 3
	paperGroup = 4
)

// Paper writes a root key so that it can be kept on paper.
func Paper(root ed25519.PrivateKey) string {
	seed := root.Seed()
	sum := sha256.Sum256(seed)
	text := base32.StdEncoding.EncodeToString(append(seed, sum[:paperSum]...))
	var groups []string
	for ; len(text) > 0; text = text[paperGroup:] {
		groups = append(groups, text[:paperGroup])
	}
	return strings.Join(groups, "-")
}

// FromPaper reads what Paper wrote, in letters of any case, with spaces or dashes anywhere.
func FromPaper(text string) (ed25519.PrivateKey, error) {
	letters := strings.ToUpper(strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '-' || r <= ' ' }), ""))
	b, err := base32.StdEncoding.DecodeString(letters)
	if err != nil || len(b) != ed25519.SeedSize+paperSum {
		return nil, errors.New("that is no root key: it has 14 groups of four letters A to Z and digits 2 to 7")
	}
	seed := b[:ed25519.SeedSize]
	if sum := sha256.Sum256(seed); string(sum[:paperSum]) != string(b[ed25519.SeedSize:]) {
		return nil, errors.New("that is no root key: a letter is mistyped")
	}
	return ed25519.NewKeyFromSeed(seed), nil
}
