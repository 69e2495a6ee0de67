package session

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
)

// protocol names our stream in the TLS handshake, so that the same key used
// for another protocol never meets this one.
const protocol = "duet-link"

// secure is the TLS configuration of both ends.
type secure struct {
	client, server *tls.Config
}

func newSecure(self Identity, peer Peer) (secure, error) {
	cert, err := certificate(self.Key)
	if err != nil {
		return secure{}, fmt.Errorf("certificate of host %q: %w", self.Name, err)
	}
	client := &tls.Config{
		Certificates: []tls.Certificate{cert},
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{protocol},
		// Names and issuers mean nothing here. The handshake proves that the
		// peer holds the certificate's key, and pinned that it's the right one.
		InsecureSkipVerify:          true,
		VerifyConnection:            pinned(peer.Key),
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true, // full records from the first page on
	}
	server := client.Clone()
	server.ClientAuth = tls.RequireAnyClientCert
	return secure{client, server}, nil
}

// certificate wraps a key. The dates are wide, so that a host whose clock was
// lost still meets its peer.
func certificate(key ed25519.PrivateKey) (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// pinned accepts exactly one key.
func pinned(want ed25519.PublicKey) func(tls.ConnectionState) error {
	return func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return ErrPeerKey
		}
		key, ok := s.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
		switch {
		case !ok:
			return ErrPeerKey
		case !want.Equal(key):
			return fmt.Errorf("%w (%s instead of %s)", ErrPeerKey, Fingerprint(key), Fingerprint(want))
		}
		return nil
	}
}

// alerted tells whether err is a TLS alert that the peer sent. The first one
// after this side's certificate went out means that it wasn't accepted.
func alerted(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}
