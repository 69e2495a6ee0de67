package sparse

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestCopy(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	content := make([]byte, 20*piece+100) // zeros at both ends
	copy(content[3*piece-1:], "across two pieces")
	copy(content[10*piece:], "one")
	if err := os.WriteFile(from, content, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Copy(to, from, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(to)
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("the copy differs, %v", err)
	}
	info, err := os.Stat(to)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("permissions %v", info.Mode())
	}
	if used := info.Sys().(*syscall.Stat_t).Blocks * 512; used > 4*piece {
		t.Errorf("%d bytes are used for 3 pieces of %d", used, piece)
	}
}

func TestCopyLeavesNothingHalf(t *testing.T) {
	dir := t.TempDir()
	to := filepath.Join(dir, "to")
	if err := Copy(to, filepath.Join(dir, "none"), 0o600); err == nil {
		t.Error("a missing file was copied")
	}
	if err := Copy(to, dir, 0o600); err == nil {
		t.Error("a directory was copied")
	}
	if _, err := os.Stat(to); !os.IsNotExist(err) {
		t.Errorf("something is left: %v", err)
	}
}
