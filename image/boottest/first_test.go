package boottest

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/duet-ft/duet/appliance/perm"
	"github.com/duet-ft/duet/image/disk"
	"github.com/duet-ft/duet/image/flash"
	"github.com/duet-ft/duet/image/lab"
)

// waitConsole waits for a line of the present boot on the host's console, and returns the first group of re.
func waitConsole(t *testing.T, h *lab.Host, re string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	r := regexp.MustCompile(re)
	line, err := h.Machine().Wait(ctx, r, 0)
	if err != nil {
		t.Fatal(err)
	}
	if m := r.FindStringSubmatch(line); len(m) > 1 {
		return m[1]
	}
	return line
}

// table is what the partition table of a host's disk says of /perm.
func table(t *testing.T, h *lab.Host) perm.Plan {
	t.Helper()
	f, err := os.Open(h.Disk())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	start, end := make([]byte, perm.TableSize), make([]byte, perm.BackupSize)
	if _, err := f.ReadAt(start, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(end, info.Size()-perm.BackupSize); err != nil {
		t.Fatal(err)
	}
	p, err := perm.Grow(start, end, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// copyPerm copies /perm of a host that is off to a file of its own, without what the disk's file has holes for.
func copyPerm(t *testing.T, h *lab.Host) string {
	t.Helper()
	p := table(t, h)
	from, err := os.Open(h.Disk())
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := os.Create(filepath.Join(t.TempDir(), "perm"))
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if err := to.Truncate(p.Size); err != nil {
		t.Fatal(err)
	}
	for at := p.Start; ; {
		data, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || data >= p.Start+p.Size {
			return to.Name()
		}
		if err != nil {
			t.Fatal(err)
		}
		if at, err = unix.Seek(int(from.Fd()), data, unix.SEEK_HOLE); err != nil {
			t.Fatal(err)
		}
		at = min(at, p.Start+p.Size)
		if _, err := io.Copy(io.NewOffsetWriter(to, data-p.Start), io.NewSectionReader(from, data, at-data)); err != nil {
			t.Fatal(err)
		}
	}
}

// ext4 runs a program of e2fsprogs.
func ext4(t *testing.T, tool string, args ...string) string {
	t.Helper()
	out, err := exec.Command(tool, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", tool, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestFirstBoot boots a flashed disk that is larger than the image: by firmware, then again. The host must make its /perm
// and its identity once, and use the whole disk from the second boot on.
func TestFirstBoot(t *testing.T) {
	l := start(t)
	const size = 80 << 30 // beyond what the file system that /perm is a copy of was prepared for
	h := boot(t, l, lab.HostConfig{Name: "first", Number: 16, UEFI: true, Flashed: size})
	waitConsole(t, h, `duet: made the file system of /perm on /dev/vda4`)
	waitConsole(t, h, `duet: /perm has grown to 94\d MiB`)
	l.Password = waitConsole(t, h, `duet: web page: user gokrazy, password ([a-z2-7]{16})$`)
	key := waitConsole(t, h, `duet: new host key ([0-9a-f]{64})$`)
	name := waitConsole(t, h, `duet: host (duet-[0-9a-f]{6}), Duet `)
	waitPage(t, h)
	if err := h.Kill(); err != nil {
		t.Fatal(err)
	}
	if p := table(t, h); len(p.Writes) != 0 || p.Start+p.Size < size-1<<20 {
		t.Errorf("after the first boot: %+v", p)
	}

	if err := h.Boot(); err != nil {
		t.Fatal(err)
	}
	waitConsole(t, h, `duet: /perm has grown to 80\d{3} MiB`)
	waitConsole(t, h, `duet: host `+name+`, Duet `)
	waitPage(t, h)
	for _, once := range []string{"made the file system", "new host key", "password"} {
		if line := h.Machine().Console().Find(regexp.MustCompile("duet: .*" + once)); line != "" {
			t.Errorf("at the second boot: %s", line)
		}
	}
	if err := h.Kill(); err != nil {
		t.Fatal(err)
	}
	fs := copyPerm(t, h)
	ext4(t, "e2fsck", "-y", "-E", "journal_only", fs)
	ext4(t, "e2fsck", "-fn", fs)
	if out := ext4(t, "debugfs", "-R", "cat /gokr-pw.txt", fs); !strings.Contains(out, l.Password) {
		t.Errorf("the password on /perm: %s", out)
	}
	if out := ext4(t, "debugfs", "-R", "stat /duet/host.key", fs); !strings.Contains(out, "Mode:  0600") {
		t.Errorf("host.key of %s: %s", key, out)
	}
}

// TestForeignPerm boots a disk on whose fourth partition is something that Duet doesn't know: it must stay, and the host
// be reachable.
func TestForeignPerm(t *testing.T) {
	l := start(t)
	h, err := l.NewHost(t.Context(), lab.HostConfig{Name: "foreign", Number: 17, Flashed: disk.DefaultSize})
	if err != nil {
		t.Fatal(err)
	}
	at := table(t, h).Start
	f, err := os.OpenFile(h.Disk(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("XFSB"), at); err != nil {
		t.Fatal(err)
	}
	if err := h.Boot(); err != nil {
		t.Fatal(err)
	}
	waitConsole(t, h, `duet: /perm can't be used: /dev/vda4 is neither empty nor ext4; .* in memory and a password for this boot`)
	l.Password = waitConsole(t, h, `duet: web page: user gokrazy, password ([a-z2-7]{16})$`)
	waitPage(t, h)
	if err := h.Kill(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1<<20)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	if string(b[:4]) != "XFSB" || strings.Trim(string(b[4:]), "\x00") != "" {
		t.Error("what was on the partition has changed")
	}
}

// TestFlashedDisk boots a disk that image/flash wrote, by firmware, in a machine that has another disk with the same
// image: it must take its own root and /perm, which has all of the disk from the first boot on.
func TestFlashedDisk(t *testing.T) {
	l := start(t)
	const size = 4 << 30
	h, err := l.NewHost(t.Context(), lab.HostConfig{
		Name: "flashed", Number: 18, UEFI: true, Flashed: size,
		Extra: []string{
			"-drive", "if=none,id=other,format=raw,snapshot=on,file=" + l.Image.Path, "-device", "virtio-blk-pci,drive=other",
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	image, err := os.Open(l.Image.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	stick, err := flash.Open(h.Disk())
	if err != nil {
		t.Fatal(err)
	}
	err = flash.Write(t.Context(), stick, size, flash.Image{ReaderAt: image, Size: disk.DefaultSize, Disk: 0x5eed1234}, nil)
	if err := errors.Join(err, stick.Close()); err != nil {
		t.Fatal(err)
	}
	if err := h.Boot(); err != nil {
		t.Fatal(err)
	}
	waitConsole(t, h, `root=PARTUUID=60c24cc1-f3f9-427a-8199-5eed12340001/PARTNROFF=1`)
	waitConsole(t, h, `duet: made the file system of /perm on /dev/vda4`)
	waitConsole(t, h, `duet: /perm has grown to 29\d\d MiB`)
	l.Password = waitConsole(t, h, `duet: web page: user gokrazy, password ([a-z2-7]{16})$`)
	waitPage(t, h)
}
