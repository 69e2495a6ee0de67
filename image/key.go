package main

import (
	"bufio"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/duet-ft/duet/appliance/bundle"
	"github.com/duet-ft/duet/hvd/hostkey"
)

const (
	rootFile    = "root.pub"    // the root key's public half, 64 hex digits
	releaseFile = "release.key" // a line with the release key's seed and one with its certificate, in hexadecimal
)

func defaultKeys() string {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "keys"
	}
	return filepath.Join(dir, "duet")
}

// key makes the keys that sign updates.
func key(args []string) error {
	flags := flag.NewFlagSet("key", flag.ContinueOnError)
	dir := flags.String("keys", defaultKeys(), "the keys are in `DIR`")
	serial := flags.Uint("serial", 1, "`NUMBER` of the release key: one more than that of the key before")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "key root     makes a root key, prints it to be written down, and keeps its public half")
		fmt.Fprintln(flags.Output(), "key release  makes a release key, which the root key signs: type that in")
		flags.PrintDefaults()
	}
	if err := parse(flags, args); err != nil {
		return err
	}
	switch {
	case flags.NArg() == 1 && flags.Arg(0) == "root":
		return makeRootKey(*dir, os.Stdout)
	case flags.NArg() == 1 && flags.Arg(0) == "release" && *serial <= 1<<32-1:
		return makeReleaseKey(*dir, uint32(*serial), os.Stdin, os.Stdout)
	}
	return errors.New("usage: go run ./image key [-keys DIR] [-serial N] root|release")
}

func makeRootKey(dir string, out io.Writer) error {
	k := hostkey.New()
	public, _ := k.Public().(ed25519.PublicKey)
	if err := writeNew(filepath.Join(dir, rootFile), hex.EncodeToString(public)+"\n", 0o644); err != nil {
		return err
	}
	fmt.Fprintf(out, "Write this root key down. It is kept nowhere, and without it there are no further release keys:\n\n    %s\n\n", bundle.Paper(k))
	return nil
}

func makeReleaseKey(dir string, serial uint32, in io.Reader, out io.Writer) error {
	public, err := readRootKey(dir)
	if err != nil {
		return err
	}
	fmt.Fprint(out, "Root key: ")
	line, err := bufio.NewReader(io.LimitReader(in, 1<<10)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	root, err := bundle.FromPaper(line)
	if err != nil {
		return err
	}
	if !public.Equal(root.Public()) {
		return fmt.Errorf("that is another root key than the one of %s", filepath.Join(dir, rootFile))
	}
	k := hostkey.New()
	releasePublic, _ := k.Public().(ed25519.PublicKey)
	c := bundle.Certify(root, releasePublic, serial)
	path := filepath.Join(dir, releaseFile)
	if err := writeNew(path, fmt.Sprintf("%x\n%x\n", k.Seed(), []byte(c)), 0o600); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s is release key %d\n", path, serial)
	return nil
}

// writeNew writes a file that must not be there yet: a key that is lost can't be had again.
func writeNew(path, content string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already, and keys are never overwritten: move it away first", path)
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	return errors.Join(err, f.Sync(), f.Close())
}

func readRootKey(dir string) (ed25519.PublicKey, error) {
	path := filepath.Join(dir, rootFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no root key in %s: \"go run ./image key root\" makes one", dir)
	}
	if err != nil {
		return nil, err
	}
	b, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(b) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("%s holds no key: 64 hex digits", path)
	}
	return b, nil
}

func readReleaseKey(dir string) (ed25519.PrivateKey, bundle.Certificate, error) {
	path := filepath.Join(dir, releaseFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("no release key in %s: \"go run ./image key release\" makes one", dir)
	}
	if err != nil {
		return nil, nil, err
	}
	seedText, certificateText, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
	seed, err := hex.DecodeString(seedText)
	certificate, err2 := hex.DecodeString(strings.TrimSpace(certificateText))
	if err != nil || err2 != nil || len(seed) != ed25519.SeedSize {
		return nil, nil, fmt.Errorf("%s holds no release key: a line with its seed and one with its certificate", path)
	}
	return ed25519.NewKeyFromSeed(seed), certificate, nil
}
