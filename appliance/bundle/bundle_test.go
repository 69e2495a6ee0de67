package bundle

import (
	"archive/zip"
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func testKey(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
}

func public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

var (
	root, release = testKey(1), testKey(2)
	policy        = Policy{Root: public(root), KeyFloor: 3, Machine: "amd64-uefi", Floor: 7, PeerProtocol: 3}
	manifest      = Manifest{Machine: "amd64-uefi", Version: "1.2.0", Number: 9, Floor: 8, Protocol: 4, MinProtocol: 3}
	parts         = []Content{{SBOM, []byte("{}")}, {Boot, []byte("boot")}, {Root, bytes.Repeat([]byte("root"), 300)}}
)

// write makes a bundle after change, which may be nil, was applied to what it is made of.
func write(t testing.TB, change func(m *Manifest, p *[]Content, r *ed25519.PrivateKey, c *Certificate)) []byte {
	t.Helper()
	m, p, r, c := manifest, append([]Content{}, parts...), release, Certify(root, public(release), 3)
	if change != nil {
		change(&m, &p, &r, &c)
	}
	var b bytes.Buffer
	if err := Write(&b, m, p, r, c); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// read reads a bundle to its end.
func read(r io.Reader, p Policy) ([]Content, error) {
	b, err := Open(r, p)
	if err != nil {
		return nil, err
	}
	var all []Content
	for {
		part, r, err := b.Next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return nil, err
		}
		all = append(all, Content{part.Name, data})
	}
}

func TestRoundTrip(t *testing.T) {
	b := write(t, nil)
	for _, r := range []io.Reader{bytes.NewReader(b), iotest.OneByteReader(bytes.NewReader(b)), iotest.DataErrReader(bytes.NewReader(b))} {
		got, err := read(r, policy)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(parts) {
			t.Errorf("%d parts, %v", len(got), err)
		}
	}
	// The format is for ten years: the same parts and keys give the same bytes.
	if sum := fmt.Sprintf("%x", sha256.Sum256(b)); sum != golden {
		t.Errorf("the format has changed: %s", sum)
	}
	// Parts that nobody reads are checked as well.
	rd, err := Open(bytes.NewReader(b), policy)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, _, err = rd.Next()
	}
	if !errors.Is(err, io.EOF) || rd.Manifest().Number != 9 {
		t.Errorf("%v, %+v", err, rd.Manifest())
	}
}

const golden = "9b505e3b065a495705ace37cd63714a69fc90a4aebdd1aeee1483c55816d1d9e"

// TestIsZip has another program read a bundle.
func TestIsZip(t *testing.T) {
	b := write(t, nil)
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil { // with its checksum
			t.Errorf("%s: %v", f.Name, err)
		}
		names = append(names, f.Name)
	}
	if got := strings.Join(names, " "); got != "manifest.json manifest.sig sbom.json boot.img root.img" {
		t.Errorf("files %s", got)
	}
}

// TestEveryByte changes each byte and cuts at each length: all must be refused.
func TestEveryByte(t *testing.T) {
	b := write(t, nil)
	for i := range b {
		c := bytes.Clone(b)
		c[i] ^= 1 << (i % 8)
		if _, err := read(bytes.NewReader(c), policy); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("byte %d of %d changed: %v", i, len(b), err)
		}
		if _, err := read(bytes.NewReader(b[:i]), policy); !errors.Is(err, errTruncated) {
			t.Errorf("cut at %d of %d: %v", i, len(b), err)
		}
	}
	if _, err := read(bytes.NewReader(append(bytes.Clone(b), 0)), policy); err == nil || err.Error() != "changed: something follows its end" {
		t.Errorf("a byte too many: %v", err)
	}
	if _, err := read(iotest.TimeoutReader(bytes.NewReader(b)), policy); !errors.Is(err, iotest.ErrTimeout) {
		t.Errorf("a reader's own error: %v", err)
	}
}

func TestRefuses(t *testing.T) {
	type change = func(m *Manifest, p *[]Content, r *ed25519.PrivateKey, c *Certificate)
	for want, c := range map[string]change{
		"wrong machine type: it is for \"arm64-uefi\", and this host is \"amd64-uefi\"": func(m *Manifest, _ *[]Content, _ *ed25519.PrivateKey, _ *Certificate) {
			m.Machine = "arm64-uefi"
		},
		"too old: release 6 (1.2.0), and this host accepts none before 7": func(m *Manifest, _ *[]Content, _ *ed25519.PrivateKey, _ *Certificate) {
			m.Number, m.Floor = 6, 6
		},
		"from version 4 of the link's protocol on, and the peer has 3": func(m *Manifest, _ *[]Content, _ *ed25519.PrivateKey, _ *Certificate) {
			m.MinProtocol = 4
		},
		"wrong signature: the manifest was changed after it was signed": func(_ *Manifest, _ *[]Content, r *ed25519.PrivateKey, _ *Certificate) {
			*r = testKey(9)
		},
		"wrong signature: its release key isn't signed by the root key": func(_ *Manifest, _ *[]Content, r *ed25519.PrivateKey, c *Certificate) {
			*c = Certify(testKey(9), public(release), 3)
		},
		"wrong signature: its release key has the serial number 2, and keys before 3 are revoked": func(_ *Manifest, _ *[]Content, r *ed25519.PrivateKey, c *Certificate) {
			*c = Certify(root, public(release), 2)
		},
	} {
		if _, err := read(bytes.NewReader(write(t, c)), policy); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestManifests signs manifests that Write wouldn't make.
func TestManifests(t *testing.T) {
	good := string(write(t, nil)[localSize+len(manifestName):])
	good, _, _ = strings.Cut(good, "PK\x03\x04")
	sized := func(name string, size int64) string {
		return strings.Replace(strings.Replace(good, `"`+Boot+`"`, `"`+name+`"`, 1), `"size": 4,`, fmt.Sprintf(`"size": %d,`, size), 1)
	}
	for want, text := range map[string]string{
		"the manifest is no JSON":                              "{",
		`it is for "else", not for Duet`:                       strings.Replace(good, `"duet"`, `"else"`, 1),
		"its manifest has version 2, and this release reads 1": strings.Replace(good, `"format": 1`, `"format": 2, "new": 1`, 1),
		`unknown field "new"`:                                  strings.Replace(good, `"format": 1`, `"format": 1, "new": 1`, 1),
		"after top-level value":                                good + "{}",
		"is none":                                              strings.Replace(good, `"1.2.0"`, `"1 2"`, 1),
		"number 9, floor 10":                                   strings.Replace(good, `"floor": 8`, `"floor": 10`, 1),
		"protocol versions are none: 4, at least 5":            strings.Replace(good, `"min_protocol": 3`, `"min_protocol": 5`, 1),
		"boot.img is too big: 104857601 bytes":                 sized(Boot, 100<<20+1),
		"boot.img is too big: -1 bytes":                        sized(Boot, -1),
		`a part "boot2.img" that is unknown`:                   sized("boot2.img", 4),
		`a part "root.img" that is unknown or there twice`:     sized(Root, 4),
		"no boot.img or no root.img":                           sized(MBR, 4),
		"hash of sbom.json is none":                            strings.Replace(good, `"sha256": "`, `"sha256": "0`, 1),
		"lists 0 parts":                                        good[:strings.Index(good, `"parts"`)] + `"parts": []}`,
	} {
		if _, err := parseManifest([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	var m Manifest
	if err := json.Unmarshal([]byte(good), &m); err != nil || len(m.Parts) != 3 {
		t.Errorf("the good one: %+v, %v", m, err)
	}
}

// TestTooBig expects that sizes are refused before anything of that size is read or kept.
func TestTooBig(t *testing.T) {
	b := write(t, nil)
	binary.LittleEndian.PutUint32(b[18:], 1<<31)
	binary.LittleEndian.PutUint32(b[22:], 1<<31)
	if _, err := read(bytes.NewReader(b), policy); err == nil || err.Error() != "manifest.json is too big: 2147483648 bytes, at most 65536" {
		t.Errorf("%v", err)
	}
}

func TestPaper(t *testing.T) {
	text := Paper(root)
	if len(text) != 14*5-1 {
		t.Errorf("%q", text)
	}
	for _, typed := range []string{text, strings.ToLower(text), " " + strings.ReplaceAll(text, "-", " ") + "\n", strings.ReplaceAll(text, "-", "")} {
		if k, err := FromPaper(typed); err != nil || !k.Equal(root) {
			t.Errorf("%q: %v", typed, err)
		}
	}
	for i := range text {
		if text[i] == '-' {
			continue
		}
		c := byte('A')
		if text[i] == c {
			c = 'B'
		}
		if _, err := FromPaper(text[:i] + string(c) + text[i+1:]); err == nil {
			t.Errorf("letter %d mistyped, and not found", i)
		}
	}
	for _, typed := range []string{"", text[:20], text + "A", "1" + text[1:]} {
		if _, err := FromPaper(typed); err == nil || !strings.HasPrefix(err.Error(), "that is no root key") {
			t.Errorf("%q: %v", typed, err)
		}
	}
}

// FuzzRead expects that nothing but what was written is accepted.
func FuzzRead(f *testing.F) {
	good := write(f, nil)
	f.Add(good)
	f.Add(good[:len(good)-5])
	f.Add([]byte("PK\x03\x04"))
	f.Add(write(f, func(m *Manifest, _ *[]Content, _ *ed25519.PrivateKey, _ *Certificate) { m.Machine = "x" }))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := read(bytes.NewReader(b), policy); err == nil && !bytes.Equal(b, good) {
			t.Error("accepted")
		}
		if m, err := parseManifest(b); err == nil && m.check() != nil {
			t.Error("a manifest passes and doesn't")
		}
	})
}
