package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// pattern fills n bytes that differ from block to block.
func pattern(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// tree makes the files that every image holds.
func tree(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"boot", "many", "usr/lib"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("boot/large", pattern(3<<20+123, 1))
	put("boot/empty", nil)
	put("boot/small", []byte("small\n"))
	for i := range 600 {
		put(fmt.Sprintf("many/a-rather-long-file-name-so-that-the-directory-grows-%03d", i), []byte{byte(i), byte(i >> 8)})
	}
	sparse := filepath.Join(dir, "boot/sparse")
	put("boot/sparse", []byte("head"))
	f, err := os.OpenFile(sparse, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("tail"), 300<<10); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{
		"vmlinuz":      "boot/large",
		"boot/up":      "../boot/./small",
		"boot/abs":     "/lib/../../boot/small",
		"lib":          "usr/lib",
		"boot/loop":    "loop",
		"boot/dangles": "nowhere",
		"boot/long":    strings.Repeat("./", 60) + "small",
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// mkfs makes an image of the given size from a directory.
func mkfs(t testing.TB, dir, size string, args ...string) []byte {
	t.Helper()
	mke2fs, err := exec.LookPath("mke2fs")
	if err != nil {
		if mke2fs, err = exec.LookPath("/sbin/mke2fs"); err != nil {
			t.Skip("e2fsprogs isn't installed")
		}
	}
	img := filepath.Join(t.TempDir(), "img")
	args = append(args, "-q", "-F", "-U", "01234567-89ab-cdef-0123-456789abcdef", "-d", dir, img, size)
	if out, err := exec.Command(mke2fs, args...).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs %v: %v\n%s", args, err, out)
	}
	b, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func open(t *testing.T, b []byte) *FS {
	t.Helper()
	f, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestReadsWhatMke2fsWrote(t *testing.T) {
	dir := tree(t)
	for _, args := range []string{
		"-t ext4", "-t ext4 -b 1024", "-t ext4 -b 2048 -O ^metadata_csum,^64bit", "-t ext4 -O meta_bg,^resize_inode -b 1024",
		"-t ext3", "-t ext2 -b 1024", "-t ext4 -I 128", "-t ext4 -O bigalloc", "-t ext4 -O ^flex_bg,^has_journal,large_dir",
	} {
		t.Run(args, func(t *testing.T) {
			f := open(t, mkfs(t, dir, "64m", strings.Fields(args)...))
			if got := f.UUID(); got != "01234567-89ab-cdef-0123-456789abcdef" {
				t.Errorf("UUID %s", got)
			}
			large, sparse := pattern(3<<20+123, 1), make([]byte, 300<<10+4)
			copy(sparse, "head")
			copy(sparse[300<<10:], "tail")
			for name, want := range map[string][]byte{
				"/boot/large": large, "vmlinuz": large, "/boot/empty": {}, "/boot/sparse": sparse,
				"/boot/up": []byte("small\n"), "/boot/abs": []byte("small\n"), "/boot/long": []byte("small\n"),
				"/many/a-rather-long-file-name-so-that-the-directory-grows-599": {599 & 255, 599 >> 8},
			} {
				got, err := f.ReadFile(name, 4<<20)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %d bytes, want %d; %v", name, len(got), len(want), err)
				}
			}
			list, err := f.ReadDir("/many")
			if err != nil || len(list) != 602 {
				t.Errorf("%d entries, want 602; %v", len(list), err)
			}
			if target, err := f.Readlink("/boot/abs"); target != "/lib/../../boot/small" || err != nil {
				t.Errorf("link to %q, %v", target, err)
			}
		})
	}
}

func TestPathsThatLeadNowhere(t *testing.T) {
	f := open(t, mkfs(t, tree(t), "16m", "-t", "ext4"))
	for _, name := range []string{"/nothing", "/boot/loop", "/boot/dangles", "/boot/small/x", "/boot", strings.Repeat("/boot/..", 200) + "/boot/small"} {
		if _, err := f.ReadFile(name, 1<<20); !errors.Is(err, ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := f.ReadFile("/boot/large", 3<<20); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a file above the limit: %v", err)
	}
	if f.Exists("/boot/dangles") || !f.Exists("/lib") {
		t.Error("Exists doesn't follow links")
	}
	if _, err := f.Readlink("/boot/small"); !errors.Is(err, ErrNotExist) {
		t.Errorf("a file read as a link: %v", err)
	}
}

func TestDamageIsFound(t *testing.T) {
	dir := tree(t)
	good := mkfs(t, dir, "16m", "-t", "ext4")
	if _, err := Open(bytes.NewReader(make([]byte, 1<<20)), 1<<20); !errors.Is(err, ErrNone) {
		t.Errorf("zeros: %v", err)
	}
	if _, err := Open(bytes.NewReader(good), int64(len(good))/2); !errors.Is(err, ErrDamaged) {
		t.Errorf("a disk cut in half: %v", err)
	}
	b := bytes.Clone(good)
	b[1024+0x10]++
	if _, err := Open(bytes.NewReader(b), int64(len(b))); !errors.Is(err, ErrDamaged) {
		t.Errorf("a superblock with one wrong byte: %v", err)
	}
	b = bytes.Clone(good)
	clear(b[4096 : 256<<10]) // group descriptors and inodes
	if _, err := open(t, b).ReadFile("/boot/small", 100); !errors.Is(err, ErrDamaged) {
		t.Errorf("no inodes: %v", err)
	}
	inline := mkfs(t, dir, "16m", "-t", "ext4", "-O", "inline_data")
	if _, err := open(t, inline).ReadFile("/boot/small", 100); !errors.Is(err, ErrUnsupported) {
		t.Errorf("inline data: %v", err)
	}
}

func TestHasSuper(t *testing.T) {
	var got []uint32
	for g := range uint32(130) {
		if hasSuper(g) {
			got = append(got, g)
		}
	}
	if want := []uint32{0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// patched reads a small image with some bytes replaced.
type patched struct {
	base, patch []byte
}

func (p patched) ReadAt(b []byte, at int64) (int, error) {
	n, err := bytes.NewReader(p.base).ReadAt(b, at)
	// Each eight bytes of the patch are a place and what to put there.
	for q := p.patch; len(q) >= 8; q = q[8:] {
		o := int64(le.Uint32(q)) % int64(len(p.base))
		for k := range int64(4) {
			if i := o + k - at; i >= 0 && i < int64(n) {
				b[i] = q[4+k]
			}
		}
	}
	return n, err
}

// FuzzFS changes bytes of a file system without checksums; nothing may panic,
// hang, or take more memory than the file system has bytes.
func FuzzFS(f *testing.F) {
	dir := f.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "boot"), 0o755); err != nil {
		f.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "boot/k"), pattern(9000, 2), 0o644); err != nil {
		f.Fatal(err)
	}
	if err := os.Symlink("boot/k", filepath.Join(dir, "k")); err != nil {
		f.Fatal(err)
	}
	bases := [][]byte{
		mkfs(f, dir, "256k", "-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^has_journal"),
		mkfs(f, dir, "256k", "-t", "ext2", "-b", "1024"),
	}
	f.Add(uint8(0), []byte{})
	f.Add(uint8(1), []byte{0x18, 4, 0, 0, 2, 0, 0, 0})
	f.Add(uint8(0), []byte{0x20, 4, 0, 0, 0xff, 0xff, 0, 0, 0, 8, 0, 0, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, which uint8, patch []byte) {
		base := bases[int(which)%len(bases)]
		var r io.ReaderAt = patched{base, patch[:min(len(patch), 256)]}
		fs, err := Open(r, int64(len(base)))
		if err != nil {
			return
		}
		for _, name := range []string{"/k", "/boot/k", "/lost+found"} {
			b, err := fs.ReadFile(name, 1<<30)
			if err == nil && len(b) > len(base) {
				t.Fatalf("%d bytes from a disk of %d", len(b), len(base))
			}
			fs.ReadDir(name)
			fs.Readlink(name)
		}
	})
}
