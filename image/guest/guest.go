// Package guest builds the virtual machine that the demo and the nested tests
// run: an unmodified Debian with a Redis server that writes each change to the
// disk before it acknowledges it, and with Duet's guest agent.
//
// # Place
//
// The demo and the tests call Build, the rest of the project only sees a disk
// image. It imports nothing of ours; it compiles appliance/agent with the Go
// tool.
//
// # How
//
//	mmdebstrap  ->  DIR/guest-base-HASH.tar   packages; HASH of the package list, the
//	                                          initramfs configuration, the apt sources
//	finish.sh   ->  DIR/guest-HASH.img        configuration, agent, ext4; HASH of those too
//
// The packages, the kernel and the initrd are the distribution's; what is ours
// is in recipe/, all of it things that an administrator may set:
//
//	early/      before the packages: an initrd with nothing but the way to the disk
//	overlay/    network by DHCP on a virtio NIC, a volatile journal, the agent's unit
//	masked      systemd units that a server in a virtual machine doesn't need
//	generators  systemd generators, likewise
//	redis.conf  appended to Debian's
//
// The disk is an ext4 file system without a partition table, labelled
// duet-guest. The host name is duet-guest, Redis listens on port 6379, and on
// the serial console root logs in with the password "duet".
package guest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// SizeMiB is the size of the guest's disk in MiB.
const SizeMiB = 900

// ErrUnavailable says that this machine has no means to build the guest: a
// package that isn't installed, or no way to the distribution's mirror. Tests
// skip for it, and for nothing else.
var ErrUnavailable = errors.New("the guest can't be built here")

const (
	suite    = "bookworm"
	agentPkg = "github.com/duet-ft/duet/appliance/agent"
)

// packages are what the guest has beside Debian's essential ones and apt.
var packages = []string{
	"linux-image-cloud-amd64", "lz4", // lz4 packs the initrd
	"systemd-sysv", "udev", "iproute2", "redis-server",
}

//go:embed recipe
var recipe embed.FS

// CacheDir is where images are kept: $DUET_CACHE, or duet in the user's cache
// directory.
func CacheDir() (string, error) {
	if dir := os.Getenv("DUET_CACHE"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", errors.New("neither DUET_CACHE nor HOME is set: no place for the guest's image")
	}
	return filepath.Join(dir, "duet"), nil
}

// Build returns the path of the guest's disk image in cacheDir, building it
// first if it isn't there; an empty cacheDir means CacheDir's. Callers work on a
// copy. log gets a line for each step. The first build downloads about 100 MB of
// packages, as the machine's apt is configured to. Two builds at the same time
// wait for each other.
func Build(ctx context.Context, cacheDir string, log func(line string)) (string, error) {
	return Variant{Name: "guest", MiB: SizeMiB}.Build(ctx, cacheDir, log)
}

// Build is the package's Build for a variant.
func (v Variant) Build(ctx context.Context, cacheDir string, log func(line string)) (string, error) {
	if cacheDir == "" {
		var err error
		if cacheDir, err = CacheDir(); err != nil {
			return "", err
		}
	}
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return "", err
	}
	cacheDir, err := filepath.Abs(cacheDir)
	if err != nil {
		return "", err
	}
	unlock, err := lock(filepath.Join(cacheDir, "guest.lock"), log)
	if err != nil {
		return "", err
	}
	defer unlock()
	// A user namespace's root is somebody else: it can't pass through a home
	// directory, so only root works beside the result.
	parent := cacheDir
	if os.Geteuid() != 0 {
		parent = os.TempDir()
	}
	work, err := os.MkdirTemp(parent, "duet-guest-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(work, 0o755); err != nil {
		return "", err
	}
	b := &builder{Variant: v, dir: cacheDir, work: work, log: log}
	defer b.clean()
	return b.build(ctx)
}

// builder is one call of Build.
type builder struct {
	Variant
	dir, work string
	log       func(string)
	mode      mode
	unpacked  bool // there is a root file system in the work directory
}

func (b *builder) build(ctx context.Context) (string, error) {
	sources, err := aptSources("/")
	if err != nil {
		return "", err
	}
	agent := filepath.Join(b.work, "duet-agent")
	if err := buildAgent(ctx, agent); err != nil {
		return "", err
	}
	binary, err := os.ReadFile(agent)
	if err != nil {
		return "", err
	}
	base, image, err := b.paths(sources, binary)
	if err != nil {
		return "", err
	}
	if exists(image) {
		return image, nil
	}
	if err := missing(); err != nil {
		return "", err
	}
	if b.mode, err = findMode(ctx); err != nil {
		return "", err
	}
	if err := errors.Join(b.unpackRecipe(), b.addFiles()); err != nil {
		return "", err
	}
	if !exists(base) {
		b.log("guest: installing Debian " + suite + " with its kernel and Redis by mmdebstrap (1 to 3 minutes)")
		if err := b.bootstrap(ctx, sources, base); err != nil {
			return "", err
		}
	}
	b.log("guest: making its disk image")
	if err := b.finish(ctx, base, agent, image); err != nil {
		return "", err
	}
	return image, errors.Join(prune(b.dir, b.Name+"-base-*.tar", base), prune(b.dir, b.Name+"-[0-9a-f]*.img", image))
}

// paths derives the cached files' names from all that goes into them.
func (b *builder) paths(sources string, agent []byte) (base, image string, err error) {
	h := sha256.New()
	fmt.Fprintf(h, "%s %q %q\n", suite, packages, sources)
	b.hashPackages(h)
	hashTree := func(match func(string) bool) error {
		return fs.WalkDir(recipe, "recipe", func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !match(p) {
				return err
			}
			data, err := recipe.ReadFile(p)
			fmt.Fprintf(h, "%s %d\n%s", p, len(data), data)
			return err
		})
	}
	early := func(p string) bool { return strings.HasPrefix(p, "recipe/early/") }
	if err := hashTree(early); err != nil {
		return "", "", err
	}
	name := func() string { return hex.EncodeToString(h.Sum(nil)[:8]) }
	base = filepath.Join(b.dir, b.Name+"-base-"+name()+".tar")
	if err := hashTree(func(p string) bool { return !early(p) }); err != nil {
		return "", "", err
	}
	fmt.Fprintf(h, "%d MiB\n%s", b.MiB, agent)
	b.hashFiles(h)
	return base, filepath.Join(b.dir, b.Name+"-"+name()+".img"), nil
}

// unpackRecipe writes the embedded files into the work directory; scripts
// become executable.
func (b *builder) unpackRecipe() error {
	return fs.WalkDir(recipe, "recipe", func(p string, d fs.DirEntry, err error) error {
		to := filepath.Join(b.work, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return errors.Join(os.MkdirAll(to, 0o755), os.Chmod(to, 0o755)) // whatever the umask is
		}
		data, err := recipe.ReadFile(p)
		if err != nil {
			return err
		}
		perm := os.FileMode(0o644)
		if bytes.HasPrefix(data, []byte("#!")) {
			perm = 0o755
		}
		return errors.Join(os.WriteFile(to, data, perm), os.Chmod(to, perm))
	})
}

// bootstrap installs the packages into a tar file.
func (b *builder) bootstrap(ctx context.Context, sources, base string) error {
	tar := filepath.Join(b.work, "base.tar")
	args := []string{
		"--mode=" + b.mode.name, "--variant=minbase", "--include=" + strings.Join(slices.Concat(packages, b.Packages), ","),
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/info/*",
		"--essential-hook=copy-in " + filepath.Join(b.work, "recipe/early/etc") + " " + filepath.Join(b.work, "recipe/early/usr") + " /",
	}
	for _, o := range aptOptions(ctx) {
		args = append(args, "--aptopt="+o)
	}
	args = append(args, b.backportHooks()...)
	args = append(args, suite, tar)
	if sources = b.withBackports(sources); sources != "" {
		list := filepath.Join(b.work, "sources.list")
		if err := os.WriteFile(list, []byte(sources), 0o644); err != nil {
			return err
		}
		args = append(args, list)
	}
	if err := b.run(ctx, nil, "mmdebstrap", args...); err != nil {
		return err
	}
	return move(base, tar)
}

// unpackDir holds the root file system while the image is made.
func (b *builder) unpackDir() string { return filepath.Join(b.work, "unpack") }

// finish turns the base and the recipe into the image.
func (b *builder) finish(ctx context.Context, base, agent, image string) error {
	img := filepath.Join(b.work, "img")
	if err := os.WriteFile(img, nil, 0o644); err != nil {
		return err
	}
	if err := errors.Join(os.Mkdir(b.unpackDir(), 0o755), os.Chmod(agent, 0o755)); err != nil {
		return err
	}
	if err := b.mode.open(b.unpackDir(), img); err != nil {
		return err
	}
	b.unpacked = true
	cmd := append(b.mode.helper(), filepath.Join(b.work, "recipe/finish.sh"),
		filepath.Join(b.unpackDir(), "root"), filepath.Join(b.work, "recipe"), agent, img, fmt.Sprint(b.MiB))
	tar, err := os.Open(base)
	if err != nil {
		return err
	}
	defer tar.Close()
	if err := b.run(ctx, tar, cmd[0], cmd[1:]...); err != nil {
		return err
	}
	if err := os.Chmod(img, 0o644); err != nil {
		return err
	}
	return move(image, img)
}

// clean removes the work directory; files of other users in it need the same
// rights as they took to make.
func (b *builder) clean() {
	if b.unpacked {
		cmd := append(b.mode.helper(), "rm", "-rf", filepath.Join(b.unpackDir(), "root"))
		if err := exec.Command(cmd[0], cmd[1:]...).Run(); err != nil {
			b.log("guest: " + b.unpackDir() + " can't be removed: " + err.Error())
		}
	}
	os.RemoveAll(b.work)
}

// run runs a command quietly. If it fails, its last lines are in the error.
func (b *builder) run(ctx context.Context, stdin *os.File, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	if stdin != nil {
		cmd.Stdin = stdin
	}
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "PATH="+searchPath())
	var tail lastLines
	cmd.Stdout, cmd.Stderr = &tail, &tail
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err = fmt.Errorf("%s: %w: %s", filepath.Base(name), err, tail.String())
		if offline(tail.b) {
			err = fmt.Errorf("%w: no way to the distribution's packages: %w", ErrUnavailable, err)
		}
		return err
	}
	return nil
}

// offline tells from apt's complaints whether it was the way to the packages that
// was missing. A package that there is no more, or a script that fails, is none.
func offline(output []byte) bool {
	for _, complaint := range []string{
		"Could not resolve", "Temporary failure resolving", "Could not connect", "Unable to connect", "Cannot initiate the connection",
		"Connection failed", "Connection timed out", "Connection refused", "Network is unreachable",
	} {
		if bytes.Contains(output, []byte(complaint)) {
			return true
		}
	}
	return false
}

// lastLines keeps the end of a command's output.
type lastLines struct{ b []byte }

// Write implements io.Writer.
func (l *lastLines) Write(p []byte) (int, error) {
	const limit = 2000
	l.b = append(l.b, p...)
	l.b = l.b[max(0, len(l.b)-limit):]
	return len(p), nil
}

// String returns the last three lines that say something, as one.
func (l *lastLines) String() string {
	var lines []string
	s := bufio.NewScanner(bytes.NewReader(l.b))
	for s.Scan() {
		if t := strings.TrimSpace(s.Text()); t != "" {
			lines = append(lines, t)
		}
	}
	return strings.Join(lines[max(0, len(lines)-3):], " | ")
}

// buildAgent compiles the guest agent, the same bytes for the same source.
func buildAgent(ctx context.Context, to string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", to, agentPkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("compile the guest agent: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// lock makes sure that only one build runs in a cache directory.
func lock(path string, log func(string)) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == unix.EWOULDBLOCK {
		log("guest: waiting for another build of it")
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
