package bundle

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
)

// Policy is what a host accepts.
type Policy struct {
	// Root is the key that signs release keys.
	Root ed25519.PublicKey
	// KeyFloor is the lowest serial number of a release key that counts.
	KeyFloor uint32
	// Machine is the kind of machine that the host is.
	Machine string
	// Floor is the lowest number of a release that the host takes.
	Floor uint64
	// PeerProtocol is the version of the link's protocol that the peer speaks; 0 if there is no peer.
	PeerProtocol int
}

// check compares a manifest with what the host accepts.
func (p Policy) check(m *Manifest) error {
	switch {
	case m.Machine != p.Machine:
		return fmt.Errorf("wrong machine type: it is for %.20q, and this host is %q", m.Machine, p.Machine)
	case m.Number < p.Floor:
		return fmt.Errorf("too old: release %d (%s), and this host accepts none before %d", m.Number, m.Version, p.Floor)
	case p.PeerProtocol != 0 && m.MinProtocol > p.PeerProtocol:
		return fmt.Errorf("it speaks to peers from version %d of the link's protocol on, and the peer has %d: update both by a release in between",
			m.MinProtocol, p.PeerProtocol)
	}
	return nil
}

// errTruncated is why a bundle ends early. The size of what is missing isn't known.
var errTruncated = errors.New("truncated: it ends before its end")

// Reader reads a bundle from its start to its end. Its parts are those that the signed manifest lists, but a part's bytes
// are known to be right only when it was read to its end without an error.
type Reader struct {
	r        io.Reader
	manifest *Manifest
	members  []member
	offset   uint32
	part     *partReader
	err      error
}

// Open reads the manifest of a bundle and checks it, its signature first. Errors tell why it is refused, in one line.
func Open(r io.Reader, p Policy) (*Reader, error) {
	b := &Reader{r: r}
	text, err := b.file(manifestName, 1, MaxManifest)
	if err != nil {
		return nil, err
	}
	signature, err := b.file(signatureName, signatureSize, signatureSize)
	if err != nil {
		return nil, err
	}
	if err := verify(signature, text, p); err != nil {
		return nil, err
	}
	if b.manifest, err = parseManifest(text); err != nil {
		return nil, err
	}
	return b, p.check(b.manifest)
}

// Manifest is what the bundle says of itself.
func (b *Reader) Manifest() Manifest { return *b.manifest }

// Next gives the next part, or io.EOF after the last one, when the archive has ended as it must. What is left of the
// part before is read.
func (b *Reader) Next() (Part, io.Reader, error) {
	if b.err == nil && b.part != nil {
		_, b.err = io.Copy(io.Discard, b.part)
	}
	if b.err != nil {
		return Part{}, nil, b.err
	}
	n := len(b.members) - 2
	if n == len(b.manifest.Parts) {
		b.err = b.end()
		return Part{}, nil, b.err
	}
	p := b.manifest.Parts[n]
	if b.err = b.header(p.Name, p.Size, p.Size); b.err != nil {
		return Part{}, nil, b.err
	}
	b.part = &partReader{b: b, p: p, left: p.Size, sum: sha256.New(), crc: crc32.NewIEEE()}
	return p, b.part, nil
}

// file reads a small file whole.
func (b *Reader) file(name string, least, most int64) ([]byte, error) {
	if err := b.header(name, least, most); err != nil {
		return nil, err
	}
	m := b.members[len(b.members)-1]
	content := make([]byte, m.size)
	if err := b.full(content); err != nil {
		return nil, err
	}
	if crc32.ChecksumIEEE(content) != m.crc {
		return nil, fmt.Errorf("changed: %s has another checksum than it says", name)
	}
	return content, nil
}

// header reads a local header, which must be the one for that name.
func (b *Reader) header(name string, least, most int64) error {
	h := make([]byte, localSize+len(name))
	at := b.offset
	if err := b.full(h[:4]); err != nil {
		return err
	}
	if string(h[:4]) != "PK\x03\x04" {
		return fmt.Errorf("it is no bundle, or changed: no %s at byte %d", name, at)
	}
	if err := b.full(h[4:]); err != nil {
		return err
	}
	m := member{name, binary.LittleEndian.Uint32(h[18:]), binary.LittleEndian.Uint32(h[14:]), at}
	if !bytes.Equal(h, m.local()) {
		return fmt.Errorf("it is no bundle, or changed: the header of %s is none of a bundle", name)
	}
	switch size := int64(m.size); {
	case size > most:
		return fmt.Errorf("%s is too big: %d bytes, at most %d", name, size, most)
	case size < least:
		return fmt.Errorf("changed: %s has %d bytes and not %d", name, size, least)
	}
	b.members = append(b.members, m)
	return nil
}

// end reads the archive's end, of which every byte is known by now.
func (b *Reader) end() error {
	want := tail(b.members)
	got := make([]byte, len(want))
	if err := b.full(got); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return errors.New("changed: the archive's list of files isn't that of its files")
	}
	switch n, err := io.ReadFull(b.r, make([]byte, 1)); {
	case n > 0:
		return errors.New("changed: something follows its end")
	case !errors.Is(err, io.EOF):
		return err
	}
	return io.EOF
}

// full reads all of p, or tells that the bundle is truncated.
func (b *Reader) full(p []byte) error {
	n, err := io.ReadFull(b.r, p)
	b.offset += uint32(n) // the sizes of all parts are bounded by far less than 4 GiB
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errTruncated
	}
	return err
}

// partReader reads one part and checks it when it ends.
type partReader struct {
	b    *Reader
	p    Part
	left int64
	sum  hash.Hash
	crc  hash.Hash32
}

// Read implements io.Reader. io.EOF means that all that was read is what the release's makers signed.
func (r *partReader) Read(p []byte) (int, error) {
	if r.b.err != nil {
		return 0, r.b.err
	}
	if r.b.part != r {
		return 0, errors.New("a part is read after the next one was begun")
	}
	if r.left == 0 {
		m := r.b.members[len(r.b.members)-1]
		if hex.EncodeToString(r.sum.Sum(nil)) != r.p.SHA256 || r.crc.Sum32() != m.crc {
			r.b.err = fmt.Errorf("changed: %s isn't what the manifest says", r.p.Name)
			return 0, r.b.err
		}
		return 0, io.EOF
	}
	n, err := r.b.r.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	r.b.offset += uint32(n)
	r.sum.Write(p[:n])
	r.crc.Write(p[:n])
	if errors.Is(err, io.EOF) {
		err = nil
		if n == 0 {
			err = errTruncated
		}
	}
	r.b.err = err
	return n, err
}
