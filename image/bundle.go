package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/google/renameio/v2"

	"github.com/duet-ft/duet/appliance/bundle"
	"github.com/duet-ft/duet/appliance/release"
	"github.com/duet-ft/duet/ftlink/wire"
	"github.com/duet-ft/duet/image/disk"
)

// makeBundle writes a signed update of the present sources, or checks one.
func makeBundle(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bundle", flag.ContinueOnError)
	out := flags.String("o", "duet.gaf", "write the bundle to `FILE`")
	check := flags.String("check", "", "check the bundle in `FILE` as a host would, and say what it is")
	keys := flags.String("keys", defaultKeys(), "the keys are in `DIR` (key -h)")
	if err := parse(flags, args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("bundle: %.40q is no flag; bundle -h shows them", flags.Arg(0))
	}
	root, err := readRootKey(*keys)
	if err != nil {
		return err
	}
	if *check != "" {
		return checkBundle(*check, root)
	}
	key, certificate, err := readReleaseKey(*keys)
	if err != nil {
		return err
	}
	img, err := buildImage(ctx, nil)
	if err != nil {
		return err
	}
	parts, err := img.Parts()
	if err != nil {
		return err
	}
	content, err := signedBundle(parts, key, certificate)
	if err != nil {
		return err
	}
	// What a host would refuse isn't written.
	if _, err := readBundle(bytes.NewReader(content), root); err != nil {
		return fmt.Errorf("the bundle made of these keys and sources would be refused: %w", err)
	}
	if err := renameio.WriteFile(*out, content, 0o644); err != nil {
		return err
	}
	return checkBundle(*out, root)
}

// signedBundle makes a bundle of an image's parts.
func signedBundle(p *disk.Parts, key ed25519.PrivateKey, c bundle.Certificate) ([]byte, error) {
	m := bundle.Manifest{
		Machine: release.Machine, Version: release.Version, Number: release.Number, Floor: release.Floor,
		Protocol: wire.Version, MinProtocol: wire.Version, // a link's two ends must speak the same version
	}
	var b bytes.Buffer
	err := bundle.Write(&b, m, []bundle.Content{
		{Name: bundle.SBOM, Data: p.SBOM},
		{Name: bundle.MBR, Data: p.MBR},
		{Name: bundle.Boot, Data: p.Boot},
		{Name: bundle.Root, Data: p.Root},
	}, key, c)
	return b.Bytes(), err
}

// readBundle reads a bundle to its end, as a host without a peer would whose release is this one.
func readBundle(r io.Reader, root ed25519.PublicKey) (bundle.Manifest, error) {
	b, err := bundle.Open(r, bundle.Policy{Root: root, Machine: release.Machine, Floor: release.Floor})
	if err != nil {
		return bundle.Manifest{}, err
	}
	for {
		if _, _, err := b.Next(); errors.Is(err, io.EOF) {
			return b.Manifest(), nil
		} else if err != nil {
			return bundle.Manifest{}, err
		}
	}
}

func checkBundle(path string, root ed25519.PublicKey) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := readBundle(f, root)
	if err != nil {
		return fmt.Errorf("%s is refused: %w", path, err)
	}
	hash, err := hashOf(path)
	if err != nil {
		return err
	}
	fmt.Printf("bundle    %s: Duet %s, release %d for %s\n", path, m.Version, m.Number, m.Machine)
	fmt.Printf("accepts   releases from %d on, peers from version %d of the link's protocol on\n", m.Floor, m.MinProtocol)
	for _, p := range m.Parts {
		fmt.Printf("%-9s %10d bytes\n", p.Name, p.Size)
	}
	fmt.Printf("sha256    %x\n", hash)
	return nil
}
