// Package disk makes the host's disk image: it runs monogok (gokrazy's packer for one Go module), keeps the result in
// a cache under a hash of everything that went in, keeps kernel and command line beside it for direct kernel boots, and
// makes copies whose /perm holds given files.
//
// Used by image (main), image/lab and image/boottest. Imports nothing of ours.
//
// Layout of the image (gokrazy's, GPT with a hybrid MBR, 512-byte sectors):
//
//	LBA       0  protective MBR, then the GPT
//	       8192  EFI system partition, FAT32, 100 MiB: systemd-boot, vmlinuz, cmdline.txt
//	     212992  root A, squashfs, 500 MiB
//	    1236992  root B, 500 MiB, empty
//	    2260992  /perm, the rest: zeroes, which the host's first boot makes an ext4 file system of (appliance/init)
//
// Equal sources make equal images, wherever they lie: the paths of files are left out, and times are fixed after the
// packer. What the building machine gives is its CA certificates and its time zone (/etc/ssl/certs, /etc/localtime). The
// image has no identity and no secret.
//
// The cache directory:
//
//	images/<hash>/{disk.img,vmlinuz,cmdline.txt}       one built image
//	lock                                               held while building
package disk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// DefaultSize is the size of an image file in bytes, which leaves some 900 MiB to /perm. A larger disk is
	// fine: the rest of it stays unused.
	DefaultSize = 2 << 30
	// keepImages is how many built images stay in the cache.
	keepImages = 3
	// logTail is how much of the packer's output an error shows, in lines.
	logTail = 15
)

// Builder makes images. Root is needed, the rest has defaults.
type Builder struct {
	// Root is the directory of go.mod and config.json.
	Root string
	// Cache is where images are kept; empty means .cache/image in Root.
	Cache string
	// Log receives the packer's output; nil means none.
	Log io.Writer
}

// Image is a built disk image. Its files belong to the cache: boot copies of it, made by [Image.Copy].
type Image struct {
	// Path is the disk image itself, a sparse file of DefaultSize bytes.
	Path string
	// Kernel is the kernel (bzImage) and Cmdline its command line, for a direct boot without firmware.
	Kernel  string
	Cmdline string
	// Hostname is the name that config.json gives the hosts.
	Hostname string
	// Packages are the import paths of the programs that gokrazy supervises.
	Packages []string
	// Cached tells that nothing had to be built.
	Cached bool
}

// config is what is needed of gokrazy's config.json.
type config struct {
	Hostname        string
	Packages        []string
	GokrazyPackages []string
	KernelPackage   string
	SerialConsole   string
	Environment     []string

	InternalCompatibilityFlags struct{ InitPkg string }
}

// NewBuilder finds the module that the directory dir lies in.
func NewBuilder(dir string) (*Builder, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "config.json")); err == nil {
			if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
				return &Builder{Root: d}, nil
			}
		}
		if d == filepath.Dir(d) {
			return nil, fmt.Errorf("no config.json with a go.mod beside it in %s or above: run this inside the project", dir)
		}
	}
}

func (b *Builder) cache() string {
	if b.Cache != "" {
		return b.Cache
	}
	return filepath.Join(b.Root, ".cache", "image")
}

// Build returns the image of the present sources, from the cache if it is there, else packed anew.
func (b *Builder) Build(ctx context.Context) (*Image, error) {
	cfg, err := b.readConfig()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(b.cache(), 0o755); err != nil {
		return nil, err
	}
	unlock, err := lock(filepath.Join(b.cache(), "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()

	hash, err := b.hash(ctx, cfg)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(b.cache(), "images", hash)
	img := &Image{
		Path: filepath.Join(dir, "disk.img"), Kernel: filepath.Join(dir, "vmlinuz"),
		Hostname: cfg.Hostname,
		Packages: append(append([]string{}, cfg.GokrazyPackages...), cfg.Packages...),
	}
	if _, err := os.Stat(dir); err == nil {
		img.Cached = true
	} else if err := b.pack(ctx, cfg, dir); err != nil {
		return nil, err
	}
	line, err := os.ReadFile(filepath.Join(dir, "cmdline.txt"))
	if err != nil {
		return nil, err
	}
	img.Cmdline = strings.TrimSpace(string(line))
	return img, b.prune(dir)
}

func (b *Builder) readConfig() (*config, error) {
	path := filepath.Join(b.Root, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var cfg config
	if err := json.Unmarshal(data, &cfg); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if cfg.Hostname == "" || cfg.KernelPackage == "" || cfg.InternalCompatibilityFlags.InitPkg == "" {
		return nil, fmt.Errorf("%s: Hostname, KernelPackage and InitPkg must be set", path)
	}
	return &cfg, nil
}

// pack builds the image into dir, which appears only when it is complete.
func (b *Builder) pack(ctx context.Context, cfg *config, dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "building-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	path := filepath.Join(tmp, "disk.img")
	scratch := filepath.Join(tmp, "scratch")
	if err := os.Mkdir(scratch, 0o700); err != nil {
		return err
	}
	if err := b.runMonogok(ctx, path, scratch); err != nil {
		return err
	}
	if err := os.RemoveAll(scratch); err != nil {
		return err
	}
	if err := fixTimes(path); err != nil {
		return err
	}
	kernelDir, err := b.kernelDir(ctx, cfg)
	if err != nil {
		return err
	}
	if err := keepBoot(path, kernelDir, cfg.SerialConsole, tmp); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

// runMonogok writes the image to path. scratch is for what it leaves behind (the init that it made).
func (b *Builder) runMonogok(ctx context.Context, path, scratch string) error {
	env, err := b.packerEnv(ctx, scratch)
	if err != nil {
		return err
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	// These paths get into the image's list of packages (sbom.json), the second one by a hash: they are the same for all.
	cmd := exec.CommandContext(ctx, "go", "tool", "monogok", "overwrite",
		"--config", "/proc/self/cwd/config.json",
		"--full", "/proc/self/fd/3", "--target_storage_bytes", fmt.Sprint(DefaultSize))
	cmd.ExtraFiles = []*os.File{file}
	cmd.Dir, cmd.Env = b.Root, append(env, "TMPDIR="+scratch)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if b.Log != nil {
		cmd.Stdout, cmd.Stderr = b.Log, io.MultiWriter(b.Log, &out)
	}
	if err := cmd.Run(); err != nil {
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		return fmt.Errorf("monogok: %w\n%s", err, strings.Join(lines[max(0, len(lines)-logTail):], "\n"))
	}
	return file.Close()
}

// packerEnv keeps the user's own gokrazy settings away, but Go's where they are, and the paths of sources and what git
// says of them out of the programs.
func (b *Builder) packerEnv(ctx context.Context, scratch string) ([]string, error) {
	out, err := goCommand(ctx, b.Root, nil, "env", "-json", "GOENV", "GOFLAGS")
	if err != nil {
		return nil, err
	}
	var goenv struct{ GOENV, GOFLAGS string }
	if err := json.Unmarshal(out, &goenv); err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	return append(os.Environ(), "XDG_CONFIG_HOME="+scratch, "GOENV="+goenv.GOENV,
		"GOFLAGS="+strings.TrimSpace(goenv.GOFLAGS+" -trimpath -buildvcs=false")), nil
}

// prune removes the oldest images but keeps dir.
func (b *Builder) prune(dir string) error {
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil {
		return err
	}
	type aged struct {
		path string
		time int64
	}
	var old []aged
	for _, e := range entries {
		info, err := e.Info()
		path := filepath.Join(filepath.Dir(dir), e.Name())
		if err != nil || path == dir {
			continue
		}
		old = append(old, aged{path, info.ModTime().UnixNano()})
	}
	sort.Slice(old, func(i, j int) bool { return old[i].time > old[j].time })
	for i, o := range old {
		if i >= keepImages-1 {
			if err := os.RemoveAll(o.path); err != nil {
				return err
			}
		}
	}
	return nil
}

// lock takes an exclusive lock on the file at path, waiting for whoever holds it.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// goCommand runs the go command in dir and returns what it prints.
func goCommand(ctx context.Context, dir string, env []string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil, fmt.Errorf("go %s: %s", strings.Join(args, " "), strings.TrimSpace(string(exit.Stderr)))
	}
	return out, err
}
