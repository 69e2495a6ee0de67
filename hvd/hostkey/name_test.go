package hostkey

import (
	"crypto/ed25519"
	"os"
	"path/filepath"
	"testing"
)

func TestName(t *testing.T) {
	public := func() ed25519.PublicKey { return New().Public().(ed25519.PublicKey) }
	if a, b := Name(public()), Name(public()); a == b {
		t.Errorf("two hosts are named %s", a)
	}
	if got := Name(make([]byte, ed25519.PublicKeySize)); got != "duet-66687a" {
		t.Errorf("the host with the key of zeros is %s", got)
	}
}

func TestToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	made, err := LoadOrMakeToken(path)
	if err != nil || len(made) != 26 {
		t.Fatalf("%q, %v", made, err)
	}
	if again, err := LoadOrMakeToken(path); err != nil || again != made {
		t.Errorf("%q, %v; want the same", again, err)
	}
	if err := os.WriteFile(path, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := LoadOrMakeToken(path); err == nil {
		t.Errorf("an empty token: %q", got)
	}
	if _, err := LoadOrMakeToken(filepath.Join(filepath.Dir(path), "none", "token")); err == nil {
		t.Error("a token without its directory")
	}
}
