package boot

import (
	"bytes"
	"compress/gzip"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/duet-ft/duet/hvd/boot/bzimage"
	"github.com/duet-ft/duet/hvd/boot/ext4"
	"github.com/duet-ft/duet/hvd/mem"
)

// vmlinux makes an ELF file with two segments, at 16 MiB and at 20 MiB, the
// second one mostly zeros.
func vmlinux() []byte {
	b := make([]byte, 0x2000)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2)
	le.PutUint16(b[18:], 62)
	le.PutUint64(b[24:], 0x1000040)
	le.PutUint64(b[32:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 3)
	put := func(k int, kind uint32, off, addr, filesz, memsz uint64) {
		p := b[64+56*k:]
		le.PutUint32(p, kind)
		for i, v := range []uint64{off, 0xffffffff80000000 + addr, addr, filesz, memsz} {
			le.PutUint64(p[8+8*i:], v)
		}
	}
	put(0, 1, 0, 0x1000000, 0x1000, 0x1000)
	put(1, 1, 0x1000, 0x1400000, 0x800, 0x200000)
	put(2, 4, 0, 0, 0x1000, 0)
	copy(b[0x1000:], "second segment")
	return b
}

// bzImage wraps vmlinux as the kernel's build does; tag makes one differ from
// another.
func bzImage(tag byte) []byte {
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(vmlinux())
	w.Close()
	b := make([]byte, 1024)
	b[0x1f1] = 1
	b[0x1fe], b[0x1ff] = 0x55, 0xaa
	b[0x201] = 0x6a
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x20f)
	le.PutUint32(b[0x22c:], 0x7fffffff)
	le.PutUint32(b[0x238:], 2047)
	le.PutUint32(b[0x24c:], uint32(z.Len()))
	b[0] = tag
	return append(b, z.Bytes()...)
}

const uuid = "01234567-89ab-cdef-0123-456789abcdef"

// disk makes an ext4 file system with the given files: a path ending in "/" is
// a directory, and contents starting with "->" are a link.
func disk(t testing.TB, files map[string]string) []byte {
	t.Helper()
	return diskOf(t, "8m", files)
}

func diskOf(t testing.TB, size string, files map[string]string) []byte {
	t.Helper()
	mke2fs := "mke2fs"
	if _, err := exec.LookPath(mke2fs); err != nil {
		if mke2fs, err = exec.LookPath("/sbin/mke2fs"); err != nil {
			t.Skip("e2fsprogs isn't installed")
		}
	}
	dir := t.TempDir()
	for name, data := range files {
		p := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(p), 0o755)
		if target, ok := strings.CutPrefix(data, "->"); ok && err == nil {
			err = os.Symlink(target, p)
		} else if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(p, 0o755)
		} else if err == nil {
			err = os.WriteFile(p, []byte(data), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	img := filepath.Join(t.TempDir(), "img")
	if out, err := exec.Command(mke2fs, "-t", "ext4", "-q", "-F", "-U", uuid, "-d", dir, img, size).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v\n%s", err, out)
	}
	b, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// partitioned puts file systems of 8 MiB each into a disk with a GPT, or with
// an MBR.
func partitioned(gpt bool, parts ...[]byte) []byte {
	const mib = 1 << 20
	b := make([]byte, mib)
	entries := make([]byte, 128*128)
	for k, p := range parts {
		first := uint64(len(b) / 512)
		e := entries[128*k:]
		copy(e, "type")
		le.PutUint64(e[32:], first)
		le.PutUint64(e[40:], first+uint64(len(p)/512)-1)
		m := b[446+16*k:]
		m[4] = 0x83
		if gpt {
			m[4] = 0xee
		}
		le.PutUint32(m[8:], uint32(first))
		le.PutUint32(m[12:], uint32(len(p)/512))
		b = append(b, p...)
	}
	b[510], b[511] = 0x55, 0xaa
	if gpt {
		copy(b[1024:], entries)
		h := b[512:]
		copy(h, "EFI PART\x00\x00\x01\x00")
		le.PutUint32(h[12:], 92)
		le.PutUint64(h[72:], 2)
		le.PutUint32(h[80:], 128)
		le.PutUint32(h[84:], 128)
		le.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
	}
	return append(b, make([]byte, mib)...)
}

func find(b []byte) (*Image, error) { return Find(bytes.NewReader(b), int64(len(b))) }

func TestFind(t *testing.T) {
	debian := map[string]string{
		"etc/": "", "usr/": "",
		"boot/vmlinuz-6.1.0-9-amd64": string(bzImage(9)), "boot/initrd.img-6.1.0-9-amd64": "nine",
		"boot/vmlinuz-6.1.0-10-amd64": string(bzImage(10)), "boot/initrd.img-6.1.0-10-amd64": "ten",
		"boot/vmlinuz-6.1.0-11-amd64": string(bzImage(11)), // its initrd isn't made yet
	}
	linked := map[string]string{"vmlinuz": "->boot/vmlinuz-6.1.0-9-amd64"}
	dangling := map[string]string{"vmlinuz": "->boot/vmlinuz-5"}
	for k, v := range debian {
		linked[k], dangling[k] = v, v
	}
	fedora := disk(t, map[string]string{
		"vmlinuz-6.8.5-301.fc40.x86_64": string(bzImage(8)), "initramfs-6.8.5-301.fc40.x86_64.img": "fedora",
		"vmlinuz-0-rescue-0123": string(bzImage(0)), "initramfs-0-rescue-0123.img": "rescue", "grub2/grub.cfg": "",
	})
	system := disk(t, map[string]string{"etc/fstab": "", "usr/bin/true": "", "boot/": ""})
	plain := disk(t, map[string]string{"etc/": "", "usr/": "", "boot/vmlinuz": string(vmlinux())})
	empty := make([]byte, 8<<20)
	for _, c := range []struct {
		name  string
		disk  []byte
		image Image
		tag   byte
	}{
		{"newest with an initrd", disk(t, debian), Image{Root: "root=UUID=" + uuid, Version: "6.1.0-10-amd64", Path: "/boot/vmlinuz-6.1.0-10-amd64", Initrd: []byte("ten")}, 10},
		{"where the link points", disk(t, linked), Image{Root: "root=UUID=" + uuid, Version: "6.1.0-9-amd64", Path: "/boot/vmlinuz-6.1.0-9-amd64", Initrd: []byte("nine")}, 9},
		{"a link to nothing", disk(t, dangling), Image{Root: "root=UUID=" + uuid, Version: "6.1.0-10-amd64", Path: "/boot/vmlinuz-6.1.0-10-amd64", Initrd: []byte("ten")}, 10},
		{"GPT", partitioned(true, empty, disk(t, debian)), Image{Root: "root=UUID=" + uuid, Version: "6.1.0-10-amd64", Path: "/boot/vmlinuz-6.1.0-10-amd64", Initrd: []byte("ten")}, 10},
		{"MBR, boot partition, system partition", partitioned(false, fedora, system), Image{Root: "root=UUID=" + uuid, Version: "6.8.5-301.fc40.x86_64", Path: "/vmlinuz-6.8.5-301.fc40.x86_64", Initrd: []byte("fedora")}, 8},
		{"boot partition alone", partitioned(true, fedora), Image{Version: "6.8.5-301.fc40.x86_64", Path: "/vmlinuz-6.8.5-301.fc40.x86_64", Initrd: []byte("fedora")}, 8},
		{"no initrd", partitioned(true, plain), Image{Root: "root=/dev/vda1", Path: "/boot/vmlinuz"}, 0x7f},
	} {
		t.Run(c.name, func(t *testing.T) {
			img, err := find(c.disk)
			if err != nil {
				t.Fatal(err)
			}
			if img.Kernel[0] != c.tag {
				t.Errorf("the kernel read is that with tag %d, want %d", img.Kernel[0], c.tag)
			}
			img.Kernel = nil
			if d := cmp.Diff(&c.image, img); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestFindSaysWhatIsWrong(t *testing.T) {
	system := disk(t, map[string]string{"etc/": "", "usr/": "", "boot/": ""})
	torn := bytes.Clone(system)
	torn[1024+4]++
	noKernel := disk(t, map[string]string{"boot/vmlinuz-1": strings.Repeat("text ", 1000)})
	badGPT := partitioned(true, system)
	badGPT[512+40]++
	for _, c := range []struct {
		name string
		disk []byte
		want error
		text string
	}{
		{"no kernel", system, ErrNoKernel, "the whole disk"},
		{"no kernel in two partitions", partitioned(true, system, system), ErrNoKernel, "partition 1, partition 2"},
		{"not a kernel", noKernel, bzimage.ErrFormat, "/boot/vmlinuz-1"},
		{"damaged", torn, ext4.ErrDamaged, "e2fsck"},
		{"damaged in a partition", partitioned(false, torn), ext4.ErrDamaged, "partition 1"},
		{"blank", make([]byte, 1<<20), ErrNoFileSystem, "neither"},
		{"another file system", partitioned(true, make([]byte, 1<<20)), ErrNoFileSystem, "XFS"},
		{"damaged GPT", badGPT, nil, "damaged partition table"},
		{"empty", nil, ErrNoFileSystem, ""},
	} {
		img, err := find(c.disk)
		if err == nil {
			t.Errorf("%s: found %s", c.name, img.Path)
			continue
		}
		if c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.name, err)
		}
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: the error has several lines", c.name)
		}
	}
}

func TestVersionsSortAsPeopleDo(t *testing.T) {
	want := []string{
		"0-rescue", "5.10.0-30-amd64", "6.1-rc1", "6.1-rc10", "6.1", "6.1.0-9-amd64", "6.1.0-10-amd64", "6.1.0-10-cloud-amd64",
		"6.1.10", "6.2", "6.10", "linux",
	}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, compareVersions)
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if compareVersions("6.01", "6.1") != 0 {
		t.Error("leading zeros count")
	}
}

func TestLoad(t *testing.T) {
	m, err := mem.New(64 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	initrd := bytes.Repeat([]byte("initrd"), 1000)
	img := &Image{Kernel: bzImage(1), Initrd: initrd, Root: "root=/dev/vda1"}
	o := Options{Cmdline: "panic=1", Quiet: true}
	copy(o.Seed[:], "seed")
	e, err := Load(m, img, o)
	if err != nil {
		t.Fatal(err)
	}
	e.Accessed = Accessed{} // see TestAccessed
	b := m.Bytes()
	want := &Entry{RIP: 0x1000040, RSI: 0x7000, RSP: 0x8ff0, CR3: 0x9000, GDTBase: 0x500, GDTLimit: 31}
	if d := cmp.Diff(want, e); d != "" {
		t.Error(d)
	}
	if string(b[0x1400000:0x140000e]) != "second segment" || !bytes.Equal(b[0x1000000:0x1001000], vmlinux()[:0x1000]) {
		t.Error("the kernel isn't where it belongs")
	}
	at, n := le.Uint32(b[0x7218:]), le.Uint32(b[0x721c:])
	if at%4096 != 0 || !bytes.Equal(b[at:at+n], initrd) {
		t.Errorf("no initrd at %#x", at)
	}
	cmdline, _, _ := bytes.Cut(b[0x20000:0x21000], []byte{0})
	if s := string(cmdline); !strings.HasPrefix(s, "root=/dev/vda1 rw console=ttyS0 quiet ") || !strings.HasSuffix(s, " panic=1") {
		t.Errorf("command line %q", s)
	}
	seed := b[le.Uint64(b[0x7250:]):]
	if le.Uint32(seed[8:]) != 9 || le.Uint32(seed[12:]) != 32 || !bytes.Equal(seed[16:48], o.Seed[:]) {
		t.Errorf("setup data % x", seed[:48])
	}
	if b[0x71f1] != 1 || le.Uint32(b[0x722c:]) != 0x7fffffff || le.Uint32(b[0x7228:]) != 0x20000 {
		t.Error("the kernel's own header isn't in the boot parameters")
	}
	if string(b[0xf0000:0xf0008]) != "RSD PTR " || le.Uint64(b[0x7070:]) != 0xf0000 {
		t.Error("no ACPI root pointer")
	}
}

// walk translates an address by the page tables in memory.
func walk(t *testing.T, m *mem.Memory, cr3, addr uint64) uint64 {
	t.Helper()
	table := cr3
	for shift := 39; shift >= 21; shift -= 9 {
		e, err := m.Uint64(table + addr>>shift&511*8)
		if err != nil || e&3 != 3 {
			t.Fatalf("no page table entry for %#x at level %d: %#x, %v", addr, shift, e, err)
		}
		if e&0x80 != 0 {
			return e&^(1<<shift-1) | addr&(1<<shift-1)
		}
		table = e &^ 0xfff
	}
	t.Fatalf("%#x isn't mapped by large pages", addr)
	return 0
}

func TestMemoryMap(t *testing.T) {
	const size = mem.LowMax + 1<<30
	m, err := mem.New(size)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	e, err := Load(m, &Image{Kernel: vmlinux(), Initrd: []byte("x"), Root: "root=/dev/vda"}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []uint64{0, 0x1000040, 0xbfffffff, 0xfee00000, 1<<32 - 1} {
		if got := walk(t, m, e.CR3, a); got != a {
			t.Errorf("%#x is mapped to %#x", a, got)
		}
	}
	p, err := m.View(e.RSI, 4096)
	if err != nil {
		t.Fatal(err)
	}
	var got [][3]uint64
	for i := range int(p[0x1e8]) {
		r := p[0x2d0+20*i:]
		got = append(got, [3]uint64{le.Uint64(r), le.Uint64(r) + le.Uint64(r[8:]), uint64(le.Uint32(r[16:]))})
	}
	want := [][3]uint64{
		{0, 0x9fc00, 1}, {0x9fc00, 0xa0000, 2}, {0xf0000, 0x100000, 2}, {0x100000, 3 << 30, 1}, {4 << 30, 5 << 30, 1},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if at := le.Uint32(p[0x218:]); at != 3<<30-4096 {
		t.Errorf("initrd at %#x", at)
	}
}

func TestLoadSaysWhatIsWrong(t *testing.T) {
	m, err := mem.New(24 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	low, entry := vmlinux(), vmlinux()
	le.PutUint64(low[64+24:], 0x8000)
	le.PutUint64(low[24:], 0x8040)
	le.PutUint64(entry[24:], 0x3000000)
	segment := vmlinux()
	le.PutUint64(segment[64+32:], 1<<40)
	for _, c := range []struct {
		name string
		img  Image
		o    Options
		want string
	}{
		{"no root", Image{Kernel: vmlinux()}, Options{}, "root="},
		{"long", Image{Kernel: vmlinux(), Root: "root=x"}, Options{Cmdline: strings.Repeat("x", 2000)}, "at most 2047"},
		{"two lines", Image{Kernel: vmlinux(), Root: "root=x"}, Options{Cmdline: "a\nb"}, "control character"},
		{"text", Image{Kernel: []byte("text"), Root: "root=x"}, Options{}, "not an x86 Linux kernel"},
		{"little memory", Image{Kernel: vmlinux(), Root: "root=x", Initrd: make([]byte, 3<<20)}, Options{}, "too little memory: 24 MiB"},
		{"below 1 MiB", Image{Kernel: low, Root: "root=x"}, Options{}, "below 1 MiB"},
		{"entry", Image{Kernel: entry, Root: "root=x"}, Options{}, "entry point"},
		{"segment", Image{Kernel: segment, Root: "root=x"}, Options{}, "ELF segment 0"},
	} {
		if _, err := Load(m, &c.img, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	set := make([]uint64, (m.Pages()+63)/64)
	m.TakeDirty(set)
	if p := mem.PageSet(set); len(p) != 0 {
		t.Errorf("pages %v were written although nothing was loaded", p)
	}
}

// TestFindAndLoadARealGuest takes a disk image that somebody built, such as
// image/guest's.
func TestFindAndLoadARealGuest(t *testing.T) {
	name := os.Getenv("DUET_TEST_GUEST")
	if name == "" {
		t.Skip("DUET_TEST_GUEST names no disk image")
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	img, err := Find(f, size)
	if err != nil {
		t.Fatal(err)
	}
	m, err := mem.New(384 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	e, err := Load(m, img, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: kernel %d bytes, initrd %d bytes, %s, entry %#x", img.Path, len(img.Kernel), len(img.Initrd), img.Root, e.RIP)
}

func FuzzFind(f *testing.F) {
	base := diskOf(f, "512k", map[string]string{
		"etc/": "", "usr/": "", "vmlinuz": "->boot/vmlinuz-1", "boot/vmlinuz-1": string(bzImage(1)), "boot/initrd.img-1": "x",
	})
	if _, err := find(base); err != nil {
		f.Fatal(err)
	}
	whole := partitioned(true, base)
	f.Add(false, []byte{})
	f.Add(true, []byte{0x38, 4, 0, 0, 0})
	f.Fuzz(func(t *testing.T, gpt bool, patch []byte) {
		b := bytes.Clone(base)
		if gpt {
			b = bytes.Clone(whole)
		}
		for ; len(patch) >= 5; patch = patch[5:] {
			b[int(le.Uint32(patch))%len(b)] = patch[4]
		}
		img, err := find(b)
		if err == nil && len(img.Kernel)+len(img.Initrd) > 2*len(b) {
			t.Fatal("more was read than there is")
		}
	})
}

// FuzzSegments reads any bytes as a kernel's ELF file.
func FuzzSegments(f *testing.F) {
	f.Add(vmlinux())
	f.Add(vmlinux()[:70])
	f.Fuzz(func(t *testing.T, b []byte) {
		list, _, err := segments(b)
		if err != nil {
			return
		}
		for _, s := range list {
			if uint64(len(s.data)) > s.size {
				t.Fatal("more data than memory")
			}
		}
	})
}
