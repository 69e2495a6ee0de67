package main

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/duet-ft/duet/image/guest"
)

//go:embed workloads
var scripts embed.FS

// spinPkg is the workload that is written in Go.
const spinPkg = "github.com/duet-ft/duet/image/soak/spin"

// buildGuest returns the disk image of the guest: image/guest's with what the workloads need, and a second kernel.
func buildGuest(ctx context.Context, say func(string)) (string, error) {
	dir, err := os.MkdirTemp("", "duet-soak-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	spin := filepath.Join(dir, "spin")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", spin, spinPkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile a workload: %w: %s", err, bytes.TrimSpace(out))
	}
	files := map[string][]byte{}
	if files["/soak/spin"], err = os.ReadFile(spin); err != nil {
		return "", err
	}
	list, err := scripts.ReadDir("workloads")
	if err != nil {
		return "", err
	}
	for _, f := range list {
		if files["/soak/"+f.Name()], err = scripts.ReadFile("workloads/" + f.Name()); err != nil {
			return "", err
		}
	}
	return guest.Variant{
		Name: "soak", MiB: 1400, Packages: []string{"sqlite3", "gcc", "libc6-dev"},
		Backports: []string{"linux-image-cloud-amd64"}, Files: files,
	}.Build(ctx, "", say)
}
