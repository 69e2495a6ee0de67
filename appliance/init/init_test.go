package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// sysfs makes a tree as the kernel's, with a disk of three or more partitions.
func sysfs(t *testing.T, partitions int) string {
	t.Helper()
	dir := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	disk := "devices/pci0/nvme/nvme0/nvme0n1/"
	write(disk+"uevent", "MAJOR=259\nMINOR=0\nDEVNAME=nvme0n1\nDEVTYPE=disk\n")
	write(disk+"size", "4194304\n")
	write(disk+"queue/nr_requests", "1\n")
	for i := range partitions {
		n := string(rune('1' + i))
		write(disk+"nvme0n1p"+n+"/uevent", "DEVNAME=nvme0n1p"+n+"\nPARTN="+n+"\n")
		write(disk+"nvme0n1p"+n+"/size", "1933279\n")
		write(disk+"nvme0n1p"+n+"/partition", n+"\n")
	}
	if err := os.MkdirAll(filepath.Join(dir, "dev/block"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"259:2": disk + "nvme0n1p2", "259:0": disk} {
		if err := os.Symlink("../../"+to, filepath.Join(dir, "dev/block", name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFindDisk(t *testing.T) {
	d, err := findDisk(sysfs(t, 4), 259, 2)
	want := hostDisk{"/dev/nvme0n1", 2 << 30, "/dev/nvme0n1p4", 1933279 * 512}
	if d != want || err != nil {
		t.Errorf("%+v, %v", d, err)
	}
	for _, c := range []struct {
		partitions int
		minor      uint32
		want       string
	}{
		{3, 2, "/dev/nvme0n1 has no partition 4"},
		{4, 0, "a disk without partitions"},
		{4, 9, "runs from no disk"},
	} {
		if _, err := findDisk(sysfs(t, c.partitions), 259, c.minor); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	var said []string
	say := func(line string) { said = append(said, line) }
	name := identity(dir, say)
	if !regexp.MustCompile(`^duet-[0-9a-f]{6}$`).MatchString(name) || len(said) != 2 {
		t.Errorf("name %q, said %q", name, said)
	}
	password, err := os.ReadFile(filepath.Join(dir, passwordFile))
	if err != nil || said[0] != "web page: user gokrazy, password "+strings.TrimSpace(string(password)) || len(password) != 17 {
		t.Errorf("password %q, %v; said %q", password, err, said[0])
	}
	machine, err := os.ReadFile(filepath.Join(dir, machineFile))
	if err != nil || !regexp.MustCompile(`^[0-9a-f]{32}\n$`).Match(machine) {
		t.Errorf("machine ID %q, %v", machine, err)
	}
	if other := identity(t.TempDir(), func(string) {}); other == name {
		t.Error("two hosts have one name")
	}

	said = nil
	if again := identity(dir, say); again != name || len(said) != 0 {
		t.Errorf("at the second boot: %q, said %q", again, said)
	}
	for name, old := range map[string][]byte{passwordFile: password, machineFile: machine} {
		if now, err := os.ReadFile(filepath.Join(dir, name)); string(now) != string(old) || err != nil {
			t.Errorf("at the second boot %s is %q, %v", name, now, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "duet/host.json"), []byte(`{"name": "b"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if name := identity(dir, say); name != "b" {
		t.Errorf("name %q, but host.json says b", name)
	}

	// A damaged key isn't replaced, and keeps nothing else from working.
	key := filepath.Join(dir, "duet/host.key")
	if err := os.WriteFile(key, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if name := identity(dir, say); name != "b" || len(said) != 1 || !strings.HasPrefix(said[0], "no key: ") {
		t.Errorf("name %q, said %q", name, said)
	}
	if b, err := os.ReadFile(key); string(b) != "damaged" || err != nil {
		t.Errorf("the damaged key is now %q, %v", b, err)
	}
}

// TestConfig checks what this init doesn't do: a package's flags and environment in config.json would have no effect.
func TestConfig(t *testing.T) {
	b, err := os.ReadFile("../../config.json")
	if err != nil {
		t.Fatal(err)
	}
	var cfg struct {
		InternalCompatibilityFlags struct{ InitPkg string }
		PackageConfig              map[string]map[string]any
	}
	if err := json.Unmarshal(b, &cfg); err != nil {
		t.Fatal(err)
	}
	if cfg.InternalCompatibilityFlags.InitPkg != "github.com/duet-ft/duet/appliance/init" {
		t.Errorf("config.json has %q as its init", cfg.InternalCompatibilityFlags.InitPkg)
	}
	for pkg, settings := range cfg.PackageConfig {
		for key := range settings {
			if slices.Contains([]string{"CommandLineFlags", "Environment", "DontStart", "WaitForClock", "Basename"}, key) {
				t.Errorf("%s of %s has no effect with our init", key, pkg)
			}
		}
	}
}
