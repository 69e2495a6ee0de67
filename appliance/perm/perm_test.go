package perm

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "make template.gz anew")

// TestTemplate makes the file system again as template.gz was made, and compares.
func TestTemplate(t *testing.T) {
	tool, err := exec.LookPath("mke2fs")
	if err != nil {
		t.Skip("mke2fs is missing: install e2fsprogs")
	}
	path := filepath.Join(t.TempDir(), "perm")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, MinSize); err != nil {
		t.Fatal(err)
	}
	// All features are named, and the configuration is empty: the result doesn't depend on the distribution.
	cmd := exec.Command(tool, "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-L", "perm",
		"-J", "size=16", "-U", "64756574-0000-4000-8000-7065726d0000",
		"-O", "has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,metadata_csum,metadata_csum_seed,"+
			"sparse_super,large_file,huge_file,dir_nlink,extra_isize",
		"-E", "hash_seed=64756574-0000-4000-8000-7065726d0001,lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0",
		path)
	cmd.Env = append(os.Environ(), "MKE2FS_CONFIG=/dev/null", "E2FSPROGS_FAKE_TIME=1767225600")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v\n%s", err, out)
	}
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("template.gz", pack(t, image), 0o644); err != nil {
			t.Fatal(err)
		}
		template = pack(t, image)
	}
	blocks, err := unpack(template)
	if err != nil {
		t.Fatal(err)
	}
	for i := range templateBlocks {
		want := image[i*blockSize:][:blockSize]
		got, ok := blocks[uint32(i)]
		if !ok {
			got = make([]byte, blockSize)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("block %d of template.gz isn't what mke2fs makes; if its version makes the difference, run this with -update", i)
		}
	}
}

func pack(t *testing.T, image []byte) []byte {
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	for i := range templateBlocks {
		b := image[i*blockSize:][:blockSize]
		if bytes.Equal(b, make([]byte, blockSize)) {
			continue
		}
		if _, err := z.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(i)), b...)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// medium is a partition in memory that loses power after some written sectors: what was written since the last Sync
// may be there or not.
type medium struct {
	data  []byte
	left  int // sectors that still can be written; negative: no limit
	wrote int
}

var errCut = errors.New("power cut")

func (m *medium) WriteAt(b []byte, off int64) (int, error) {
	for i := 0; i < len(b); i += markSize {
		if m.left == 0 {
			return i, errCut
		}
		m.left--
		m.wrote++
		copy(m.data[off+int64(i):], b[i:min(i+markSize, len(b))])
	}
	return len(b), nil
}

func (m *medium) Sync() error { return nil }

var testID = Identity{UUID: [16]byte{1, 2, 3, 15: 9}, HashSeed: [16]byte{4, 5}}

// TestFormat has e2fsck judge a file system that was made over garbage, as after an unfinished try.
func TestFormat(t *testing.T) {
	m := &medium{data: bytes.Repeat([]byte{0xa5}, MinSize), left: -1}
	if err := Format(m, testID); err != nil {
		t.Fatal(err)
	}
	if s, err := Look(bytes.NewReader(m.data), MinSize); s != Ext4 || err != nil {
		t.Errorf("the result is %v, %v", s, err)
	}
	if n := Blocks(m.data[:4096]); n != templateBlocks {
		t.Errorf("%d blocks, want %d", n, templateBlocks)
	}
	path := filepath.Join(t.TempDir(), "perm")
	if err := os.WriteFile(path, m.data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("e2fsck"); err != nil {
		t.Skip("e2fsck is missing: install e2fsprogs")
	}
	if out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	out, err := exec.Command("dumpe2fs", "-h", path).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "01020300-0000-4000-8000-000000000009") {
		t.Errorf("dumpe2fs: %v\n%s", err, out)
	}
}

// TestFormatCut cuts the power after every sector of the beginning and the end, and after some in between.
func TestFormatCut(t *testing.T) {
	whole := &medium{data: make([]byte, MinSize), left: -1}
	if err := Format(whole, testID); err != nil {
		t.Fatal(err)
	}
	m := &medium{data: make([]byte, MinSize)}
	seen := map[State]int{}
	try := func(cut int) {
		m.left = cut
		if err := Format(m, testID); (err == nil) != (cut >= whole.wrote) {
			t.Fatalf("cut after %d sectors: %v", cut, err)
		}
		s, err := Look(bytes.NewReader(m.data), MinSize)
		seen[s]++
		switch {
		case err != nil || s == Foreign:
			t.Fatalf("after a cut at %d of %d sectors: state %d, %v", cut, whole.wrote, s, err)
		case s == Ext4 && !bytes.Equal(m.data, whole.data):
			t.Fatalf("after a cut at %d of %d sectors: called a file system, and isn't", cut, whole.wrote)
		}
		clear(m.data[:1<<20])
	}
	for i := range 24 {
		try(i)
		try(i * whole.wrote / 24)
		try(whole.wrote - i)
	}
	if seen[Unfinished] < 60 || seen[Ext4] != 1 || seen[Blank] != 2 {
		t.Errorf("states after the cuts: %v", seen)
	}
}

// TestLook expects that nothing which may be somebody's data counts as empty.
func TestLook(t *testing.T) {
	for name, c := range map[string]struct {
		at   int
		data string
		want State
	}{
		"empty":                 {0, "", Blank},
		"ext4":                  {magicAt, "\x53\xef", Ext4},
		"unfinished":            {0, mark, Unfinished},
		"xfs":                   {0, "XFSB", Foreign},
		"btrfs":                 {0x10040, "_BHRfS_M", Foreign},
		"a byte at 16 MiB less": {16<<20 - 1, "x", Foreign},
		"beyond what counts":    {16 << 20, "x", Blank},
	} {
		data := make([]byte, MinSize)
		copy(data[c.at:], c.data)
		if got, err := Look(bytes.NewReader(data), MinSize); got != c.want || err != nil {
			t.Errorf("%s: %d, %v", name, got, err)
		}
	}
	if _, err := Look(bytes.NewReader(nil), MinSize-1); err == nil || !strings.Contains(err.Error(), "63 MiB: /perm needs 64") {
		t.Errorf("a small partition: %v", err)
	}
}
