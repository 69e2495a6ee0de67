package disk

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

const (
	// recipe changes whenever this package makes an image differently from the same inputs.
	recipe = "duet image 4"
	// buildTags are those that monogok builds with.
	buildTags = "gokrazy,netgo,osusergo"
)

// machineFiles are what the packer takes from the machine that it runs on, where they are: CA certificates, time zone.
var machineFiles = []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/localtime"}

// goPackage is what is needed of "go list -json".
type goPackage struct {
	ImportPath string
	Dir        string
	Module     *struct{ Main bool }
	GoFiles    []string
	SFiles     []string
	HFiles     []string
	EmbedFiles []string
}

// hash digests everything that the image is made of: sources of this module by content, those of other modules by
// go.mod and go.sum, the kernel's files, the configuration, what the packer takes from this machine, and the compiler's
// version.
func (b *Builder) hash(ctx context.Context, cfg *config) (string, error) {
	h := sha256.New()
	version, err := goCommand(ctx, b.Root, nil, "env", "GOVERSION")
	if err != nil {
		return "", err
	}
	fmt.Fprintf(h, "%s\n%s%d\n", recipe, version, int64(DefaultSize))
	files := []string{"config.json", "go.mod", "go.sum"}
	for i := range files {
		files[i] = filepath.Join(b.Root, files[i])
	}
	sources, err := b.sources(ctx, cfg)
	if err != nil {
		return "", err
	}
	files = append(files, sources...)
	kernel, err := b.kernelFiles(ctx, cfg)
	if err != nil {
		return "", err
	}
	files = append(files, kernel...)
	for _, f := range machineFiles {
		if _, err := os.Stat(f); err == nil {
			files = append(files, f)
		}
	}
	for _, f := range files {
		if err := hashFile(h, f); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:12]), nil
}

// sources lists the files of this module that the image's programs are built from, sorted.
func (b *Builder) sources(ctx context.Context, cfg *config) ([]string, error) {
	args := []string{
		"list", "-deps", "-tags", buildTags,
		"-json=ImportPath,Dir,Module,GoFiles,SFiles,HFiles,EmbedFiles", cfg.InternalCompatibilityFlags.InitPkg,
	}
	args = append(args, cfg.GokrazyPackages...)
	args = append(args, cfg.Packages...)
	out, err := goCommand(ctx, b.Root, append([]string{"CGO_ENABLED=0"}, cfg.Environment...), args...)
	if err != nil {
		return nil, err
	}
	var files []string
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		if p.Module == nil || !p.Module.Main {
			continue
		}
		for _, list := range [][]string{p.GoFiles, p.SFiles, p.HFiles, p.EmbedFiles} {
			for _, f := range list {
				files = append(files, filepath.Join(p.Dir, f))
			}
		}
	}
	sort.Strings(files)
	return files, nil
}

func (b *Builder) kernelDir(ctx context.Context, cfg *config) (string, error) {
	out, err := goCommand(ctx, b.Root, cfg.Environment, "list", "-tags", "gokrazy", "-f", "{{.Dir}}", cfg.KernelPackage)
	return strings.TrimSpace(string(out)), err
}

// kernelFiles lists what monogok takes from the kernel package, sorted.
func (b *Builder) kernelFiles(ctx context.Context, cfg *config) ([]string, error) {
	dir, err := b.kernelDir(ctx, cfg)
	if err != nil {
		return nil, err
	}
	files := []string{filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "cmdline.txt"), filepath.Join(dir, "config.txt")}
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			return nil, fmt.Errorf("the kernel package %s is not complete: %w (\"make kernel\" builds it)", cfg.KernelPackage, err)
		}
	}
	err = filepath.WalkDir(filepath.Join(dir, "lib", "modules"), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.Type().IsRegular() {
			files = append(files, path)
		}
		return err
	})
	return files, err
}

func hashFile(h hash.Hash, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	content := sha256.New()
	if _, err := io.Copy(content, f); err != nil {
		return err
	}
	fmt.Fprintf(h, "%s %x\n", path, content.Sum(nil))
	return nil
}
