// Package hostkey keeps a host's identity: one Ed25519 key, which its peer pins and its API's certificate is made of.
//
// # Place
//
// hvd/daemon makes the key at first start and serves its API with the certificate; a VM's process loads it for the
// link to the peer. It imports nothing of ours.
//
// # File
//
// The seed of the key (RFC 8032, section 5.1.5) as 64 hex digits and a line feed, readable by the owner only.
package hostkey

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
)

// DefaultPath is where a host keeps its key: beside host.json, on the partition that updates never touch.
const DefaultPath = "/perm/duet/host.key"

// maxSize bounds what is read of a key file, in bytes.
const maxSize = 256

// New makes a key.
func New() ed25519.PrivateKey {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err) // crypto/rand is documented never to fail
	}
	return key
}

// Parse reads the content of a key file.
func Parse(b []byte) (ed25519.PrivateKey, error) {
	seed, err := hex.DecodeString(string(bytes.TrimSpace(b)))
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("not a host key: expected %d hex digits (the seed of an Ed25519 key)", 2*ed25519.SeedSize)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// Format is the inverse of Parse.
func Format(key ed25519.PrivateKey) []byte {
	return append(hex.AppendEncode(nil, key.Seed()), '\n')
}

// Load reads the key at path. The error wraps fs.ErrNotExist when there is none.
func Load(path string) (ed25519.PrivateKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSize))
	if err != nil {
		return nil, err
	}
	key, err := Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// Store writes the key to path, in one step, with the rights 0600. Its directory is made if it is missing, but none
// above it: a machine without /perm is no host and gets none.
func Store(path string, key ed25519.PrivateKey) error {
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return write(path, Format(key))
}

// write replaces a file in one step, and returns once the new one would be there after a power cut.
func write(path string, b []byte) error {
	if err := renameio.WriteFile(path, b, 0o600, renameio.IgnoreUmask()); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path)) // the file's name is in it
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// LoadOrMake loads the key at path, and makes and stores one when there is none; made says so. A file that holds
// something else is an error and stays as it is: the peer has pinned the key that was in it.
func LoadOrMake(path string) (key ed25519.PrivateKey, made bool, err error) {
	key, err = Load(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, false, err
	}
	key = New()
	if err := Store(path, key); err != nil {
		return nil, false, err
	}
	return key, true, nil
}

// Certificate makes the self-signed certificate of a key. It says nothing but the key, is the same whenever it is
// made (Ed25519 signs deterministically), and never expires (RFC 5280, section 4.1.2.5: 99991231235959Z): who it belongs
// to is known by pinning, and a host may start with its clock at any year.
func Certificate(key ed25519.PrivateKey) (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "duet"},
		DNSNames:              []string{"duet"},
		NotBefore:             time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate of the host key: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
