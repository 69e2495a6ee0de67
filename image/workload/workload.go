// Package workload builds the guest whose programs are measured and recorded: image/guest's with a compiler and SQLite, a
// second kernel, and the scripts of scripts/ as /soak/NAME. Each does one thing that guests do, and ends with status 0 if
// it went well; "prepare" comes before the first.
//
// # Place
//
// image/soak records them, image/bench measures them; hvd/vm's tests run them in the guest. It imports image/guest.
package workload

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

//go:embed scripts
var scripts embed.FS

// spinPkg is the workload that is written in Go.
const spinPkg = "github.com/duet-ft/duet/image/workload/spin"

// Script is what the workload of a name does, or an error if there is none.
func Script(name string) ([]byte, error) { return scripts.ReadFile("scripts/" + name) }

// BuildGuest returns the path of the guest's disk image. say gets a line for each step.
func BuildGuest(ctx context.Context, say func(string)) (string, error) {
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
	list, err := scripts.ReadDir("scripts")
	if err != nil {
		return "", err
	}
	for _, f := range list {
		if files["/soak/"+f.Name()], err = Script(f.Name()); err != nil {
			return "", err
		}
	}
	return guest.Variant{
		Name: "soak", MiB: 1400, Packages: []string{"sqlite3", "gcc", "libc6-dev"},
		Backports: []string{"linux-image-cloud-amd64"}, Files: files,
	}.Build(ctx, "", say)
}
