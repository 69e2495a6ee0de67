package disk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs"
	"github.com/diskfs/go-diskfs/partition/gpt"
)

func TestDirectCmdline(t *testing.T) {
	got, err := directCmdline("root=/dev/sda2 ro init=/gokrazy/init\n", "ttyS0,115200", "60C24CC1-F3F9-427A-8199-000000000001")
	if err != nil {
		t.Fatal(err)
	}
	want := "console=tty1 console=ttyS0,115200 root=PARTUUID=60c24cc1-f3f9-427a-8199-000000000001/PARTNROFF=1 ro init=/gokrazy/init"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if _, err := directCmdline("root=/dev/vda2 ro", "", "x"); err == nil {
		t.Error("a command line whose root the packer can't replace was accepted")
	}
}

// fakeImage makes a small sparse image with the partition table of a host's disk.
func fakeImage(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	d, err := diskfs.Create(path, 64<<20, diskfs.SectorSize512)
	if err != nil {
		t.Fatal(err)
	}
	table := &gpt.Table{LogicalSectorSize: 512, PhysicalSectorSize: 512, ProtectiveMBR: true}
	for i := range uint64(4) {
		table.Partitions = append(table.Partitions, &gpt.Partition{
			Index: int(i + 1), Start: 2048 + i*16384, End: 2048 + i*16384 + 16383, Type: gpt.LinuxFilesystem, Name: "p",
		})
	}
	if err := d.Partition(table); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCopyFillsPerm(t *testing.T) {
	for _, tool := range []string{"mke2fs", "debugfs", "e2fsck"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is missing: install e2fsprogs", tool)
		}
	}
	img := &Image{Path: fakeImage(t)}
	path := filepath.Join(t.TempDir(), "a.img")
	if err := img.Copy(context.Background(), path, map[string][]byte{"duet/host.json": []byte(`{"name": "a"}`)}); err != nil {
		t.Fatal(err)
	}
	p, err := partition(path, permPartition)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	perm := filepath.Join(t.TempDir(), "perm.img")
	if err := os.WriteFile(perm, data[p.start:p.start+p.size], 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("e2fsck", "-fn", perm).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	out, err := exec.Command("debugfs", "-R", "cat /duet/host.json", perm).Output()
	if err != nil || string(out) != `{"name": "a"}` {
		t.Errorf("host.json on /perm: %q, %v", out, err)
	}
	// What lies outside of /perm must be the image's own bytes.
	orig, err := os.ReadFile(img.Path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(orig[:p.start], data[:p.start]) || !bytes.Equal(orig[p.start+p.size:], data[p.start+p.size:]) {
		t.Error("bytes outside of /perm have changed")
	}
}

func TestCopyRefusesPathsOutside(t *testing.T) {
	img := &Image{Path: fakeImage(t)}
	err := img.Copy(context.Background(), filepath.Join(t.TempDir(), "a.img"), map[string][]byte{"../x": nil})
	if err == nil || !strings.Contains(err.Error(), "not a path below /perm") {
		t.Errorf("error %v", err)
	}
}

func TestNewBuilderOutside(t *testing.T) {
	if _, err := NewBuilder(t.TempDir()); err == nil || !strings.Contains(err.Error(), "run this inside the project") {
		t.Errorf("error %v", err)
	}
}

// TestHash checks, on a small copy of the module, that what goes into an image changes its hash, and nothing else does.
func TestHash(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped with -short: runs the go command")
	}
	project, err := NewBuilder(".")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(project.Root, name))
		if err != nil {
			t.Fatal(err)
		}
		write(name, string(b))
	}
	const module = "github.com/duet-ft/duet"
	write("config.json", `{"Hostname": "x", "Packages": ["`+module+`/p"], "KernelPackage": "`+module+`/k", "InternalCompatibilityFlags": {"InitPkg": "`+module+`/p"}}`)
	write("p/main.go", "package main\n\nfunc main() {}\n")
	for name, content := range map[string]string{"k.go": "package k\n", "vmlinuz": "k", "cmdline.txt": "", "config.txt": ""} {
		write("k/"+name, content)
	}

	b := &Builder{Root: root}
	hash := func() string {
		t.Helper()
		cfg, err := b.readConfig()
		if err != nil {
			t.Fatal(err)
		}
		h, err := b.hash(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	last := hash()
	write("q/main.go", "package main\n\nfunc main() {}\n")
	write("p/main_test.go", "package main\n")
	if h := hash(); h != last {
		t.Error("a file that is not in the image changes the hash")
	}
	for _, change := range []struct {
		name string
		do   func()
	}{
		{"source", func() { write("p/main.go", "package main\n\nfunc main() { println() }\n") }},
		{"kernel", func() { write("k/vmlinuz", "k2") }},
		{"kernel module", func() { write("k/lib/modules/x.ko", "m") }},
		{"command line", func() { write("k/cmdline.txt", "ro") }},
		{"configuration", func() {
			write("config.json", `{"Hostname": "y", "Packages": ["`+module+`/p"], "KernelPackage": "`+module+`/k", "InternalCompatibilityFlags": {"InitPkg": "`+module+`/p"}}`)
		}},
	} {
		change.do()
		h := hash()
		if h == last {
			t.Errorf("%s: the hash stays although the image changes", change.name)
		}
		last = h
	}
}

// TestReproducible packs the image from a copy of the sources elsewhere, at another time, and expects the same bytes.
func TestReproducible(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped with -short: packs an image")
	}
	here, err := NewBuilder(".")
	if err != nil {
		t.Fatal(err)
	}
	there := &Builder{Root: filepath.Join(t.TempDir(), "elsewhere")}
	copySources(t, there.Root, here.Root)
	sums := map[*Builder][sha256.Size]byte{}
	for _, b := range []*Builder{here, there} {
		img, err := b.Build(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(img.Path)
		if err != nil {
			t.Fatal(err)
		}
		sums[b] = sha256.Sum256(data)
		for _, secret := range []string{here.Root, there.Root} {
			if bytes.Contains(data, []byte(secret)) {
				t.Errorf("the image says where its sources were: %s", secret)
			}
		}
	}
	checkParts(t, here)
	if sums[here] != sums[there] {
		t.Errorf("two images of the same sources differ: %x, %x", sums[here], sums[there])
	}
}

// checkParts looks at what an update takes from the image.
func checkParts(t *testing.T, b *Builder) {
	t.Helper()
	img, err := b.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p, err := img.Parts()
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := os.ReadFile(img.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case !bytes.Contains(p.Boot, kernel) || !bytes.Contains(p.Boot, []byte("root=PARTUUID=")) || len(p.Boot)%unit != 0:
		t.Errorf("%d bytes of boot file system without kernel or command line", len(p.Boot))
	case string(p.Root[:4]) != "hsqs" || len(p.Root)%unit != 0 || string(p.MBR[510:]) != "\x55\xaa":
		t.Errorf("%d bytes of root file system, %d of MBR", len(p.Root), len(p.MBR))
	case !json.Valid(p.SBOM) || !bytes.Contains(p.SBOM, []byte(`"/user/hvd"`)):
		t.Errorf("sbom.json: %.200s", p.SBOM)
	}
}

// copySources copies what is in the module, but no hidden directory.
func copySources(t *testing.T, to, from string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		switch {
		case err != nil:
			return err
		case d.IsDir() && strings.HasPrefix(d.Name(), ".") && rel != ".":
			return filepath.SkipDir
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		case !d.Type().IsRegular():
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), content, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}
