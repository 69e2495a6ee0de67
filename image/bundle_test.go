package main

import (
	"bytes"
	"crypto/ed25519"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/duet-ft/duet/image/disk"
)

// paper cuts the root key out of what makeRootKey prints.
func paper(t *testing.T, dir string) string {
	t.Helper()
	var out bytes.Buffer
	if err := makeRootKey(dir, &out); err != nil {
		t.Fatal(err)
	}
	for _, field := range strings.Fields(out.String()) {
		if strings.Count(field, "-") == 13 {
			return field
		}
	}
	t.Fatalf("no key in %q", out.String())
	return ""
}

// TestKeysAndBundle goes the way of a maker: root key, release key, bundle, check.
func TestKeysAndBundle(t *testing.T) {
	dir := t.TempDir()
	if _, err := readRootKey(dir); err == nil || !strings.Contains(err.Error(), `"go run ./image key root" makes one`) {
		t.Errorf("no root key: %v", err)
	}
	text := paper(t, dir)
	if err := makeRootKey(dir, io.Discard); err == nil || !strings.Contains(err.Error(), "never overwritten") {
		t.Errorf("a second root key: %v", err)
	}
	if _, _, err := readReleaseKey(dir); err == nil || !strings.Contains(err.Error(), `"go run ./image key release" makes one`) {
		t.Errorf("no release key: %v", err)
	}
	if err := makeReleaseKey(dir, 1, strings.NewReader(paper(t, t.TempDir())), io.Discard); err == nil || !strings.Contains(err.Error(), "another root key") {
		t.Errorf("another root key: %v", err)
	}
	if err := makeReleaseKey(dir, 1, strings.NewReader(text+"\n"), io.Discard); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, releaseFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("release.key: %v, %v", info.Mode(), err)
	}
	root, err := readRootKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	k, c, err := readReleaseKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	parts := &disk.Parts{MBR: make([]byte, 512), Boot: []byte("b"), Root: []byte("r"), SBOM: []byte("{}")}
	b, err := signedBundle(parts, k, c)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := readBundle(bytes.NewReader(b), root); err != nil || len(m.Parts) != 4 {
		t.Errorf("%+v, %v", m, err)
	}
	file := filepath.Join(dir, "x.gaf")
	if err := os.WriteFile(file, append(b, 0), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := checkBundle(file, root); err == nil || !strings.HasPrefix(err.Error(), file+" is refused: changed: ") {
		t.Errorf("a changed one: %v", err)
	}
	other, err := readRootKey(func() string { d := t.TempDir(); paper(t, d); return d }())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readBundle(bytes.NewReader(b), other); err == nil || !strings.Contains(err.Error(), "wrong signature") {
		t.Errorf("with another root key: %v", err)
	}
	if _, err := signedBundle(&disk.Parts{Root: make([]byte, ed25519.SeedSize)}, k, nil); err == nil {
		t.Error("a bundle without a certificate")
	}
}
