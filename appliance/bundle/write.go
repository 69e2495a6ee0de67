package bundle

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
)

// Content is a part to be put into a bundle.
type Content struct {
	Name string
	Data []byte
}

// Write makes a bundle of the parts. The manifest's list of parts is made here, the rest of m is the caller's.
func Write(w io.Writer, m Manifest, parts []Content, release ed25519.PrivateKey, c Certificate) error {
	m.Format, m.Product, m.Parts = Format, "duet", nil
	for _, p := range parts {
		sum := sha256.Sum256(p.Data)
		m.Parts = append(m.Parts, Part{p.Name, int64(len(p.Data)), hex.EncodeToString(sum[:])})
	}
	if err := m.check(); err != nil {
		return err
	}
	if len(c) != certificateSize {
		return fmt.Errorf("the release key's certificate has %d bytes and not %d", len(c), certificateSize)
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	text = append(text, '\n')
	if len(text) > MaxManifest {
		return fmt.Errorf("the manifest has %d bytes, at most %d", len(text), MaxManifest)
	}
	signature := append(append([]byte{}, c...), sign(release, text)...)
	files := append([]Content{{manifestName, text}, {signatureName, signature}}, parts...)
	var members []member
	offset := uint32(0)
	for _, f := range files {
		e := member{f.Name, uint32(len(f.Data)), crc32.ChecksumIEEE(f.Data), offset}
		for _, b := range [][]byte{e.local(), f.Data} {
			if _, err := w.Write(b); err != nil {
				return err
			}
			offset += uint32(len(b))
		}
		members = append(members, e)
	}
	_, err = w.Write(tail(members))
	return err
}
