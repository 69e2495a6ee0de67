package hostkey

import (
	"bytes"
	"crypto/ed25519"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMadeOnceThenLoaded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "duet", "host.key")
	first, made, err := LoadOrMake(path)
	if err != nil || !made {
		t.Fatalf("LoadOrMake without a file: made %v, %v", made, err)
	}
	second, made, err := LoadOrMake(path)
	if err != nil || made {
		t.Fatalf("LoadOrMake with a file: made %v, %v", made, err)
	}
	if !first.Equal(second) {
		t.Error("the key that was loaded isn't the one that was stored")
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the key file has the rights %o", info.Mode().Perm())
	}
}

func TestBadFileIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "host.key")
	for _, content := range []string{"", "abc", strings.Repeat("0", 62), strings.Repeat("0", 66), strings.Repeat("x", 64), strings.Repeat("0", 1000)} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := LoadOrMake(path)
		if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), path) {
			t.Errorf("content %.10q: error %v; want one line that names the file", content, err)
		}
		if now, _ := os.ReadFile(path); string(now) != content {
			t.Errorf("content %.10q was overwritten", content)
		}
	}
}

func TestCertificateIsStable(t *testing.T) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	a, err := Certificate(key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Certificate(key)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Certificate[0], b.Certificate[0]) {
		t.Error("two certificates of the same key differ")
	}
	c, err := Certificate(New())
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(a.Certificate[0], c.Certificate[0]) {
		t.Error("certificates of different keys are the same")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Format(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))))
	f.Add([]byte("00"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		key, err := Parse(b)
		if err != nil {
			return
		}
		again, err := Parse(Format(key))
		if err != nil || !again.Equal(key) {
			t.Fatalf("Format and Parse of %x: %v", b, err)
		}
	})
}
